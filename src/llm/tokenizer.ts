import { stat } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { Tokenizer as HubTokenizer } from '@huggingface/tokenizers';
import { z } from 'zod';
import { byteSymbols } from './byteSymbols.ts';
import { ModelError } from './modelError.ts';
import { type SpecialSpelling, specialSpelling } from './specialSpelling.ts';
import { readStrictJson } from './strictJson.ts';
import { checkSteps, withinDeadline } from './tokenizerSteps.ts';

/**
 * Text to token ids and back.
 *
 * A byte-level tokenizer puts a space at the beginning of the word that follows it: "a bell" is "a" + " bell".
 * So texts may be cut before a space, and only there: `encode("Answer:")` followed by `encode(" bell")` gives the
 * ids of "Answer: bell", while `encode("Answer: ")` followed by `encode("bell")` gives others, ones that the
 * model has hardly seen. Prompts here end without a space and answers begin with one.
 */
export interface Tokenizer {
  /**
   * Token ids of a text. Adds nothing: no beginning-of-sequence token, no leading space. The spelling of a
   * special token in the text becomes that token, unless it was escaped.
   * @throws ModelError when a part of the text has no id.
   */
  encode(text: string): number[];
  /** A text that `encode` takes as text alone: the spelling of a special token in it stays a spelling. */
  escapeSpecial(text: string): string;
  /**
   * Text of token ids, without special tokens unless asked for. Bytes that are not (yet) UTF-8 come out as U+FFFD.
   * @throws ModelError for an id that no token has.
   */
  decode(ids: readonly number[], options?: { readonly skipSpecial?: boolean }): string;
  /** The id of a token as it stands in the vocabulary (a word with a space before it: "Ġbell"). */
  tokenId(token: string): number | undefined;
  /** One more than the largest id. */
  readonly size: number;
  readonly bosTokenId: number | undefined;
  readonly eosTokenId: number | undefined;
  readonly padTokenId: number | undefined;
  /** What a sequence begins with: usually the beginning-of-text token, or nothing (Qwen2, SmolLM2). */
  readonly beginning: readonly number[];
  /** Whether a token has a meaning of its own, and no text. */
  isSpecial(id: number): boolean;
  /** Spellings by the names that chat templates use: `bos_token`, `eos_token`. */
  readonly specialTokens: Readonly<Record<string, string>>;
  /** What the tokenizer was made from, for saving it next to a model. */
  readonly files: TokenizerFiles;
}

export interface TokenizerFiles {
  /** Content of tokenizer.json. */
  readonly tokenizer: unknown;
  /** Content of tokenizer_config.json; empty where there was none. */
  readonly tokenizerConfig: unknown;
}

const limits = { bytes: 64 * 2 ** 20, depth: 32 };
/** Above any vocabulary; keeps a hostile id from making a table of its size. */
const maximumId = 2 ** 24;
/** Above any vocabulary too: characters that the library keeps one by one, for added tokens and for Unigram. */
const maximumCharacters = 2 ** 21;
const maximumMerges = 2 ** 20;

const id = z.int().nonnegative().max(maximumId);
const addedToken = z.looseObject({ content: z.string().min(1), special: z.boolean().nullish() });
const component = z.looseObject({ type: z.string() }).nullish();
const tokenizerSchema = z.looseObject({
  model: z.looseObject({
    type: z.string().optional(),
    vocab: z.union([z.record(z.string(), z.unknown()), z.array(z.tuple([z.string(), z.number()])).min(1)]),
    merges: z
      .array(z.union([z.string(), z.tuple([z.string(), z.string()])]))
      .max(maximumMerges)
      .optional(),
    unk_token: z.string().nullish(),
    byte_fallback: z.boolean().nullish(),
  }),
  added_tokens: z.array(addedToken.extend({ id })).nullish(),
  normalizer: component,
  pre_tokenizer: component,
  post_processor: component,
  decoder: component,
});
type TokenizerJson = z.infer<typeof tokenizerSchema>;

const specialToken = z.union([z.string(), z.looseObject({ content: z.string() })]).nullish();
const configSchema = z.looseObject({
  bos_token: specialToken,
  eos_token: specialToken,
  pad_token: specialToken,
  unk_token: specialToken,
  add_bos_token: z.boolean().nullish(),
  added_tokens_decoder: z.record(z.string().regex(/^\d{1,8}$/), addedToken).nullish(),
  clean_up_tokenization_spaces: z.boolean().nullish(),
  additional_special_tokens: z.array(z.unknown()).max(4096).nullish(),
});
type TokenizerSettings = z.infer<typeof configSchema>;

