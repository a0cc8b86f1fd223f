/** The tokenizer inside a GGUF file, in the words of Hugging Face: the content of tokenizer.json and its config. */
import type { GgufValue } from './ggufValues.ts';
import { ModelError } from './modelError.ts';
import type { TokenizerFiles } from './tokenizer.ts';
import { maximumTokens } from './tokenizerJson.ts';
import {
  digitPattern,
  fallbackWordPatterns,
  gpt2WordPattern,
  llama3WordPattern,
  qwen2WordPattern,
} from './wordPatterns.ts';

/** Kinds of tokens (llama.cpp's llama_token_type). */
const unknownKind = 2;
const controlKind = 3;
const userKind = 4;

const split = (pattern: string) => ({
  type: 'Split',
  pattern: { Regex: pattern },
  behavior: 'Isolated',
  invert: false,
});
const bytes = { type: 'ByteLevel', add_prefix_space: false, trim_offsets: true, use_regex: false };

interface WordSplitting {
  readonly splits: readonly string[];
  readonly normalizer?: string;
  /** A word that is a token is that token, whatever its merges say. */
  readonly ignoreMerges?: boolean;
  /** A sequence begins with the beginning-of-text token where the file does not say. */
  readonly addsBos?: boolean;
}
const gpt2: WordSplitting = { splits: [gpt2WordPattern] };
const llama3: WordSplitting = { splits: [llama3WordPattern], ignoreMerges: true, addsBos: true };
const qwen2: WordSplitting = { splits: [qwen2WordPattern], normalizer: 'NFC' };

/** How text is cut into words before bytes are merged, by `tokenizer.ggml.pre` (llama.cpp's llama-vocab.cpp). */
const wordSplittings: ReadonlyMap<string, WordSplitting> = new Map([
  // Files made before there was the key have no other.
  ['default', { splits: fallbackWordPatterns }],
  ['gpt-2', gpt2],
  ['smollm', { splits: [digitPattern, gpt2WordPattern] }],
  ['llama-bpe', llama3],
  ['llama3', llama3],
  ['llama-v3', llama3],
  ['qwen2', qwen2],
  ['deepseek-r1-qwen', qwen2],
]);

/**
 * The tokenizer as the two files that a model folder holds; a chat template stands in the second, as
 * `chat_template`.
 * @throws ModelError for a kind of tokenizer, or of cutting words, that is not known
 */
export function ggufTokenizerFiles(metadata: ReadonlyMap<string, GgufValue>, path: string): TokenizerFiles {
  const vocabulary = readVocabulary(metadata, path);
  const { tokens, kinds } = vocabulary;
  const model = metadata.get('tokenizer.ggml.model');
  const parts =
    model === 'gpt2'
      ? byteLevelParts(vocabulary, metadata, path)
      : model === 'llama'
        ? sentencePieceParts(vocabulary, metadata, path)
        : undefined;
  if (parts === undefined) {
    const given = JSON.stringify(String(model));
    throw new ModelError(`${path}: tokenizer.ggml.model is ${given}; "gpt2" and "llama" can be read`);
  }
  const added = tokens.flatMap((content, id) => {
    const kind = kinds[id];
    if (kind !== controlKind && kind !== userKind && kind !== unknownKind) return [];
    const flags = { single_word: false, lstrip: false, rstrip: false, normalized: false };
    return [{ id, content, ...flags, special: kind !== userKind }];
  });
  const tokenizer = {
    version: '1.0',
    truncation: null,
    padding: null,
    added_tokens: added,
    post_processor: null,
    ...parts,
  };
  return { tokenizer, tokenizerConfig: tokenizerConfig(tokens, metadata, path) };
}

interface Vocabulary {
  readonly tokens: readonly string[];
  readonly kinds: readonly number[];
  readonly idOf: ReadonlyMap<string, number>;
}

