/** A small random audio-LLM for the tests. */
import { random } from '../../src/config/random.ts';
import { feedForwardLayers } from '../../src/ffn/config.ts';
import { hashTable } from '../../src/ffn/hashTable.ts';
import { feedForwardOf } from '../../src/ffn/layers.ts';
import { feedForwardParameters, hashTableName, isReplaced } from '../../src/ffn/parameters.ts';
import { type DecoderConfig, parameterShapes } from '../../src/llm/config.ts';
import { plainLlama } from '../../src/llm/families.ts';
import { initialize } from '../../src/llm/initialize.ts';
import { type AudioLlm, audioInputNames, streamParameters } from '../../src/pal/audioLlm.ts';
import type { AttentionOnlyIntegration, IntegrationConfig, Stream } from '../../src/pal/streams.ts';
import { float32, int32, sizeOf, type Tensor } from '../../src/tensor/tensor.ts';

export const llm: DecoderConfig = {
  ...plainLlama,
  hiddenSize: 16,
  intermediateSize: 24,
  layers: 4,
  heads: 4,
  keyValueHeads: 2,
  headWidth: 4,
  vocabularySize: 23,
  tieWordEmbeddings: true,
  maxPositions: 64,
  bosTokenId: 0,
  eosTokenIds: [1],
  padTokenId: null,
};

export const attentionOnly: AttentionOnlyIntegration = {
  mode: 'attention-only',
  startLayer: 2,
  audioNorm: 'layer',
  audioVisibleTo: 'all',
  rope: 'sequential',
  keyValueProjection: 'llm',
};

export function stream(name: string, over: Partial<Stream> = {}): Stream {
  return {
    name,
    encoder: name,
    frames: 5,
    width: 6,
    connector: { kind: 'mlp', hidden: 8, perLayer: true },
    integration: attentionOnly,
    ...over,
  };
}

/** @param ffn feed-forward layers; all are dense when left out */
export function audioLlm(
  streams: readonly Stream[],
  integration: Partial<IntegrationConfig> = {},
  ffn: Asked = { kind: 'dense' },
): AudioLlm {
  const layers = feedForwardLayers(ffn, llm);
  return {
    llm,
    feedForward: feedForwardOf(layers),
    ffn: layers,
    streams,
    integration: { positions: 'reserve', attentionOnlyVisibleToPrefix: true, ...integration },
    slot: 2,
  };
}

/** Random parameters of the bare LLM. */
export function llmParameters(config = llm): Map<string, Tensor & { dtype: 'float32' }> {
  return new Map(
    [...parameterShapes(config)].map(([name, shape]) => {
      const draw = random(3, name);
      const norm = name.includes('norm');
      const deviation = name.includes('embed') ? 1 : (shape.at(-1) as number) ** -0.5;
      const values = Float32Array.from({ length: sizeOf(shape) }, () =>
        norm ? 1 + 0.2 * draw.normal() : deviation * draw.normal(),
      );
      return [name, float32(shape, values)];
    }),
  );
}

export function allParameters(model: AudioLlm): Map<string, Tensor & { dtype: 'float32' }> {
  const { ffn = [] } = model;
  const specs = new Map([...streamParameters(model), ...feedForwardParameters(ffn, model.llm)]);
  const own = initialize(specs, (name) => random(5, name));
  for (const [name, tensor] of own) {
    // Norm weights that start at one would hide a missing multiplication.
    if (name.includes('layernorm'))
      for (let at = 0; at < tensor.data.length; at++) tensor.data[at] = 1 + 0.1 * (at % 3);
  }
  const tables = ffn.flatMap((layer, at) =>
    layer.kind === 'sparse' && layer.select === 'hash'
      ? [[hashTableName(at), hashTable(layer, model.llm.vocabularySize, new Map(), random(at))] as const]
      : [],
  );
  const ofLlm = [...llmParameters(model.llm)].filter(([name]) => !isReplaced(ffn, name));
  return new Map([...ofLlm, ...own, ...tables]);
}

export function audioFeeds(streams: readonly Stream[], batch: number, padding = 0): Record<string, Tensor> {
  return Object.fromEntries(
    streams.flatMap((one) => {
      const draw = random(9, one.name);
      const { frames, valid } = audioInputNames(one);
      const values = Array.from({ length: batch * one.frames * one.width }, () => draw.normal());
      const real = Array.from({ length: batch * one.frames }, (_, at) =>
        at % one.frames < one.frames - padding ? 1 : 0,
      );
      return [
        [frames, float32([batch, one.frames, one.width], values)],
        [valid, float32([batch, one.frames], real)],
      ];
    }),
  );
}

export function ids(batch: number, rows: number): Tensor & { dtype: 'int32' } {
  const draw = random(13);
  return int32(
    [batch, rows],
    Array.from({ length: batch * rows }, () => draw.integer(llm.vocabularySize)),
  );
}

const blocks = { kind: 'sparse', memory: null, capacityFactor: null } as const;
const router = { balanceLoss: 0.1, zLoss: 0.01 };

/** What `llm.ffn` can say. */
export type Asked = Parameters<typeof feedForwardLayers>[0];

/** One of each kind of feed-forward layer beside the dense one; the LLM has 24 hidden units. */
export const feedForwardKinds: Readonly<Record<string, Asked>> = {
  moc: { kind: 'moc', select: 'gate', active: 7, recompute: false },
  'moc, structured': { kind: 'moc', select: 'structured', active: null, recompute: true },
  switch: { ...blocks, select: 'switch', blockSize: 6, active: 1, ...router },
  topk: { ...blocks, memory: 32, select: 'topk', blockSize: 4, active: 3, normalize: 'chosen', ...router },
  hash: { ...blocks, select: 'hash', blockSize: 4, active: 2, balance: 'frequency' },
  'avg-k': { ...blocks, select: 'avg-k', blockSize: 4, active: 2, gate: 'indicator' },
  'vanilla-memory': {
    ...blocks,
    select: 'vanilla-memory',
    blockSize: 1,
    active: 6,
    aggregate: 'mean',
    gate: 'indicator',
  },
  pkm: {
    ...blocks,
    memory: 36,
    select: 'pkm',
    blockSize: 1,
    active: 6,
    heads: 2,
    queryWidth: 4,
    gate: 'softmax',
  },
  'lowrank-memory': {
    ...blocks,
    select: 'lowrank-memory',
    blockSize: 2,
    active: 4,
    rank: 3,
    gate: 'sigmoid',
  },
  wide: { kind: 'wide', width: 40, groups: 2, tie: 'cycle', from: null },
  'wide and none': [
    { kind: 'wide', layers: '0..1', width: 'all', groups: 1, tie: 'sequence', from: null },
    { kind: 'none', layers: '2..2' },
  ],
};
