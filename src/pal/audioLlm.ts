/**
 * The audio-LLM: an LLM plus streams (PAL, arXiv 2506.10423). Prefix streams are rows of the sequence from their
 * first layer on (PLITS; delayed when that is above 0); attention-only streams give keys and values to the text
 * rows and nothing else (LAL).
 *
 * Shape suffixes: B batch, T text rows, R rows of a layer, D hidden, N rows with a loss.
 */
import type { FeedForwardLayer } from '../ffn/config.ts';
import type { FeedForwardOutput, FeedForwardRows, FeedForwards } from '../ffn/feedForward.ts';
import { audioRowToken } from '../ffn/hashTable.ts';
import type { DecoderConfig } from '../llm/config.ts';
import {
  concatKeysValues,
  decoderLayer,
  embed,
  inputNorm,
  type KeysValues,
  keysValuesOf,
  masked,
} from '../llm/decoder.ts';
import type { Lora } from '../llm/lora.ts';
import { rotaryAt } from '../llm/rotary.ts';
import {
  add,
  cast,
  concat,
  constant,
  expand,
  filled,
  less,
  reshape,
  rmsNorm,
  slice,
} from '../tensor/operations.ts';
import { type ParameterSpec, type Parameters, parameter } from '../tensor/parameters.ts';
import type { Value, ValueType } from '../tensor/program.ts';
import { float32, int32, type Tensor } from '../tensor/tensor.ts';
import { scope } from '../tensor/trace.ts';
import { type ConnectedAudio, connect, connectorParameters } from './connectors.ts';
import { biasOf, type LayerLayout, layoutOf, type Segment } from './layout.ts';
import { type IntegrationConfig, layersOf, type Stream } from './streams.ts';

export interface AudioLlm {
  readonly llm: DecoderConfig;
  readonly feedForward: FeedForwards;
  /** What each layer's feed-forward is; all dense when left out. */
  readonly ffn?: readonly FeedForwardLayer[] | undefined;
  /** Low-rank adapters on the LLM's projections; none when left out. */
  readonly lora?: Lora | undefined;
  readonly streams: readonly Stream[];
  readonly integration: IntegrationConfig;
  /** Text rows in front of the audio: the beginning-of-text token and the system prompt. */
  readonly slot: number;
}

/** Names, shapes and initial values of everything that the streams add to the LLM. */
export function streamParameters({ llm, streams }: AudioLlm): Map<string, ParameterSpec> {
  const specs = new Map<string, ParameterSpec>();
  for (const stream of streams) {
    for (const [name, spec] of connectorParameters(stream, llm.hiddenSize, llm.layers)) specs.set(name, spec);
    if (stream.integration.mode !== 'attention-only') continue;
    const keyWidth = llm.keyValueHeads * llm.headWidth;
    for (const layer of layersOf(stream, llm.layers)) {
      const prefix = ownPrefix(stream, layer);
      if (stream.integration.audioNorm === 'own') {
        specs.set(`${prefix}.audio_layernorm.weight`, { shape: [llm.hiddenSize], initial: 'ones' });
      }
      if (stream.integration.keyValueProjection === 'llm') continue;
      for (const name of ['k_proj', 'v_proj']) {
        const deviation = llm.hiddenSize ** -0.5;
        specs.set(`${prefix}.${name}.weight`, {
          shape: [keyWidth, llm.hiddenSize],
          initial: 'normal',
          deviation,
        });
        if (llm.biases.queryKeyValue) {
          specs.set(`${prefix}.${name}.bias`, { shape: [keyWidth], initial: 'zeros' });
        }
      }
    }
  }
  return specs;
}

/** Parameters that start as a copy of one of the LLM's: own name -> the LLM's. */
export function copiedParameters({ llm, streams }: AudioLlm): Map<string, string> {
  const copies = new Map<string, string>();
  for (const stream of streams) {
    if (stream.integration.mode !== 'attention-only' || stream.integration.keyValueProjection === 'llm')
      continue;
    for (const layer of layersOf(stream, llm.layers)) {
      const parts = llm.biases.queryKeyValue ? ['weight', 'bias'] : ['weight'];
      for (const name of ['k_proj', 'v_proj'].flatMap((name) => parts.map((part) => `${name}.${part}`))) {
        copies.set(`${ownPrefix(stream, layer)}.${name}`, `model.layers.${layer}.self_attn.${name}`);
      }
    }
  }
  return copies;
}

