/**
 * How byte-level tokenizers cut text into words before they merge bytes; a word owns the space before it. Regular
 * expressions in the spelling of a tokenizer.json.
 */

/** GPT-2's (Radford et al. 2019, its published code). */
export const gpt2WordPattern =
  "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";

const afterGpt2 = (digits: string) =>
  "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|" +
  `${digits}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+`;

/** Llama 3's: numbers in groups of three digits. */
export const llama3WordPattern = afterGpt2('\\p{N}{1,3}');

/** Qwen 2's: every digit alone. */
export const qwen2WordPattern = afterGpt2('\\p{N}');

export const digitPattern = '\\p{N}';
export const digitsPattern = '\\p{N}+';

/** What llama.cpp cuts by, one after the other, when a file does not say how. */
export const fallbackWordPatterns = [
  '[\\p{P}\\$\\+<=>\\^~\\|]+',
  gpt2WordPattern,
  digitsPattern,
  '[0-9][0-9][0-9]',
] as const;

/** Patterns that take time in proportion to the text; of others, that is not known. */
export const knownPatterns: ReadonlySet<string> = new Set([
  llama3WordPattern,
  qwen2WordPattern,
  digitPattern,
  ...fallbackWordPatterns,
]);
