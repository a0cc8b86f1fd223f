/**
 * Token-by-token decoding with a key-value cache.
 *
 * The cache of a layer is [context rows; text slots]: context rows are keys that are there from the beginning (an
 * audio-LLM's audio), text slots are written one a step. Shape suffixes: B batch, K key-value heads, S cache rows,
 * H head width, V vocabulary.
 */
import type { Random } from '../config/random.ts';
import { type DeviceTensor, type Engine, type Feed, isDeviceTensor, plain } from '../engine/engine.ts';
import type { FeedForward } from '../ffn/feedForward.ts';
import {
  add,
  cast,
  constant,
  expand,
  filled,
  less,
  pad,
  reshape,
  scatterElements,
  where,
} from '../tensor/operations.ts';
import { frozen } from '../tensor/parameters.ts';
import type { Program, Value, ValueType } from '../tensor/program.ts';
import { int32, type Tensor } from '../tensor/tensor.ts';
import { trace } from '../tensor/trace.ts';
import type { DecoderConfig } from './config.ts';
import { decoderLayer, embed, logits, masked } from './decoder.ts';
import { rotaryFor } from './rotary.ts';

export interface CacheLayout {
  readonly batch: number;
  /** Text tokens that fit: the prompt and what is generated. */
  readonly textSlots: number;
  /** Text tokens in front of the context: the others' positions are moved behind it. */
  readonly slot: number;
  readonly layers: readonly {
    /** The position of each context row; null: it has none, and no window hides it. */
    readonly context: readonly (number | null)[];
    /** How far text positions are moved. */
    readonly textOffset: number;
  }[];
}

export const cacheNames = (layer: number) => ({
  keys: `keys.${layer}`,
  values: `values.${layer}`,
  bias: `context.${layer}`,
});

/** The types of a cache's tensors by name; the context's bias [B, 1, 1, rows] exists where there is context. */
export function cacheTypes(
  config: DecoderConfig,
  { batch, textSlots, layers }: CacheLayout,
): Record<string, ValueType> {
  return Object.fromEntries(
    layers.flatMap(({ context }, layer): [string, ValueType][] => {
      const names = cacheNames(layer);
      const shape = [batch, config.keyValueHeads, context.length + textSlots, config.headWidth];
      const cache: [string, ValueType][] = [
        [names.keys, { dtype: 'float32', shape }],
        [names.values, { dtype: 'float32', shape }],
      ];
      if (context.length > 0)
        cache.push([names.bias, { dtype: 'float32', shape: [batch, 1, 1, context.length] }]);
      return cache;
    }),
  );
}

/**
 * One step for every sequence: takes the newest token and the slot it stands in, writes its keys and values into
 * the cache, and gives the logits of the next token. Engines that compute in place write over the cache that is fed.
 */
export function stepProgram(
  config: DecoderConfig,
  parameters: ReadonlyMap<string, Tensor>,
  feedForward: FeedForward,
  layout: CacheLayout,
): Program {
  const { batch, textSlots, layers } = layout;
  const furthest = textSlots + Math.max(...layers.map((layer) => layer.textOffset));
  const types = {
    token: { dtype: 'int32', shape: [batch] },
    slot: { dtype: 'int32', shape: [batch] },
    ...cacheTypes(config, layout),
  } as const;
  return trace<string>(types, (inputs) => {
    const weights = frozen(parameters);
    const outputs: Record<string, Value> = {};
    const slotB111 = reshape(inputs.slot as Value, [batch, 1, 1, 1]);
    let hiddenBTD = embed(weights, reshape(inputs.token as Value, [batch, 1]));
    for (const [layer, { context, textOffset }] of layers.entries()) {
      const names = cacheNames(layer);
      const row = add(slotB111, context.length);
      const written = expand(row, [batch, config.keyValueHeads, 1, config.headWidth]);
      const write = (cache: string, own: Value) => scatterElements(inputs[cache] as Value, written, own, 2);
      const positionB111 = add(slotB111, textOffset);
      const visible = visibleBias(row, positionB111, keyPositions(layout, layer), config.windows[layer]);
      const bias =
        context.length === 0 ? visible : add(visible, pad(inputs[names.bias] as Value, -1, 0, textSlots));
      const result = decoderLayer(config, weights, layer, hiddenBTD, {
        rotary: rotaryFor(config, reshape(positionB111, [batch, 1]), furthest),
        bias,
        feedForward,
        attendTo: (own) => ({
          keysBKSH: write(names.keys, own.keysBKSH),
          valuesBKSH: write(names.values, own.valuesBKSH),
        }),
      });
      hiddenBTD = result.hiddenBTD;
      outputs[`next.${names.keys}`] = result.keysValues.keysBKSH;
      outputs[`next.${names.values}`] = result.keysValues.valuesBKSH;
    }
    const hidden = reshape(hiddenBTD, [batch, config.hiddenSize]);
    return { ...outputs, logits: cast(logits(config, weights, hidden), 'float32') };
  });
}