function readVocabulary(metadata: ReadonlyMap<string, GgufValue>, path: string): Vocabulary {
  const tokens = list(metadata, 'tokens', isText, path);
  if (tokens === undefined) {
    throw new ModelError(`${path}: there is no tokenizer in it ("tokenizer.ggml.tokens" is missing)`);
  }
  if (tokens.length > maximumTokens) {
    throw new ModelError(`${path}: ${tokens.length} tokens, but at most ${maximumTokens} are possible here`);
  }
  const kinds = list(metadata, 'token_type', isNumber, path) ?? [];
  if (kinds.length !== 0 && kinds.length !== tokens.length) {
    throw new ModelError(
      `${path}: ${tokens.length} tokens, but ${kinds.length} elements in tokenizer.ggml.token_type`,
    );
  }
  const idOf = new Map<string, number>();
  for (const [id, token] of tokens.entries()) {
    const other = idOf.get(token);
    if (other !== undefined) {
      throw new ModelError(`${path}: the tokens ${other} and ${id} are both ${JSON.stringify(token)}`);
    }
    idOf.set(token, id);
  }
  return { tokens, kinds, idOf };
}

const isText = (value: GgufValue): value is string => typeof value === 'string';
const isNumber = (value: GgufValue): value is number => typeof value === 'number';

/** An array under `tokenizer.ggml`; undefined where there is none. */
function list<T extends GgufValue>(
  metadata: ReadonlyMap<string, GgufValue>,
  name: string,
  is: (value: GgufValue) => value is T,
  path: string,
): readonly T[] | undefined {
  const found = metadata.get(`tokenizer.ggml.${name}`);
  if (found === undefined) return undefined;
  if (Array.isArray(found) && found.every(is)) return found;
  throw new ModelError(
    `${path}: "tokenizer.ggml.${name}" is not a list of ${is === isText ? 'texts' : 'numbers'}`,
  );
}

/** Byte-level BPE, as GPT-2 has it. */
function byteLevelParts(
  { tokens }: Vocabulary,
  metadata: ReadonlyMap<string, GgufValue>,
  path: string,
): Record<string, unknown> {
  const merges = list(metadata, 'merges', isText, path);
  if (merges === undefined) throw new ModelError(`${path}: "tokenizer.ggml.merges" is missing`);
  const odd = merges.find((merge) => !/^[^ ]+ [^ ]+$/.test(merge));
  if (odd !== undefined)
    throw new ModelError(`${path}: the merge ${JSON.stringify(odd)} is not of two tokens`);
  const name = metadata.get('tokenizer.ggml.pre') ?? 'default';
  const splitting = wordSplittings.get(String(name));
  if (splitting === undefined) {
    throw new ModelError(
      `${path}: tokenizer.ggml.pre is ${JSON.stringify(String(name))}, and how it cuts words is not known here; known are ` +
        [...wordSplittings.keys()].join(', '),
    );
  }
  return {
    normalizer: splitting.normalizer === undefined ? null : { type: splitting.normalizer },
    pre_tokenizer: { type: 'Sequence', pretokenizers: [...splitting.splits.map(split), bytes] },
    decoder: { ...bytes, use_regex: true },
    model: {
      ...bpe(tokens),
      ignore_merges: splitting.ignoreMerges ?? false,
      merges: merges.map((merge) => merge.split(' ')),
    },
  };
}

const bpe = (tokens: readonly string[]) => ({
  type: 'BPE',
  dropout: null,
  unk_token: null as string | null,
  continuing_subword_prefix: null,
  end_of_word_suffix: null,
  fuse_unk: false,
  byte_fallback: false,
  vocab: Object.fromEntries(tokens.map((token, id) => [token, id])),
});