function ownPrefix(stream: Stream, layer: number): string {
  return `connector.${stream.name}.layers.${layer}`;
}

/** The inputs that carry a stream's audio. */
export function audioInputNames(stream: Stream): { frames: string; valid: string } {
  return { frames: `audio.${stream.name}.frames`, valid: `audio.${stream.name}.valid` };
}

/** Types of the audio inputs for a batch. */
export function audioInputs(streams: readonly Stream[], batch: number): Record<string, ValueType> {
  return Object.fromEntries(
    streams.flatMap((stream) => {
      const { frames, valid } = audioInputNames(stream);
      return [
        [frames, { dtype: 'float32', shape: [batch, stream.frames, stream.width] }],
        [valid, { dtype: 'float32', shape: [batch, stream.frames] }],
      ] satisfies [string, ValueType][];
    }),
  );
}

export interface ForwardPass {
  /** Hidden states of the text rows after the last layer, [B, T, D]. */
  readonly hiddenBTD: Value;
  /** The same after every layer. */
  readonly layersBTD: readonly Value[];
  /** What each layer attended to: [attention-only audio; prefix audio; text]. */
  readonly keysValues: readonly KeysValues[];
  /** 0 or `masked` per audio key of each layer, [B, 1, 1, keys]; undefined where a layer has no audio. */
  readonly audioBias: readonly (Value | undefined)[];
  readonly layout: readonly LayerLayout[];
  /** What each layer's feed-forward gave beside its rows. */
  readonly feedForward: readonly Omit<FeedForwardOutput, 'y'>[];
}

/**
 * The forward pass over [B, T] token ids, padded on the right. Without streams it is the bare LLM.
 * @param inputs the audio inputs by the names of `audioInputNames`
 * @param validBT 1 for a real token, 0 for padding: asked by feed-forward layers that leave it out
 */
export function forward(
  model: AudioLlm,
  parameters: Parameters,
  idsBT: Value,
  inputs: Readonly<Record<string, Value>>,
  validBT?: () => Value,
): ForwardPass {
  const audio = new Map(
    model.streams.map((stream) => {
      const { frames, valid } = audioInputNames(stream);
      return [stream, connect(stream, parameters, inputs[frames] as Value, inputs[valid] as Value)];
    }),
  );
  return forwardFrom(model, parameters, idsBT, audio, validBT);
}

/** The forward pass over [B, T] token ids and what the connectors made of the audio. */
export function forwardFrom(
  model: AudioLlm,
  parameters: Parameters,
  idsBT: Value,
  audio: ReadonlyMap<Stream, ConnectedAudio>,
  validBT?: () => Value,
): ForwardPass {
  const { llm, feedForward, streams, integration, slot } = model;
  const [batch, textRows] = idsBT.shape as [number, number];
  const layout = layoutOf({ layerCount: llm.layers, streams, integration, textRows, slot });
  const connected = (segment: Segment) => audio.get(segment.stream as Stream) as ConnectedAudio;
  const prefixRows = new Map<Stream, Value>();
  const layersBTD: Value[] = [];
  const keysValues: KeysValues[] = [];
  const audioBias: (Value | undefined)[] = [];
  const feedForwards: Omit<FeedForwardOutput, 'y'>[] = [];
  let textBTD = embed(parameters, idsBT);

  for (const [layer, { external, rows }] of layout.entries()) {
    const prefixes = rows.slice(0, -1);
    const hiddenBRD = concat(
      [
        ...prefixes.map((segment) => {
          const stream = segment.stream as Stream;
          return prefixRows.get(stream) ?? connected(segment).tokensBAD(layer);
        }),
        textBTD,
      ],
      1,
    );
    const audioSegments = [...external, ...prefixes];
    const bias = scope(`layers.${layer}.visibility`, () => {
      const own = layout[layer] as LayerLayout;
      const staticBias = constant(biasTensor(own, slot, integration, llm.windows[layer]));
      if (audioSegments.length === 0) return { all: staticBias, audio: undefined };
      const pieces = audioSegments.map((segment) => connected(segment).biasB11A);
      const audioOnly = concat(pieces, -1);
      const padded = concat([audioOnly, filled('float32', [batch, 1, 1, textRows], 0)], -1);
      return { all: add(staticBias, padded), audio: audioOnly };
    });
    const result = decoderLayer(llm, parameters, layer, hiddenBRD, {
      rotary: rotaryAt(
        llm,
        rows.flatMap((segment) => segment.positions ?? []),
      ),
      bias: bias.all,
      feedForward,
      rows: () => feedForwardRows(llm, prefixes, connected, idsBT, validBT),
      attendTo: (own) =>
        concatKeysValues([
          ...external.map((segment) =>
            scope('audio', () => injected(model, parameters, layer, segment, connected(segment))),
          ),
          own,
        ]),
    });
    keysValues.push(result.keysValues);
    audioBias.push(bias.audio);
    feedForwards.push(result.feedForward);
    let start = 0;
    for (const segment of rows) {
      const part = slice(result.hiddenBTD, 1, start, start + segment.rows);
      if (segment.stream === undefined) textBTD = part;
      else prefixRows.set(segment.stream, part);
      start += segment.rows;
    }
    layersBTD.push(textBTD);
  }
  return { hiddenBTD: textBTD, layersBTD, keysValues, audioBias, layout, feedForward: feedForwards };
}

