import { stat } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { Tokenizer as HubTokenizer } from '@huggingface/tokenizers';
import { z } from 'zod';
import { ModelError } from './modelError.ts';
import { readStrictJson } from './strictJson.ts';

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
   * special token in the text becomes that token.
   * @throws ModelError when a part of the text has no id.
   */
  encode(text: string): number[];
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

const id = z.int().nonnegative().max(maximumId);
const component = z.looseObject({ type: z.string() }).nullish();
const tokenizerSchema = z.looseObject({
  model: z.looseObject({
    type: z.string().optional(),
    vocab: z.union([z.record(z.string(), z.unknown()), z.array(z.tuple([z.string(), z.number()])).min(1)]),
    merges: z.array(z.union([z.string(), z.tuple([z.string(), z.string()])])).optional(),
    unk_token: z.string().nullish(),
    byte_fallback: z.boolean().nullish(),
  }),
  added_tokens: z.array(z.looseObject({ id, content: z.string().min(1) })).nullish(),
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
  clean_up_tokenization_spaces: z.boolean().nullish(),
});

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
  const json = check(tokenizerSchema, tokenizer, where);
  const settings = check(configSchema, config, `${where}: tokenizer_config.json`);
  const idOf = vocabularyOf(json, where);
  const tokenOf = new Map([...idOf].map(([token, tokenId]) => [tokenId, token]));
  const hub = makeHubTokenizer(json, settings, where);

  function encode(text: string): number[] {
    const { ids, tokens } = hub.encode(text, { add_special_tokens: false });
    for (const [index, tokenId] of ids.entries()) {
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
    return hub.decode([...ids], {
      skip_special_tokens: options.skipSpecial ?? true,
      // The library would drop the space of "yes ." unless told not to.
      clean_up_tokenization_spaces: settings.clean_up_tokenization_spaces ?? false,
    });
  }

  function specialId(field: 'bos_token' | 'eos_token' | 'pad_token'): number | undefined {
    const entry = settings[field];
    if (entry === undefined || entry === null) return undefined;
    const token = typeof entry === 'string' ? entry : entry.content;
    const tokenId = idOf.get(token);
    if (tokenId === undefined) {
      throw new ModelError(`${where}: the ${field} ${JSON.stringify(token)} is not in the vocabulary`);
    }
    return tokenId;
  }

  checkRoundTrip(json, encode, decode, where);
  return {
    encode,
    decode,
    tokenId: (token) => idOf.get(token),
    size: 1 + [...idOf.values()].reduce((largest, tokenId) => Math.max(largest, tokenId), 0),
    bosTokenId: specialId('bos_token'),
    eosTokenId: specialId('eos_token'),
    padTokenId: specialId('pad_token'),
    files: { tokenizer, tokenizerConfig: config },
  };
}

function check<T>(schema: z.ZodType<T>, value: unknown, where: string): T {
  const parsed = schema.safeParse(value);
  if (parsed.success) return parsed.data;
  const issues = parsed.error.issues.map(({ path, message }) => `${path.join('.') || 'content'}: ${message}`);
  throw new ModelError(
    `${where}: not a tokenizer of Hugging Face\n${issues.map((issue) => `  ${issue}`).join('\n')}`,
  );
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

function makeHubTokenizer(json: TokenizerJson, settings: object, where: string): HubTokenizer {
  const { type, unk_token, byte_fallback } = json.model;
  if (type === 'BPE' && json.model.merges === undefined) {
    throw new ModelError(`${where}: model.merges is missing`);
  }
  if (type === 'BPE' && !isByteLevel(json) && !byte_fallback && (unk_token ?? null) === null) {
    throw new ModelError(
      `${where}: the tokenizer knows no bytes and has no unknown token, so it would drop characters it does not know`,
    );
  }
  const absent = { normalizer: null, pre_tokenizer: null, post_processor: null, decoder: null };
  try {
    return new HubTokenizer({ ...absent, ...json, added_tokens: json.added_tokens ?? [] }, settings);
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

/**
 * Encodes and decodes a text. A byte-level tokenizer must give any text back; the probe of one without a
 * normalizer holds every byte that UTF-8 can hold. Other kinds may change the text, but only once.
 */
function checkRoundTrip(
  json: TokenizerJson,
  encode: (text: string) => number[],
  decode: (ids: readonly number[]) => string,
  where: string,
): void {
  if (!isByteLevel(json)) return;
  // It begins with a space, which some tokenizers put before any text.
  let probe = ' Is it a bell? Yes: 2 bells.';
  if (!json.normalizer) {
    for (let codePoint = 0; codePoint < 0x800; codePoint++) probe += String.fromCodePoint(codePoint);
    for (let codePoint = 0x800; codePoint < 0x1_0000; codePoint += 0x800) {
      if (codePoint < 0xd800 || codePoint > 0xdfff) probe += String.fromCodePoint(codePoint);
    }
    for (let codePoint = 0x1_0000; codePoint < 0x11_0000; codePoint += 0x1_0000) {
      probe += String.fromCodePoint(codePoint);
    }
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
