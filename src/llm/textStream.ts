/** Text out of tokens as they are generated: only what later tokens cannot change, and nothing from a stop string on. */
import type { Tokenizer } from './tokenizer.ts';

export interface TextStream {
  /** Takes the next token. Returns the text that has become certain. */
  push(id: number): string;
  /** Ends the text. Returns what was held back. */
  end(): string;
  /** Whether a stop string was generated; the text ends before it. */
  readonly stopped: boolean;
  /** What has been returned so far. */
  readonly text: string;
}

/** A stream of one answer. Text that may be the beginning of a stop string, or of a character, is held back. */
export function textStream(tokenizer: Tokenizer, stopStrings: readonly string[]): TextStream {
  const ids: number[] = [];
  let text = '';
  let stopped = false;
  const upTo = (whole: string, length: number) => {
    const piece = whole.slice(text.length, Math.max(text.length, length));
    text += piece;
    return piece;
  };
  const advance = (certainLength: (whole: string) => number) => {
    if (stopped) return '';
    const whole = tokenizer.decode(ids);
    const stop = firstStop(whole, stopStrings);
    stopped = stop !== undefined;
    return upTo(whole, stop ?? certainLength(whole));
  };
  return {
    push(id) {
      ids.push(id);
      return advance((whole) => whole.length - uncertain(whole, stopStrings));
    },
    end: () => advance((whole) => whole.length),
    get stopped() {
      return stopped;
    },
    get text() {
      return text;
    },
  };
}

function firstStop(text: string, stopStrings: readonly string[]): number | undefined {
  const found = stopStrings.map((stop) => text.indexOf(stop)).filter((at) => at >= 0);
  return found.length === 0 ? undefined : Math.min(...found);
}

/** How many letters at the end may yet change: half a character, or what a stop string begins with. */
function uncertain(text: string, stopStrings: readonly string[]): number {
  const half = /\uFFFD+$/.exec(text)?.[0].length ?? 0;
  const begun = stopStrings.map((stop) => {
    let length = Math.min(stop.length - 1, text.length);
    while (length > 0 && !text.endsWith(stop.slice(0, length))) length--;
    return length;
  });
  return Math.max(half, ...begun);
}