/** SentencePiece's BPE, as Llama 2 and Mistral have it: whole words with "▁" for the space, bytes for the rest. */
function sentencePieceParts(
  vocabulary: Vocabulary,
  metadata: ReadonlyMap<string, GgufValue>,
  path: string,
): Record<string, unknown> {
  const { tokens } = vocabulary;
  const scores = list(metadata, 'scores', isNumber, path);
  if (scores?.length !== tokens.length) {
    throw new ModelError(
      `${path}: ${tokens.length} tokens, but ${scores?.length ?? 'no'} tokenizer.ggml.scores`,
    );
  }
  const prefix = metadata.get('tokenizer.ggml.add_space_prefix') ?? true;
  const unknown =
    specialToken('unknown', tokens, metadata, path) ?? tokens[vocabulary.kinds.indexOf(unknownKind)];
  const space = { type: 'Replace', pattern: { String: ' ' }, content: '▁' };
  const decoders: Record<string, unknown>[] = [
    { type: 'Replace', pattern: { String: '▁' }, content: ' ' },
    { type: 'ByteFallback' },
    { type: 'Fuse' },
  ];
  if (prefix) decoders.push({ type: 'Strip', content: ' ', start: 1, stop: 0 });
  return {
    normalizer: {
      type: 'Sequence',
      normalizers: prefix ? [{ type: 'Prepend', prepend: '▁' }, space] : [space],
    },
    pre_tokenizer: null,
    decoder: { type: 'Sequence', decoders },
    model: {
      ...bpe(tokens),
      unk_token: unknown ?? null,
      fuse_unk: true,
      byte_fallback: true,
      merges: mergesByScore(vocabulary, scores, path),
    },
  };
}

/** Characters of a SentencePiece token, squared and summed up: what finding its merges costs. */
const maximumWork = 2 ** 28;

/**
 * SentencePiece knows no merges: of all neighbours that make a token it joins those of the highest score. The same
 * order as a list: every way to make every token of two others, by falling score, longer left sides first.
 */
function mergesByScore(
  { tokens, idOf }: Vocabulary,
  scores: readonly number[],
  path: string,
): [string, string][] {
  const work = tokens.reduce((total, token) => total + token.length ** 2, 0);
  if (work > maximumWork) throw new ModelError(`${path}: the tokens are too long to be those of a tokenizer`);
  const merges: { left: string; right: string; score: number }[] = [];
  for (const [id, token] of tokens.entries()) {
    for (let cut = 1; cut < token.length; cut++) {
      const [left, right] = [token.slice(0, cut), token.slice(cut)];
      if (idOf.has(left) && idOf.has(right)) merges.push({ left, right, score: scores[id] as number });
    }
  }
  merges.sort(
    (a, b) => b.score - a.score || b.left.length - a.left.length || b.right.length - a.right.length,
  );
  return merges.map(({ left, right }) => [left, right]);
}

function specialToken(
  name: string,
  tokens: readonly string[],
  metadata: ReadonlyMap<string, GgufValue>,
  path: string,
): string | undefined {
  const key = `tokenizer.ggml.${name}_token_id`;
  const id = metadata.get(key);
  if (id === undefined) return undefined;
  const token = typeof id === 'number' ? tokens[id] : undefined;
  if (token === undefined) throw new ModelError(`${path}: "${key}" is ${id}, which no token has`);
  return token;
}

/** What llama.cpp does where a file does not say: SentencePiece and Llama 3 begin with the beginning-of-text token. */
function addsBos(metadata: ReadonlyMap<string, GgufValue>): boolean {
  if (metadata.get('tokenizer.ggml.model') === 'llama') return true;
  return wordSplittings.get(String(metadata.get('tokenizer.ggml.pre')))?.addsBos ?? false;
}

/** The content of tokenizer_config.json. */
function tokenizerConfig(
  tokens: readonly string[],
  metadata: ReadonlyMap<string, GgufValue>,
  path: string,
): Record<string, unknown> {
  const special = (name: string) => specialToken(name, tokens, metadata, path);
  const flag = (name: string) => {
    const value = metadata.get(`tokenizer.ggml.${name}`);
    return typeof value === 'boolean' ? value : undefined;
  };
  const template = metadata.get('tokenizer.chat_template');
  if (template !== undefined && typeof template !== 'string') {
    throw new ModelError(`${path}: "tokenizer.chat_template" is not a text`);
  }
  const config = {
    bos_token: special('bos'),
    eos_token: special('eos'),
    unk_token: special('unknown'),
    pad_token: special('padding'),
    add_bos_token: flag('add_bos_token') ?? (special('bos') === undefined ? undefined : addsBos(metadata)),
    add_eos_token: flag('add_eos_token'),
    clean_up_tokenization_spaces: false,
    chat_template: template,
  };
  return Object.fromEntries(Object.entries(config).filter(([, value]) => value !== undefined));
}
