/** The language model of `palkit lm`, and the text that it reads, in its tokens. */
import { createHash } from 'node:crypto';
import { existsSync } from 'node:fs';
import { readFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { ConfigError } from '../config/configError.ts';
import type { LmExperiment } from '../config/lmSchema.ts';
import { locate } from '../config/locate.ts';
import { random } from '../config/random.ts';
import { writeFileAtomic, writeFolderAtomic } from '../config/writeFile.ts';
import { type Corpus, type CorpusFile, readCorpus } from '../data/corpus.ts';
import { feedForwardLayers } from '../ffn/config.ts';
import { feedForwardOf } from '../ffn/layers.ts';
import { feedForwardParameters } from '../ffn/parameters.ts';
import { sharedFrom } from '../ffn/wide.ts';
import { type DecoderConfig, parameterShapes } from '../llm/config.ts';
import { plainLlama } from '../llm/families.ts';
import { begunAs, initialize } from '../llm/initialize.ts';
import { ModelError } from '../llm/modelError.ts';
import { loadTokenizer, type Tokenizer, tokenizerFromJson } from '../llm/tokenizer.ts';
import { trainTokenizer } from '../llm/trainTokenizer.ts';
import { type FloatTensor, loadLlm, saveTokenizer } from '../llm/weights.ts';
import type { AudioLlm } from '../pal/audioLlm.ts';
import type { ParameterSpec } from '../tensor/parameters.ts';
import { initialParameters, RunError, type Watch } from './setup.ts';

/** Token ids one after the other; every file begins as the tokenizer begins a text, and ends in the end-of-text token. */
export interface TokenizedText {
  readonly tokenizer: Tokenizer;
  readonly training: Int32Array;
  readonly heldOut: Int32Array;
  /** UTF-8 bytes of the held-out files. */
  readonly heldOutBytes: number;
  readonly facts: TextFacts;
  /** Of the text and the tokenizer. */
  readonly hash: string;
}

/** What the corpus was, for the record. */
export interface TextFacts {
  readonly files: { readonly training: number; readonly heldOut: number };
  readonly characters: { readonly training: number; readonly heldOut: number };
  readonly skipped: Corpus['skipped'];
  readonly beyond: number;
  readonly copies: number;
  readonly repeatedCharacters: number;
}

const specialTokens = ['<bos>', '<eos>', '<pad>'];
const specialNames = { bos_token: '<bos>', eos_token: '<eos>', pad_token: '<pad>' };

/** A tokenizer learns no more from more text than this. */
const tokenizerCharacters = 4e6;

/**
 * Reads the corpus in the model's tokens. What was tokenised is kept in the corpus's cache, under a name that the files
 * and the tokenizer decide.
 * @param given the tokenizer of a model that is there already
 */
export async function tokenizedText(
  { corpus: options, llm }: Pick<LmExperiment, 'corpus' | 'llm'>,
  given: Tokenizer | undefined,
  watch: Watch,
): Promise<TokenizedText> {
  watch.note(`reading ${options.folders.join(', ')}`);
  const corpus = await readCorpus(options);
  const taken =
    given ??
    (llm.kind === 'new' && llm.tokenizer !== null ? await loadTokenizer(locate(llm.tokenizer)) : undefined);
  const facts: TextFacts = {
    files: { training: corpus.training.length, heldOut: corpus.heldOut.length },
    characters: { training: charactersOf(corpus.training), heldOut: charactersOf(corpus.heldOut) },
    skipped: corpus.skipped,
    beyond: corpus.beyond,
    copies: corpus.copies,
    repeatedCharacters: corpus.repeatedCharacters,
  };
  const heldOutBytes = corpus.heldOut.reduce((total, { text }) => total + Buffer.byteLength(text), 0);
  const hash = hashOf(corpus, taken, llm.kind === 'new' ? llm.vocabularySize : 0);
  const folder = join(options.cache, hash.slice(0, 16));
  if (!existsSync(folder)) {
    const tokenizer = taken ?? newTokenizer(corpus, llm.kind === 'new' ? llm.vocabularySize : 0);
    const files = [...corpus.training, ...corpus.heldOut];
    const progress = watch.progress('tokenising', files.length);
    const end = endOf(tokenizer);
    const ids = (part: readonly CorpusFile[], before: number) =>
      joined(
        part.map(({ path, text }, at) => {
          progress.update(before + at + 1);
          return Int32Array.from([...tokenizer.beginning, ...encoded(tokenizer, text, path), end]);
        }),
      );
    try {
      const [training, heldOut] = [ids(corpus.training, 0), ids(corpus.heldOut, corpus.training.length)];
      await writeFolderAtomic(folder, async (aside) => {
        await saveTokenizer(aside, tokenizer);
        await writeFileAtomic(join(aside, 'training.bin'), new Uint8Array(training.buffer));
        await writeFileAtomic(join(aside, 'held-out.bin'), new Uint8Array(heldOut.buffer));
      });
    } finally {
      progress.stop();
    }
  }
  const tokenizer = taken ?? (await loadTokenizer(folder));
  return {
    tokenizer,
    training: await readIds(join(folder, 'training.bin'), tokenizer),
    heldOut: await readIds(join(folder, 'held-out.bin'), tokenizer),
    heldOutBytes,
    facts,
    hash,
  };
}

/** @throws ModelError naming the file whose text has no tokens */
function encoded(tokenizer: Tokenizer, text: string, path: string): number[] {
  try {
    return tokenizer.encode(tokenizer.escapeSpecial(text));
  } catch (error) {
    throw error instanceof ModelError ? new ModelError(`${path}: ${error.message}`) : error;
  }
}

function joined(parts: readonly Int32Array[]): Int32Array {
  const all = new Int32Array(parts.reduce((total, { length }) => total + length, 0));
  let at = 0;
  for (const part of parts) {
    all.set(part, at);
    at += part.length;
  }
  return all;
}

/** @throws RunError for a file that is not what was written there */
async function readIds(path: string, { size }: Tokenizer): Promise<Int32Array> {
  const damaged = (reason: string) =>
    new RunError(`${path}: ${reason}: remove ${dirname(path)}, and the text is tokenised anew`);
  const { buffer, byteOffset, byteLength } = await readFile(path).catch((error: Error) => {
    throw damaged(error.message);
  });
  if (byteLength % 4 !== 0) throw damaged(`${byteLength} bytes are no token ids`);
  const ids = new Int32Array(buffer.slice(byteOffset, byteOffset + byteLength));
  const wrong = ids.find((id) => id < 0 || id >= size);
  if (wrong !== undefined) throw damaged(`token ${wrong} is none of the tokenizer's ${size}`);
  return ids;
}

function charactersOf(files: readonly CorpusFile[]): number {
  return files.reduce((total, { text }) => total + text.length, 0);
}

function hashOf(corpus: Corpus, taken: Tokenizer | undefined, vocabularySize: number): string {
  const hash = createHash('sha256').update(JSON.stringify([2, taken?.files ?? vocabularySize]));
  for (const part of [corpus.training, corpus.heldOut]) {
    hash.update(`${part.length} files`);
    for (const { text } of part) hash.update(text).update('\0');
  }
  return hash.digest('hex');
}

function newTokenizer(corpus: Corpus, vocabularySize: number): Tokenizer {
  const texts: string[] = [];
  let characters = 0;
  for (const { text } of corpus.training) {
    if (characters >= tokenizerCharacters) break;
    texts.push(text.slice(0, tokenizerCharacters - characters));
    characters += text.length;
  }
  const json = trainTokenizer(texts, { vocabularySize, specialTokens });
  return tokenizerFromJson(json, specialNames, 'the tokenizer trained on the corpus');
}

/**
 * The token that stands behind every file.
 * @throws ConfigError for a tokenizer that has none
 */
export function endOf({ eosTokenId, bosTokenId }: Tokenizer): number {
  const end = eosTokenId ?? bosTokenId;
  if (end === undefined)
    throw new ConfigError(
      'llm: its tokenizer has no end-of-text token (eos_token or bos_token in tokenizer_config.json): nothing can stand between files',
    );
  return end;
}

export interface TextModel {
  readonly model: AudioLlm;
  readonly parameters: Map<string, FloatTensor>;
  /** The model with the feed-forward layers that it had, where others took their place. */
  readonly dense: { readonly model: AudioLlm; readonly parameters: Map<string, FloatTensor> } | undefined;
}

/** A pretrained model as it is. */
export type Pretrained = Pick<
  Awaited<ReturnType<typeof loadLlm>>,
  'config' | 'parameters' | 'tokenizer' | 'chatTemplate'
>;

/** Loads the model that a run begins with; a new one is not there yet. */
export async function pretrained({ llm }: Pick<LmExperiment, 'llm'>): Promise<Pretrained | undefined> {
  return llm.kind === 'new' ? undefined : loadLlm(locate(llm.from));
}

/** The model, new or converted. New weights are decided by the seed and their names alone. */
export function textModel(
  { llm, seed }: Pick<LmExperiment, 'llm' | 'seed'>,
  { tokenizer, training }: Pick<TokenizedText, 'tokenizer' | 'training'>,
  given: Pretrained | undefined,
): TextModel {
  const config = given?.config ?? newConfig(llm as NewLlm, tokenizer);
  const ffn = feedForwardLayers(llm.ffn, config);
  const model = modelOf(config, ffn);
  const frequencies = () => counted(training);
  if (given !== undefined) {
    const parameters = initialParameters(model, given.parameters, seed, frequencies);
    if (ffn.every(({ kind }) => kind === 'dense')) return { model, parameters, dense: undefined };
    const before = modelOf(
      config,
      ffn.map(() => ({ kind: 'dense' })),
    );
    return { model, parameters, dense: { model: before, parameters: new Map(given.parameters) } };
  }
  const deviation = (llm as NewLlm).initialDeviation;
  const begin = (specs: Iterable<readonly [string, ParameterSpec]>) =>
    initialize(new Map(specs), (name) => random(seed, 'initial', name));
  const own = begin(
    [...parameterShapes(config)].map(([name, shape]) => [
      name,
      begunAs(name, shape, config.layers, deviation),
    ]),
  );
  const parameters = initialParameters(model, own, seed, frequencies);
  // Matrices of a feed-forward layer begin alike, whatever its kind: a comparison is to compare nothing else.
  const matrices = [...feedForwardParameters(ffn, config)].flatMap(([name, { shape }]) =>
    /\.(gate|up|down)_proj\.weight$/.test(name) && sharedFrom(ffn, own, name) === undefined
      ? [[name, begunAs(name, shape, config.layers, deviation)] as const]
      : [],
  );
  return { model, parameters: new Map([...parameters, ...begin(matrices)]), dense: undefined };
}

type NewLlm = Extract<LmExperiment['llm'], { kind: 'new' }>;

function newConfig(llm: NewLlm, tokenizer: Tokenizer): DecoderConfig {
  const { hiddenSize, intermediateSize, layers, heads, keyValueHeads, tieWordEmbeddings } = llm;
  return {
    ...plainLlama,
    hiddenSize,
    intermediateSize,
    layers,
    heads,
    keyValueHeads: keyValueHeads ?? heads,
    headWidth: hiddenSize / heads,
    vocabularySize: tokenizer.size,
    tieWordEmbeddings,
    maxPositions: 4096,
    bosTokenId: tokenizer.bosTokenId ?? endOf(tokenizer),
    eosTokenIds: [endOf(tokenizer)],
    padTokenId: tokenizer.padTokenId ?? null,
  };
}

function modelOf(llm: DecoderConfig, ffn: AudioLlm['ffn'] & {}): AudioLlm {
  return {
    llm,
    ffn,
    feedForward: feedForwardOf(ffn),
    streams: [],
    integration: { positions: 'reserve', attentionOnlyVisibleToPrefix: true },
    slot: 0,
  };
}

function counted(ids: Int32Array): Map<number, number> {
  const counts = new Map<number, number>();
  for (const id of ids) counts.set(id, (counts.get(id) ?? 0) + 1);
  return counts;
}