/** The position of every key of a layer's cache. */
function keyPositions({ layers, slot, textSlots }: CacheLayout, layer: number): (number | null)[] {
  const { context, textOffset } = layers[layer] as CacheLayout['layers'][number];
  return [...context, ...Array.from({ length: textSlots }, (_, at) => (at < slot ? at : at + textOffset))];
}

/**
 * The bias [B, 1, 1, keys] of a row that is written at an index [B, 1, 1, 1] of the cache: it sees what stands up to
 * there, as far as the window reaches from its position [B, 1, 1, 1].
 */
function visibleBias(
  index: Value,
  position: Value,
  keyPositions: readonly (number | null)[],
  window: number | null = null,
): Value {
  const shape = [1, 1, 1, keyPositions.length];
  const isPast = less(constant(int32(shape, [...keyPositions.keys()])), add(index, 1));
  const causal = where(isPast, filled('float32', shape, 0), masked);
  if (window === null) return causal;
  const never = 2 ** 30;
  const positions = keyPositions.map((own) => own ?? never);
  return where(less(constant(int32(shape, positions)), add(position, 1 - window)), masked, causal);
}

export type Decoding =
  | { readonly decoding: 'greedy' }
  | { readonly decoding: 'sample'; readonly temperature: number; readonly random: Random };

/** The next token of each sequence from logits [B, V]. */
export function chooseTokens(logitsBV: Float32Array, batch: number, decoding: Decoding): number[] {
  const size = logitsBV.length / batch;
  return Array.from({ length: batch }, (_, row) => {
    const scores = logitsBV.subarray(row * size, (row + 1) * size);
    return decoding.decoding === 'greedy'
      ? argmax(scores)
      : sample(scores, decoding.temperature, decoding.random);
  });
}

function argmax(scores: Float32Array): number {
  let best = 0;
  for (let at = 1; at < scores.length; at++) if ((scores[at] as number) > (scores[best] as number)) best = at;
  return best;
}

function sample(scores: Float32Array, temperature: number, random: Random): number {
  const top = scores[argmax(scores)] as number;
  const weights = Float64Array.from(scores, (score) => Math.exp((score - top) / temperature));
  let left = random.uniform() * weights.reduce((total, weight) => total + weight, 0);
  for (const [id, weight] of weights.entries()) {
    left -= weight;
    if (left < 0) return id;
  }
  return argmax(scores);
}

export interface Continuation {
  readonly engine: Engine;
  readonly step: Program;
  readonly layout: CacheLayout;
  /** The cache after the prompt, and the prompt's length and first generated token per sequence. */
  readonly cache: Readonly<Record<string, Feed>>;
  readonly promptLengths: readonly number[];
  readonly firstTokens: readonly number[];
  readonly stopIds: readonly number[];
  readonly maxNewTokens: number;
  readonly decoding: Decoding;
}

/** Continues every sequence until a stop token (not included) or `maxNewTokens`. */
export async function continueSequences(continuation: Continuation): Promise<number[][]> {
  const { engine, step, layout, promptLengths, stopIds, maxNewTokens, decoding } = continuation;
  const cacheOutputs = [...step.outputs.keys()].filter((name) => name.startsWith('next.'));
  const executable = await engine.compile(step, { keepOnDevice: cacheOutputs });
  const sequences: number[][] = promptLengths.map(() => []);
  const finished = promptLengths.map(() => false);
  const state: Record<string, Feed> = { ...continuation.cache };
  let tokens = [...continuation.firstTokens];
  try {
    for (let made = 0; made < maxNewTokens; made++) {
      for (const [row, token] of tokens.entries()) {
        if (stopIds.includes(token)) finished[row] = true;
        if (!finished[row]) sequences[row]?.push(token);
      }
      if (made === maxNewTokens - 1 || finished.every((done) => done)) break;
      const outputs = await executable.run({
        ...state,
        token: int32([layout.batch], tokens),
        slot: int32(
          [layout.batch],
          promptLengths.map((length) => length + made),
        ),
      });
      for (const name of cacheOutputs) {
        const cache = name.slice('next.'.length);
        const old = state[cache] as Feed;
        if (made > 0 && isDeviceTensor(old)) old.dispose();
        state[cache] = outputs[name] as DeviceTensor;
      }
      tokens = chooseTokens(plain(outputs, 'logits').data as Float32Array, layout.batch, decoding);
    }
  } finally {
    await executable.dispose();
  }
  return sequences;
}
