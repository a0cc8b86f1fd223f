/** Trains a small byte-level BPE tokenizer (Sennrich et al. 2016; the byte alphabet of GPT-2). */

export interface TokenizerTraining {
  readonly vocabularySize: number;
  /** Get the first ids, in this order. */
  readonly specialTokens: readonly string[];
}

const wordPattern = /'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+/gu;

/**
 * Learns merges from documents and returns the content of a Hugging Face tokenizer.json. Any text can be encoded:
 * all 256 bytes are in the vocabulary. Ties are broken by the merged string, so the result is deterministic.
 */
export function trainTokenizer(
  documents: Iterable<string>,
  { vocabularySize, specialTokens }: TokenizerTraining,
): Record<string, unknown> {
  const alphabet = byteAlphabet();
  const counts = new Map<string, number>();
  for (const document of documents) {
    for (const [word] of document.matchAll(wordPattern)) counts.set(word, (counts.get(word) ?? 0) + 1);
  }
  const words = [...counts].map(([word, count]) => ({
    count,
    symbols: [...Buffer.from(word, 'utf8')].map((byte) => alphabet[byte] as string),
  }));
  const vocabulary = [...specialTokens, ...[...alphabet].sort()];
  const merges: [string, string][] = [];
  while (vocabulary.length < vocabularySize) {
    const best = mostFrequentPair(words);
    if (best === undefined) break;
    merges.push(best);
    vocabulary.push(best[0] + best[1]);
    for (const word of words) word.symbols = merge(word.symbols, best);
  }
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
    pre_tokenizer: { type: 'ByteLevel', add_prefix_space: false, trim_offsets: true, use_regex: true },
    post_processor: null,
    decoder: { type: 'ByteLevel', add_prefix_space: true, trim_offsets: true, use_regex: true },
    model: {
      type: 'BPE',
      dropout: null,
      unk_token: null,
      continuing_subword_prefix: null,
      end_of_word_suffix: null,
      fuse_unk: false,
      byte_fallback: false,
      ignore_merges: false,
      vocab: Object.fromEntries(vocabulary.map((token, id) => [token, id])),
      merges,
    },
  };
}

function mostFrequentPair(
  words: readonly { count: number; symbols: string[] }[],
): [string, string] | undefined {
  const totals = new Map<string, number>();
  for (const { count, symbols } of words) {
    for (let at = 1; at < symbols.length; at++) {
      const pair = `${symbols[at - 1]} ${symbols[at]}`;
      totals.set(pair, (totals.get(pair) ?? 0) + count);
    }
  }
  let best: string | undefined;
  let most = 1;
  for (const [pair, total] of totals) {
    if (total > most || (total === most && best !== undefined && pair < best)) [best, most] = [pair, total];
  }
  return best?.split(' ') as [string, string] | undefined;
}

function merge(symbols: readonly string[], [left, right]: readonly [string, string]): string[] {
  const merged: string[] = [];
  for (let at = 0; at < symbols.length; at++) {
    if (symbols[at] === left && symbols[at + 1] === right) {
      merged.push(left + right);
      at++;
    } else merged.push(symbols[at] as string);
  }
  return merged;
}

/** GPT-2's printable stand-in for each byte: itself where it is printable, a character from 256 up where not. */
function byteAlphabet(): string[] {
  let next = 256;
  return Array.from({ length: 256 }, (_, byte) => {
    const printable = (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174;
    return String.fromCodePoint(printable ? byte : next++);
  });
}
