/** How a question becomes tokens: [beginning; system] audio [question as the template words it] answer. */
import type { Tokenizer } from '../llm/tokenizer.ts';

export interface PromptConfig {
  /** Text in front of the audio; may be empty. */
  readonly system: string;
  /** Text behind the audio, with {question} and, if wanted, {options}. Ends without a space. */
  readonly template: string;
}

export interface Asked {
  readonly question: string;
  readonly options?: readonly string[] | undefined;
}

export interface Prompt {
  readonly ids: readonly number[];
  /** Tokens in front of the audio. */
  readonly slot: number;
}

/** The prompt as text, without the audio. */
export function renderPrompt({ template }: PromptConfig, { question, options = [] }: Asked): string {
  return template.replaceAll('{question}', () => question).replaceAll('{options}', () => options.join(', '));
}

/** The prompt as token ids. */
export function promptIds(
  config: PromptConfig,
  tokenizer: Tokenizer,
  bosTokenId: number | null,
  asked: Asked,
): Prompt {
  const front = frontIds(config, tokenizer, bosTokenId);
  return { ids: [...front, ...tokenizer.encode(renderPrompt(config, asked))], slot: front.length };
}

/** The tokens in front of the audio; the same for every question. */
export function frontIds(
  { system }: PromptConfig,
  tokenizer: Tokenizer,
  bosTokenId: number | null,
): number[] {
  return [...(bosTokenId === null ? [] : [bosTokenId]), ...(system === '' ? [] : tokenizer.encode(system))];
}

/** An answer as it follows the prompt: its first word carries the space. */
export function answerIds(tokenizer: Tokenizer, answer: string): number[] {
  return tokenizer.encode(` ${answer}`);
}