/**
 * Loads a tokenizer of Hugging Face: a tokenizer.json, or a folder that holds one, with the
 * tokenizer_config.json beside it where there is one.
 * @throws ModelError naming the file and what is wrong with it.
 */
export async function loadTokenizer(folderOrFile: string): Promise<Tokenizer> {
  const isFolder = (await stat(folderOrFile).catch(() => undefined))?.isDirectory() ?? false;
  const folder = isFolder ? folderOrFile : dirname(folderOrFile);
  const file = isFolder ? join(folder, 'tokenizer.json') : folderOrFile;
  const tokenizer = await readStrictJson(file, limits);
  if (tokenizer === undefined) {
    throw new ModelError(`${file}: no such file. A model folder needs the tokenizer.json of its tokenizer.`);
  }
  const config = await readStrictJson(join(folder, 'tokenizer_config.json'), limits);
  return tokenizerFromJson(tokenizer, config ?? {}, file);
}

/**
 * Makes a tokenizer from the content of its two files and checks that it gives a text back.
 * @param where how error messages name the tokenizer
 * @throws ModelError for malformed content, for a kind of tokenizer that is not known, and for one that loses text.
 */
export function tokenizerFromJson(tokenizer: unknown, config: unknown, where: string): Tokenizer {
  const settings = check(configSchema, config, `${where}: tokenizer_config.json`);
  const json = withAddedTokens(check(tokenizerSchema, tokenizer, where), settings);
  const idOf = vocabularyOf(json, where);
  const tokenOf = new Map([...idOf].map(([token, tokenId]) => [tokenId, token]));
  const special = new Map(
    (json.added_tokens ?? []).filter((added) => added.special).map(({ id, content }) => [id, content]),
  );
  const spelling = specialSpelling(special);
  checkMerges(json, idOf, where);
  const { hub, linear } = makeHubTokenizer(json, spelling, settings, where);
  const missing = isByteLevel(json) ? missingBytes(idOf) : new Set<number>();

  function bounded<T>(work: () => T, characters: number): T {
    try {
      return linear ? work() : withinDeadline(work, characters, where);
    } catch (error) {
      if (error instanceof ModelError) throw error;
      throw new ModelError(
        `${where}: the tokenizer is broken: ${error instanceof Error ? error.message : error}`,
      );
    }
  }

  function encode(text: string): number[] {
    const spelled = spelling.toUnique(text);
    if (missing.size > 0) refuseMissing(spelling.fromUnique(spelled), missing, where);
    const { ids, tokens } = bounded(() => hub.encode(spelled, { add_special_tokens: false }), text.length);
    for (const [index, tokenId] of ids.entries()) {
      const content = special.get(tokenId);
      if (content === tokens[index] && content !== json.model.unk_token) {
        throw new ModelError(`${where}: ${JSON.stringify(content)} in a text becomes a special token`);
      }
      // The library leaves undefined where a token is in no vocabulary and there is no unknown token.
      if (!Number.isInteger(tokenId)) {
        throw new ModelError(
          `${where}: ${JSON.stringify(tokens[index] ?? text)} is in no vocabulary and there is no unknown token`,
        );
      }
    }
    return ids;
  }

  function decode(ids: readonly number[], options: { readonly skipSpecial?: boolean } = {}): string {
    for (const tokenId of ids) {
      if (!tokenOf.has(tokenId)) throw new ModelError(`${where}: no token has the id ${tokenId}`);
    }
    if (ids.length === 0) return '';
    const work = () =>
      hub.decode([...ids], {
        skip_special_tokens: options.skipSpecial ?? true,
        // The library would drop the space of "yes ." unless told not to.
        clean_up_tokenization_spaces: settings.clean_up_tokenization_spaces ?? false,
      });
    return spelling.fromUnique(bounded(work, ids.length));
  }

  function specialId(field: SpecialField): number | undefined {
    const token = contentOf(settings[field]);
    if (token === undefined) return undefined;
    const tokenId = idOf.get(token);
    if (tokenId === undefined) {
      throw new ModelError(`${where}: the ${field} ${JSON.stringify(token)} is not in the vocabulary`);
    }
    return tokenId;
  }

  checkRoundTrip(json, missing, encode, decode, where);
  const bosTokenId = specialId('bos_token');
  return {
    encode,
    escapeSpecial: spelling.escapeSpecial,
    decode,
    tokenId: (token) => idOf.get(token),
    size: 1 + [...idOf.values()].reduce((largest, tokenId) => Math.max(largest, tokenId), 0),
    bosTokenId,
    eosTokenId: specialId('eos_token'),
    padTokenId: specialId('pad_token'),
    beginning: beginningOf(json, settings, idOf, bosTokenId, where),
    isSpecial: (tokenId) => special.has(tokenId),
    specialTokens: Object.fromEntries(
      specialFields.flatMap((field) => {
        const content = contentOf(settings[field]);
        return content === undefined ? [] : [[field, content]];
      }),
    ),
    files: { tokenizer, tokenizerConfig: config },
  };
}

