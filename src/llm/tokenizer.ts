import { stat } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { Tokenizer as HubTokenizer } from '@huggingface/tokenizers';
import { missingBytes, needsAny, refuseMissing } from './byteSymbols.ts';
import { ModelError } from './modelError.ts';
import { type SpecialSpelling, specialSpelling } from './specialSpelling.ts';
import { readStrictJson } from './strictJson.ts';
import {
  beginningOf,
  contentOf,
  type Merge,
  parseTokenizerJson,
  type SpecialField,
  specialFields,
  type TokenizerJson,
} from './tokenizerJson.ts';
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
   * Token ids of a text, without a beginning-of-sequence token. The spelling of a special token in the text becomes
   * that token, unless it was escaped.
   * @param options.continues The text goes on from other text: the space that SentencePiece puts in front of any text
   *   is left out, so that the ids are those that the text has behind the other.
   * @throws ModelError when a part of the text has no id.
   */
  encode(text: string, options?: { readonly continues?: boolean }): number[];
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

/** Twice what the largest vocabularies take. */
const limits = { bytes: 64 * 2 ** 20, depth: 32, values: 2 ** 21 };

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
  const { json, settings, idOf } = parseTokenizerJson(tokenizer, config, where);
  const tokenOf = new Map([...idOf].map(([token, tokenId]) => [tokenId, token]));
  const special = new Map(
    (json.added_tokens ?? []).filter((added) => added.special).map(({ id, content }) => [id, content]),
  );
  const spelling = specialSpelling(special);
  const { hub, linear, addsSpace } = makeHubTokenizer(json, spelling, settings, where);
  // A second vocabulary in memory, so only for those who ask.
  let continuing: HubTokenizer | undefined;
  const hubOfContinued = () => {
    continuing ??= makeHubTokenizer(json, spelling, settings, where, { continues: true }).hub;
    return continuing;
  };
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

  function encode(text: string, { continues = false } = {}): number[] {
    const spelled = spelling.toUnique(text);
    refuseMissing(spelling.fromUnique(spelled), missing, where);
    if (!continues || !addsSpace) return encodeBy(hub, spelled);
    // Behind a special token a text begins anew.
    const end = spelling.firstUnique(spelled);
    const [head, rest] = [spelled.slice(0, end), spelled.slice(end)];
    return [...encodeBy(hubOfContinued(), head), ...(rest === '' ? [] : encodeBy(hub, rest))];
  }

  function encodeBy(own: HubTokenizer, spelled: string): number[] {
    const { ids, tokens } = bounded(() => own.encode(spelled, { add_special_tokens: false }), spelled.length);
    for (const [index, tokenId] of ids.entries()) {
      const content = special.get(tokenId);
      if (content === tokens[index] && content !== json.model.unk_token) {
        throw new ModelError(`${where}: ${JSON.stringify(content)} in a text becomes a special token`);
      }
      // The library leaves undefined where a token is in no vocabulary and there is no unknown token.
      if (!Number.isInteger(tokenId)) {
        throw new ModelError(
          `${where}: ${JSON.stringify(tokens[index] ?? spelling.fromUnique(spelled))} is in no vocabulary and there is no unknown token`,
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
        // Llama 3's files ask for it, and transformers ignores them too: it would drop the space of "yes .".
        clean_up_tokenization_spaces: false,
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

function makeHubTokenizer(
  json: TokenizerJson,
  spelling: SpecialSpelling,
  settings: object,
  where: string,
  options: { readonly continues?: boolean } = {},
): { hub: HubTokenizer; linear: boolean; addsSpace: boolean } {
  const { type, unk_token, byte_fallback } = json.model;
  if (type === 'BPE' && json.model.merges === undefined) {
    throw new ModelError(`${where}: model.merges is missing`);
  }
  if (type === 'BPE' && !isByteLevel(json) && !byte_fallback && (unk_token ?? null) === null) {
    throw new ModelError(
      `${where}: the tokenizer knows no bytes and has no unknown token, so it would drop characters it does not know`,
    );
  }
  const added_tokens = (json.added_tokens ?? []).map((added) =>
    added.special ? { ...added, content: spelling.uniqueOf(added.id), normalized: false } : added,
  );
  // SentencePiece's vocabularies give merges for special tokens too: any text could become one.
  const specials = new Set(
    (json.added_tokens ?? []).flatMap((added) => (added.special ? [added.content] : [])),
  );
  const merges = (json.model.merges as readonly Merge[] | undefined)?.filter(
    (merge) => !specials.has(typeof merge === 'string' ? merge.replace(' ', '') : merge.join('')),
  );
  const model = merges === undefined ? json.model : { ...json.model, merges };
  const { linear, addsSpace, ...steps } = checkSteps(
    { normalizer: json.normalizer, pre_tokenizer: json.pre_tokenizer, decoder: json.decoder },
    where,
    options,
  );
  try {
    // What a post-processor puts around a text is not wanted.
    const parts = { ...json, ...steps, model, post_processor: null, added_tokens };
    return { hub: new HubTokenizer(parts, settings), linear: linear && type === 'BPE', addsSpace };
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
    probe += characters.filter((character) => !needsAny(missing, character)).join('');
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
