import { byteSymbols } from './byteSymbols.ts';
import { gpt2WordPattern } from './wordPatterns.ts';

/** What `trainTokenizer` returns: the content of a tokenizer.json, as Hugging Face writes it. */
export interface ByteLevelBpeJson {
  readonly version: '1.0';
  readonly truncation: null;
  readonly padding: null;
  readonly added_tokens: readonly AddedToken[];
  readonly normalizer: null;
  readonly pre_tokenizer: ByteLevel;
  readonly post_processor: null;
  readonly decoder: ByteLevel;
  readonly model: {
    readonly type: 'BPE';
    readonly dropout: null;
    readonly unk_token: null;
    readonly continuing_subword_prefix: null;
    readonly end_of_word_suffix: null;
    readonly fuse_unk: false;
    readonly byte_fallback: false;
    readonly ignore_merges: false;
    readonly vocab: Readonly<Record<string, number>>;
    readonly merges: readonly string[];
  };
}

interface AddedToken {
  readonly id: number;
  readonly content: string;
  readonly single_word: false;
  readonly lstrip: false;
  readonly rstrip: false;
  readonly normalized: false;
  readonly special: true;
}

interface ByteLevel {
  readonly type: 'ByteLevel';
  readonly add_prefix_space: boolean;
  readonly trim_offsets: boolean;
  readonly use_regex: boolean;
}

export interface TrainTokenizerOptions {
  /** Number of tokens, special tokens and the 256 bytes among them. Fewer when the text has no more to merge. */
  readonly vocabularySize: number;
  /** Get the first ids, in this order. */
  readonly specialTokens: readonly string[];
}

const wordPattern = new RegExp(gpt2WordPattern, 'gu');

/** A pair seen once teaches nothing about the language. */
const minimumCount = 2;

/**
 * Trains a byte-level BPE (Sennrich, Haddow and Birch 2016): the most frequent neighbours become one token,
 * again and again. All 256 bytes are tokens, so any text can be encoded. Of pairs equally frequent, the one with
 * the smaller ids is merged: equal documents give an equal tokenizer.
 * @throws RangeError when the vocabulary cannot hold the special tokens and the 256 bytes, or a special token
 * stands twice.
 */
export function trainTokenizer(
  documents: Iterable<string>,
  options: TrainTokenizerOptions,
): ByteLevelBpeJson {
  const { vocabularySize, specialTokens } = options;
  const symbols = byteSymbols();
  const tokens = [...specialTokens, ...symbols.toSorted()];
  if (!Number.isSafeInteger(vocabularySize) || vocabularySize < tokens.length) {
    throw new RangeError(
      `a vocabulary of ${vocabularySize} cannot hold ${specialTokens.length} special tokens and 256 bytes`,
    );
  }
  const idOf = new Map(tokens.map((token, id) => [token, id]));
  if (idOf.size !== tokens.length)
    throw new RangeError('the special tokens must differ from each other and from bytes');

  const words = countWords(documents, specialTokens);
  const encoder = new TextEncoder();
  const wordIds = [...words.keys()].map((word) =>
    Array.from(encoder.encode(word), (byte) => idOf.get(symbols[byte] ?? '') ?? 0),
  );
  const merges = learnMerges(wordIds, [...words.values()], tokens, idOf, vocabularySize);
  return tokenizerJson(tokens, merges, specialTokens);
}

/** Words and how often each occurs; special tokens in the documents are no text and belong to no word. */
function countWords(documents: Iterable<string>, specialTokens: readonly string[]): Map<string, number> {
  const counts = new Map<string, number>();
  for (const document of documents) {
    let pieces = [document];
    for (const token of specialTokens) pieces = pieces.flatMap((piece) => piece.split(token));
    for (const [word] of pieces.flatMap((piece) => [...piece.matchAll(wordPattern)])) {
      counts.set(word, (counts.get(word) ?? 0) + 1);
    }
  }
  return counts;
}

interface Pair {
  readonly left: number;
  readonly right: number;
  /** Occurrences in the text. */
  count: number;
  /** Indices of words that hold the pair, or held it once. */
  readonly words: Set<number>;
}

/** Merges until the vocabulary is full; extends `tokens`, `idOf` and rewrites `wordIds` on the way. */
function learnMerges(
  wordIds: number[][],
  wordCounts: readonly number[],
  tokens: string[],
  idOf: Map<string, number>,
  vocabularySize: number,
): string[] {
  const pairs = new Map<number, Pair>();
  /** Counts the pairs of a word in (`sign` 1) or out (-1). */
  const tally = (word: number, sign: 1 | -1) => {
    const ids = wordIds[word] ?? [];
    for (const [index, right] of ids.entries()) {
      const left = ids[index - 1];
      if (left === undefined) continue;
      const key = left * vocabularySize + right;
      const pair = pairs.get(key) ?? { left, right, count: 0, words: new Set() };
      pair.count += sign * (wordCounts[word] ?? 0);
      pair.words.add(word);
      pairs.set(key, pair);
    }
  };
  for (const word of wordIds.keys()) tally(word, 1);

  const merges: string[] = [];
  while (tokens.length < vocabularySize) {
    const best = mostFrequent(pairs.values());
    if (best === undefined) break;
    const [left, right] = [tokens[best.left] ?? '', tokens[best.right] ?? ''];
    merges.push(`${left} ${right}`);
    // Two pairs may spell one token: "a" + "bc" and "ab" + "c".
    let merged = idOf.get(left + right);
    if (merged === undefined) {
      merged = tokens.push(left + right) - 1;
      idOf.set(left + right, merged);
    }
    for (const word of best.words) {
      tally(word, -1);
      wordIds[word] = mergePair(wordIds[word] ?? [], best, merged);
      tally(word, 1);
    }
    pairs.delete(best.left * vocabularySize + best.right);
  }
  return merges;
}

function mostFrequent(pairs: Iterable<Pair>): Pair | undefined {
  let best: Pair | undefined;
  for (const pair of pairs) {
    if (pair.count < minimumCount) continue;
    const better =
      best === undefined ||
      pair.count > best.count ||
      (pair.count === best.count &&
        (pair.left < best.left || (pair.left === best.left && pair.right < best.right)));
    if (better) best = pair;
  }
  return best;
}

/** Replaces the pair from the left to the right: "aaa" with the pair "aa" is "aa" + "a". */
function mergePair(ids: readonly number[], { left, right }: Pair, merged: number): number[] {
  const result: number[] = [];
  for (const id of ids) {
    if (id === right && result.at(-1) === left) result[result.length - 1] = merged;
    else result.push(id);
  }
  return result;
}

function tokenizerJson(
  tokens: readonly string[],
  merges: readonly string[],
  specialTokens: readonly string[],
): ByteLevelBpeJson {
  const byteLevel = { type: 'ByteLevel', trim_offsets: true, use_regex: true } as const;
  return {
    version: '1.0',
    truncation: null,
    padding: null,
    added_tokens: specialTokens.map((content, id) => ({
      id,
      content,
      single_word: false,
      lstrip: false,
      rstrip: false,
      normalized: false,
      special: true,
    })),
    normalizer: null,
    pre_tokenizer: { ...byteLevel, add_prefix_space: false },
    post_processor: null,
    decoder: { ...byteLevel, add_prefix_space: false },
    model: {
      type: 'BPE',
      dropout: null,
      unk_token: null,
      continuing_subword_prefix: null,
      end_of_word_suffix: null,
      fuse_unk: false,
      byte_fallback: false,
      ignore_merges: false,
      vocab: Object.fromEntries(tokens.map((token, id) => [token, id])),
      merges,
    },
  };
}
