/**
 * The content of a tokenizer.json and of the tokenizer_config.json beside it, checked: what it says about the
 * vocabulary holds together, and nothing in it fills the memory.
 */
import { z } from 'zod';
import { ModelError } from './modelError.ts';

/** Above any vocabulary; keeps a hostile id from making a table of its size. */
const maximumId = 2 ** 24;
/** Above any vocabulary too: characters that the library keeps one by one, for added tokens and for Unigram. */
const maximumCharacters = 2 ** 21;
const maximumMerges = 2 ** 20;
export const maximumTokens = 2 ** 19;
const maximumAdded = 2 ** 16;
const maximumIssues = 10;

const id = z.int().nonnegative().max(maximumId);
const isId = (value: unknown): value is number =>
  Number.isInteger(value) && (value as number) >= 0 && (value as number) <= maximumId;
const sizeOf = (value: unknown) =>
  Array.isArray(value) ? value.length : Object.keys(value as object).length;
/** A list or an object that is looked into only when it is not too long. */
const atMost = (limit: number) =>
  z.custom<object>(
    (value) => typeof value === 'object' && value !== null && sizeOf(value) <= limit,
    `expected a list or an object of at most ${limit}`,
  );
const addedToken = z.looseObject({ content: z.string().min(1), special: z.boolean().nullish() });
const component = z.looseObject({ type: z.string() }).nullish();
const tokenizerSchema = z.looseObject({
  model: z.looseObject({
    type: z.string().optional(),
    // Their elements are checked below, one by one: a schema would take seconds.
    vocab: atMost(maximumTokens),
    merges: atMost(maximumMerges)
      .pipe(z.custom<readonly unknown[]>(Array.isArray, 'expected a list'))
      .optional(),
    unk_token: z.string().nullish(),
    byte_fallback: z.boolean().nullish(),
  }),
  added_tokens: atMost(maximumAdded)
    .pipe(z.array(addedToken.extend({ id })))
    .nullish(),
  normalizer: component,
  pre_tokenizer: component,
  post_processor: component,
  decoder: component,
});
export type TokenizerJson = z.infer<typeof tokenizerSchema>;

const specialToken = z.union([z.string(), z.looseObject({ content: z.string() })]).nullish();
const configSchema = z.looseObject({
  bos_token: specialToken,
  eos_token: specialToken,
  pad_token: specialToken,
  unk_token: specialToken,
  add_bos_token: z.boolean().nullish(),
  added_tokens_decoder: atMost(maximumAdded)
    .pipe(z.record(z.string().regex(/^\d{1,8}$/), addedToken))
    .nullish(),
  additional_special_tokens: z.array(z.unknown()).max(4096).nullish(),
});
export type TokenizerSettings = z.infer<typeof configSchema>;

/**
 * Checks the content of both files.
 * @returns them, and all tokens with their ids
 * @throws ModelError naming what is malformed or does not fit
 */
export function parseTokenizerJson(
  tokenizer: unknown,
  config: unknown,
  where: string,
): { json: TokenizerJson; settings: TokenizerSettings; idOf: Map<string, number> } {
  const settings = check(configSchema, config, `${where}: tokenizer_config.json`);
  const json = withAddedTokens(check(tokenizerSchema, tokenizer, where), settings);
  const idOf = vocabularyOf(json, where);
  checkMerges(json, idOf, where);
  checkCharacters(json, where);
  return { json, settings, idOf };
}

function check<T>(schema: z.ZodType<T>, value: unknown, where: string): T {
  const parsed = schema.safeParse(value);
  // The value itself: a copy of a vocabulary would double it.
  if (parsed.success) return value as T;
  const { issues: all } = parsed.error;
  const issues = all
    .slice(0, maximumIssues)
    .map(({ path, message }) => `${path.join('.') || 'content'}: ${message}`);
  if (all.length > maximumIssues) issues.push(`and ${all.length - maximumIssues} more`);
  throw new ModelError(
    `${where}: not a tokenizer of Hugging Face\n${issues.map((issue) => `  ${issue}`).join('\n')}`,
  );
}

export const specialFields = ['bos_token', 'eos_token', 'pad_token', 'unk_token'] as const;
export type SpecialField = (typeof specialFields)[number];

export function contentOf(entry: z.infer<typeof specialToken>): string | undefined {
  return typeof entry === 'string' ? entry : (entry?.content ?? undefined);
}

/** The tokens that tokenizer_config.json adds to those of tokenizer.json. */
function withAddedTokens(json: TokenizerJson, { added_tokens_decoder }: TokenizerSettings): TokenizerJson {
  const known = new Set((json.added_tokens ?? []).map(({ content }) => content));
  const more = Object.entries(added_tokens_decoder ?? {})
    .filter(([, { content }]) => !known.has(content))
    .map(([number, added]) => ({ ...added, id: Number(number) }));
  return { ...json, added_tokens: [...(json.added_tokens ?? []), ...more] };
}