/** What a layer that chooses by token, or leaves out padding, is told of its rows: prefix audio, then text. */
function feedForwardRows(
  { vocabularySize }: DecoderConfig,
  prefixes: readonly Segment[],
  connected: (segment: Segment) => ConnectedAudio,
  idsBT: Value,
  validBT: (() => Value) | undefined,
): FeedForwardRows {
  const [batch, textRows] = idsBT.shape as [number, number];
  const audioTokens = prefixes.map(({ rows }) => {
    const ids = Array.from({ length: rows }, (_, row) => audioRowToken(vocabularySize, row));
    return expand(constant(int32([1, rows], ids)), [batch, rows]);
  });
  const tokensBT = concat([...audioTokens, idsBT], 1);
  if (prefixes.length === 0) return { tokensBT, validBT: validBT?.() };
  const audioValid = prefixes.map((segment) =>
    cast(less(masked / 2, reshape(connected(segment).biasB11A, [batch, segment.rows])), 'float32'),
  );
  const textValid = validBT?.() ?? filled('float32', [batch, textRows], 1);
  const all = tokensBT.shape[1] as number;
  const kinds = Array.from({ length: all }, (_, row) => Number(row < all - textRows));
  return {
    tokensBT,
    validBT: concat([...audioValid, textValid], 1),
    audioBT: expand(constant(float32([1, all], kinds)), [batch, all]),
  };
}

/** Keys and values of an attention-only stream in one layer. */
function injected(
  { llm }: AudioLlm,
  parameters: Parameters,
  layer: number,
  segment: Segment,
  audio: ConnectedAudio,
): KeysValues {
  const stream = segment.stream as Stream;
  const { integration } = stream;
  if (integration.mode !== 'attention-only') throw new Error(`stream "${stream.name}" is not attention-only`);
  const tokens = audio.tokensBAD(layer);
  const normed = {
    layer: () => inputNorm(llm, parameters, layer, tokens),
    own: () =>
      rmsNorm(
        tokens,
        parameter(parameters, `${ownPrefix(stream, layer)}.audio_layernorm.weight`),
        llm.rmsNormEpsilon,
      ),
    none: () => tokens,
  }[integration.audioNorm]();
  const rotary = segment.positions === undefined ? undefined : rotaryAt(llm, segment.positions);
  const weights = integration.keyValueProjection === 'separate' ? ownPrefix(stream, layer) : undefined;
  return keysValuesOf(llm, parameters, layer, normed, rotary, weights);
}

function biasTensor(
  layout: LayerLayout,
  slot: number,
  integration: IntegrationConfig,
  window: number | null | undefined,
): Tensor {
  const count = (segments: readonly Segment[]) =>
    segments.reduce((total, segment) => total + segment.rows, 0);
  const rows = count(layout.rows);
  return float32([1, 1, rows, count(layout.external) + rows], biasOf(layout, slot, integration, window));
}
