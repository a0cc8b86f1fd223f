/** A small random audio-LLM for the tests. */
import { random } from '../../src/config/random.ts';
import { denseFeedForward } from '../../src/ffn/feedForward.ts';
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

export function audioLlm(streams: readonly Stream[], integration: Partial<IntegrationConfig> = {}): AudioLlm {
  return {
    llm,
    feedForward: denseFeedForward,
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
  const own = initialize(streamParameters(model), (name) => random(5, name));
  for (const [name, tensor] of own) {
    // Norm weights that start at one would hide a missing multiplication.
    if (name.includes('layernorm'))
      for (let at = 0; at < tensor.data.length; at++) tensor.data[at] = 1 + 0.1 * (at % 3);
  }
  return new Map([...llmParameters(model.llm), ...own]);
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