const templateSchema = z.looseObject({
  single: z.array(
    z.union([
      z.strictObject({ SpecialToken: z.looseObject({ id: z.string() }) }),
      z.strictObject({ Sequence: z.looseObject({ id: z.string() }) }),
    ]),
  ),
});

/**
 * The tokens in front of a text: `add_bos_token` decides where tokenizer_config.json has it, else the template of
 * tokenizer.json's post_processor. What a template puts behind the text is not asked for.
 */
export function beginningOf(
  { post_processor }: TokenizerJson,
  { add_bos_token }: TokenizerSettings,
  idOf: ReadonlyMap<string, number>,
  bosTokenId: number | undefined,
  where: string,
): number[] {
  if (typeof add_bos_token === 'boolean') {
    if (add_bos_token && bosTokenId === undefined) {
      throw new ModelError(`${where}: tokenizer_config.json has add_bos_token, but no bos_token`);
    }
    return add_bos_token ? [bosTokenId as number] : [];
  }
  const steps = post_processor?.type === 'Sequence' ? post_processor.processors : [post_processor];
  const template = (Array.isArray(steps) ? steps : []).find((step) => step?.type === 'TemplateProcessing');
  if (template === undefined) return [];
  const { single } = check(templateSchema, template, `${where}: post_processor`);
  const beginning: number[] = [];
  for (const piece of single) {
    if ('Sequence' in piece) break;
    const tokenId = idOf.get(piece.SpecialToken.id);
    if (tokenId === undefined) {
      throw new ModelError(
        `${where}: post_processor: ${JSON.stringify(piece.SpecialToken.id)} is not in the vocabulary`,
      );
    }
    beginning.push(tokenId);
  }
  return beginning;
}

/** All tokens with their ids; no two tokens share one. */
function vocabularyOf(json: TokenizerJson, where: string): Map<string, number> {
  const { vocab } = json.model;
  const entries: [string, unknown][] = Array.isArray(vocab)
    ? vocab.map((entry, index) => [scoredToken(entry, index, where), index])
    : Object.entries(vocab);
  if (entries.length === 0) throw new ModelError(`${where}: model.vocab is empty`);
  const idOf = new Map<string, number>();
  const tokenOf = new Map<number, string>();
  for (const [token, value] of [
    ...entries,
    ...(json.added_tokens ?? []).map((added) => [added.content, added.id] as const),
  ]) {
    if (!isId(value)) {
      throw new ModelError(
        `${where}: the id of ${JSON.stringify(token)} must be an integer from 0 to ${maximumId}`,
      );
    }
    const other = tokenOf.get(value);
    if (other !== undefined && other !== token) {
      const both = `${JSON.stringify(other)} and ${JSON.stringify(token)}`;
      throw new ModelError(`${where}: ${both} have the same id ${value}`);
    }
    const otherId = idOf.get(token);
    if (otherId !== undefined && otherId !== value) {
      throw new ModelError(`${where}: ${JSON.stringify(token)} has two ids, ${otherId} and ${value}`);
    }
    tokenOf.set(value, token);
    idOf.set(token, value);
  }
  return idOf;
}

/** The token of an entry of Unigram's vocabulary. */
function scoredToken(entry: unknown, index: number, where: string): string {
  const [token, score] = Array.isArray(entry) ? entry : [];
  if (typeof token === 'string' && typeof score === 'number') return token;
  throw new ModelError(`${where}: model.vocab.${index} is not a token with its score`);
}

export type Merge = string | readonly [string, string];

/** Merges join tokens to tokens; the library would drop what is none from the text. */
function checkMerges(json: TokenizerJson, idOf: ReadonlyMap<string, number>, where: string): void {
  for (const merge of (json.model.merges ?? []) as readonly Merge[]) {
    const parts = typeof merge === 'string' ? merge.split(' ') : Array.isArray(merge) ? merge : [];
    const { continuing_subword_prefix: prefix } = json.model;
    const [left = '', right = ''] = parts;
    const joined = left + (typeof prefix === 'string' && prefix !== '' ? right.slice(prefix.length) : right);
    if (parts.length === 2 && idOf.has(left) && idOf.has(right) && idOf.has(joined)) continue;
    throw new ModelError(
      `${where}: the merge ${JSON.stringify(merge).slice(0, 200)} does not make a token of two tokens`,
    );
  }
}

/** Bounds what is kept character by character. */
function checkCharacters({ model: { vocab }, added_tokens }: TokenizerJson, where: string): void {
  const kept = [
    ...(Array.isArray(vocab) ? vocab.map(([token]) => String(token)) : []),
    ...(added_tokens ?? []).map(({ content }) => content),
  ];
  const characters = kept.reduce((total, token) => total + token.length, 0);
  if (characters <= maximumCharacters) return;
  throw new ModelError(
    `${where}: ${characters} characters in its tokens; at most ${maximumCharacters} are possible here`,
  );
}