function check<T>(schema: z.ZodType<T>, value: unknown, where: string): T {
  const parsed = schema.safeParse(value);
  // The value itself: a copy of a vocabulary would double it.
  if (parsed.success) return value as T;
  const issues = parsed.error.issues.map(({ path, message }) => `${path.join('.') || 'content'}: ${message}`);
  throw new ModelError(
    `${where}: not a tokenizer of Hugging Face\n${issues.map((issue) => `  ${issue}`).join('\n')}`,
  );
}

const specialFields = ['bos_token', 'eos_token', 'pad_token', 'unk_token'] as const;
type SpecialField = (typeof specialFields)[number];

function contentOf(entry: z.infer<typeof specialToken>): string | undefined {
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
function beginningOf(
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
    ? vocab.map(([token], index) => [token, index])
    : Object.entries(vocab);
  if (entries.length === 0) throw new ModelError(`${where}: model.vocab is empty`);
  const idOf = new Map<string, number>();
  const tokenOf = new Map<number, string>();
  for (const [token, value] of [
    ...entries,
    ...(json.added_tokens ?? []).map((added) => [added.content, added.id] as const),
  ]) {
    const parsed = id.safeParse(value);
    if (!parsed.success) {
      throw new ModelError(
        `${where}: the id of ${JSON.stringify(token)} must be an integer from 0 to ${maximumId}`,
      );
    }
    const other = tokenOf.get(parsed.data);
    if (other !== undefined && other !== token) {
      const both = `${JSON.stringify(other)} and ${JSON.stringify(token)}`;
      throw new ModelError(`${where}: ${both} have the same id ${parsed.data}`);
    }
    const otherId = idOf.get(token);
    if (otherId !== undefined && otherId !== parsed.data) {
      throw new ModelError(`${where}: ${JSON.stringify(token)} has two ids, ${otherId} and ${parsed.data}`);
    }
    tokenOf.set(parsed.data, token);
    idOf.set(token, parsed.data);
  }
  return idOf;
}

/** Merges join tokens to tokens; the library would drop what is none from the text. */
function checkMerges(json: TokenizerJson, idOf: ReadonlyMap<string, number>, where: string): void {
  for (const merge of json.model.merges ?? []) {
    const parts = typeof merge === 'string' ? merge.split(' ') : merge;
    const { continuing_subword_prefix: prefix } = json.model;
    const [left = '', right = ''] = parts;
    const joined = left + (typeof prefix === 'string' && prefix !== '' ? right.slice(prefix.length) : right);
    if (parts.length === 2 && idOf.has(left) && idOf.has(right) && idOf.has(joined)) continue;
    throw new ModelError(
      `${where}: the merge ${JSON.stringify(merge).slice(0, 200)} does not make a token of two tokens`,
    );
  }
}

function makeHubTokenizer(
  json: TokenizerJson,
  spelling: SpecialSpelling,
  settings: object,
  where: string,
): { hub: HubTokenizer; linear: boolean } {
  const { type, unk_token, byte_fallback, vocab } = json.model;
  if (type === 'BPE' && json.model.merges === undefined) {
    throw new ModelError(`${where}: model.merges is missing`);
  }
  if (type === 'BPE' && !isByteLevel(json) && !byte_fallback && (unk_token ?? null) === null) {
    throw new ModelError(
      `${where}: the tokenizer knows no bytes and has no unknown token, so it would drop characters it does not know`,
    );
  }
  const kept = [
    ...(Array.isArray(vocab) ? vocab.map(([token]) => token) : []),
    ...(json.added_tokens ?? []).map(({ content }) => content),
  ];
  const characters = kept.reduce((total, token) => total + token.length, 0);
  if (characters > maximumCharacters) {
    throw new ModelError(
      `${where}: ${characters} characters in its tokens; at most ${maximumCharacters} are possible here`,
    );
  }
  const added_tokens = (json.added_tokens ?? []).map((added) =>
    added.special ? { ...added, content: spelling.uniqueOf(added.id), normalized: false } : added,
  );
  // SentencePiece's vocabularies give merges for special tokens too: any text could become one.
  const specials = new Set(
    (json.added_tokens ?? []).flatMap((added) => (added.special ? [added.content] : [])),
  );
  const merges = json.model.merges?.filter(
    (merge) => !specials.has(typeof merge === 'string' ? merge.replace(' ', '') : merge.join('')),
  );
  const model = merges === undefined ? json.model : { ...json.model, merges };
  const { linear, ...steps } = checkSteps(
    { normalizer: json.normalizer, pre_tokenizer: json.pre_tokenizer, decoder: json.decoder },
    where,
  );
  try {
    // What a post-processor puts around a text is not wanted.
    const parts = { ...json, ...steps, model, post_processor: null, added_tokens };
    return { hub: new HubTokenizer(parts, settings), linear: linear && type === 'BPE' };
  } catch (error) {
    throw new ModelError(`${where}: ${error instanceof Error ? error.message : String(error)}`);
  }
}

function isByteLevel(json: TokenizerJson): boolean {
  const { pre_tokenizer } = json;
  if (!pre_tokenizer) return false;
  const steps = Array.isArray(pre_tokenizer.pretokenizers) ? pre_tokenizer.pretokenizers : [pre_tokenizer];
  return steps.some((step: unknown) => (step as { type?: unknown } | null)?.type === 'ByteLevel');
}

const utf8 = new TextEncoder();

/** Bytes that no token stands for: some vocabularies hold only those that their training met. */
function missingBytes(idOf: ReadonlyMap<string, number>): Set<number> {
  return new Set(byteSymbols().flatMap((symbol, byte) => (idOf.has(symbol) ? [] : [byte])));
}

/** The library would leave them out of the text. */
function refuseMissing(text: string, missing: ReadonlySet<number>, where: string): void {
  if (!utf8.encode(text).some((byte) => missing.has(byte))) return;
  for (const character of text) {
    if (!utf8.encode(character).some((byte) => missing.has(byte))) continue;
    const codePoint = character.codePointAt(0)?.toString(16).toUpperCase().padStart(4, '0');
    throw new ModelError(`${where}: the character U+${codePoint} has no token in this tokenizer`);
  }
}

/**
 * Encodes and decodes a text. A byte-level tokenizer must give any text back; the probe of one without a
 * normalizer holds every byte that UTF-8 can hold. Other kinds may change the text, but only once.
 */
function checkRoundTrip(
  json: TokenizerJson,
  missing: ReadonlySet<number>,
  encode: (text: string) => number[],
  decode: (ids: readonly number[]) => string,
  where: string,
): void {
  if (!isByteLevel(json)) return;
  // It begins with a space, which some tokenizers put before any text.
  let probe = ' Is it a bell? Yes: 2 bells.';
  if (!json.normalizer) {
    const codePoints = [
      ...Array.from({ length: 0x800 }, (_, codePoint) => codePoint),
      ...Array.from({ length: 31 }, (_, index) => 0x800 * (index + 1)).filter((at) => at !== 0xd800),
      ...Array.from({ length: 16 }, (_, index) => 0x1_0000 * (index + 1)),
    ];
    const characters = codePoints.map((codePoint) => String.fromCodePoint(codePoint));
    probe += characters
      .filter((character) => !utf8.encode(character).some((byte) => missing.has(byte)))
      .join('');
  }
  const back = decode(encode(probe));
  if (back === probe) return;
  let at = 0;
  while (back[at] === probe[at]) at++;
  const [expected, got] = [probe, back].map((text) =>
    JSON.stringify(text.slice(Math.max(0, at - 3), at + 8)),
  );
  throw new ModelError(`${where}: the tokenizer does not give a text back: ${expected} came back as ${got}`);
}
