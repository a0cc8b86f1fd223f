import { Presets, SingleBar } from 'cli-progress';
import { sanitizeLine } from './sanitize.ts';

export interface ProgressOptions {
  /** What is going on: `train`. */
  readonly label: string;
  /** How many there are to do. */
  readonly total: number;
  /** Under --json nothing but warnings and errors goes to the terminal. */
  readonly json?: boolean;
  /** Where it is drawn; standard error, so that standard output stays clean. */
  readonly stream?: NodeJS.WriteStream;
}

export interface Progress {
  /**
   * @param done how many are done
   * @param extras what else is worth showing, by name: `{ loss: 0.41 }`
   */
  update(done: number, extras?: Readonly<Record<string, string | number>>): void;
  /** Ends the drawing; the last state stays on the screen. */
  stop(): void;
}

/** Milliseconds between lines where there is no terminal. */
const lineEveryMs = 5000;

/** Shows how far a long job is: a bar on a terminal, otherwise a plain line every few seconds. */
export function progressBar({
  label,
  total,
  json = false,
  stream = process.stderr,
}: ProgressOptions): Progress {
  if (json) return { update: () => undefined, stop: () => undefined };
  return stream.isTTY ? bar(label, total, stream) : lines(label, total, stream);
}

function bar(label: string, total: number, stream: NodeJS.WriteStream): Progress {
  const drawn = new SingleBar(
    {
      format: '{label} {bar} {value}/{total} | {eta_formatted} left{extras}',
      stream,
      hideCursor: true,
      barsize: 30,
      // The thread is busy between steps: drawn when there is something new, not by a timer that cannot fire.
      synchronousUpdate: true,
      gracefulExit: false,
    },
    Presets.shades_classic,
  );
  drawn.start(total, 0, { label: sanitizeLine(label), extras: '' });
  return {
    update: (done, extras = {}) => {
      const shown = formatExtras(extras);
      drawn.update(done, { extras: shown === '' ? '' : ` | ${shown}` });
    },
    stop: () => drawn.stop(),
  };
}

function lines(label: string, total: number, stream: NodeJS.WriteStream): Progress {
  let lastMs = Number.NEGATIVE_INFINITY;
  let latest = '';
  let printed = '';
  const print = () => {
    if (latest === printed) return;
    stream.write(`${latest}\n`);
    printed = latest;
  };
  return {
    update: (done, extras = {}) => {
      const shown = formatExtras(extras);
      latest = `${sanitizeLine(label)} ${done}/${total}${shown === '' ? '' : ` | ${shown}`}`;
      const nowMs = performance.now();
      if (nowMs - lastMs < lineEveryMs && done < total) return;
      lastMs = nowMs;
      print();
    },
    stop: print,
  };
}

function formatExtras(extras: Readonly<Record<string, string | number>>): string {
  return Object.entries(extras)
    .map(
      ([name, value]) => `${name} ${typeof value === 'number' ? formatNumber(value) : sanitizeLine(value)}`,
    )
    .join(' | ');
}

/** Four digits that count. */
function formatNumber(value: number): string {
  return Number.isInteger(value) ? String(value) : String(Number(value.toPrecision(4)));
}
