/**
 * How a question becomes tokens: [beginning; text] audio [text] answer end. The text is the template's alone, or the
 * model's chat template puts it into a conversation. What people write is escaped: the spelling of a special token in
 * it stays a spelling.
 */
import type { ChatVariables } from '../llm/chatTemplate.ts';

export interface PromptConfig {
  /** Whether the model's own chat template words the conversation. */
  readonly chat: boolean;
  /** Text in front of everything, or with `chat` the system message; null: none. */
  readonly system: string | null;
  /**
   * The question with {audio}, {question} and, if wanted, {options}, in [brackets] with what only questions with options
   * get. Without `chat` it ends without a space.
   */
  readonly template: string;
  /** What the chat template is told beside the messages. */
  readonly variables: ChatVariables;
  /** The day that a chat template is told, YYYY-MM-DD. */
  readonly date: string;
}

export interface Asked {
  readonly question: string;
  readonly options?: readonly string[] | undefined;
}

/** The prompts of a run. The tokens in front of the audio are the same for every question. */
export interface PromptFormat {
  /** Tokens in front of the audio. */
  readonly front: readonly number[];
  /** Tokens of a whole prompt; the audio stands behind the first `front.length` of them. */
  promptIds(asked: Asked): number[];
  /** Tokens of an answer as they follow the prompt, without the one that ends it. */
  answerIds(answer: string): number[];
  /** The token that ends an answer. */
  readonly endId: number;
}

/** What a template has in front of the audio and behind it. */
export function aroundAudio(template: string): [before: string, behind: string] {
  const at = template.indexOf('{audio}');
  return [template.slice(0, at), template.slice(at + '{audio}'.length)];
}

/** What stands in brackets around {options} is for questions that have some. */
const optionalPart = /\[([^[\]]*\{options\}[^[\]]*)\]/g;

/** A template with the question and its options in it. */
export function fill(
  template: string,
  { question, options = [] }: Asked,
  escapeSpecial: (text: string) => string,
): string {
  const values = { '{question}': question, '{options}': options.join(', ') };
  return template
    .replace(optionalPart, options.length > 0 ? '$1' : '')
    .replace(/\{question\}|\{options\}/g, (found) => escapeSpecial(values[found as keyof typeof values]));
}
