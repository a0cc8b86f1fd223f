/**
 * Token-by-token decoding with a key-value cache.
 *
 * The cache of a layer is [context rows; text slots]: context rows are keys that are there from the beginning (an
 * audio-LLM's audio), text slots are written one a step. Shape suffixes: B batch, K key-value heads, S cache rows,
 * H head width, V vocabulary.
 */
import { type Engine, type Feed, isDeviceTensor, plain } from '../engine/engine.ts';
import type { FeedForwards } from '../ffn/feedForward.ts';
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
import { type Rotary, rotaryFor } from './rotary.ts';
import { chooseTokens, type Decoding } from './sampling.ts';

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
  feedForward: FeedForwards,
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
    // Layers that are laid out alike share what is looked up for them.
    const rotaries = new Map<number, Rotary>();
    const biases = new Map<string, Value>();
    const tokensBT = reshape(inputs.token as Value, [batch, 1]);
    let hiddenBTD = embed(weights, tokensBT);
    for (const [layer, { context, textOffset }] of layers.entries()) {
      const names = cacheNames(layer);
      const row = add(slotB111, context.length);
      const written = expand(row, [batch, config.keyValueHeads, 1, config.headWidth]);
      const write = (cache: string, own: Value) => scatterElements(inputs[cache] as Value, written, own, 2);
      const positionB111 = add(slotB111, textOffset);
      const rotary =
        rotaries.get(textOffset) ?? rotaryFor(config, reshape(positionB111, [batch, 1]), furthest);
      rotaries.set(textOffset, rotary);
      const window = config.windows[layer] ?? null;
      const alike = JSON.stringify([context, textOffset, window]);
      const visible =
        biases.get(alike) ?? visibleBias(row, positionB111, keyPositions(layout, layer), window);
      biases.set(alike, visible);
      const bias =
        context.length === 0 ? visible : add(visible, pad(inputs[names.bias] as Value, -1, 0, textSlots));
      const result = decoderLayer(config, weights, layer, hiddenBTD, {
        rotary,
        bias,
        feedForward,
        rows: () => ({ tokensBT }),
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
  window: number | null,
): Value {
  const shape = [1, 1, 1, keyPositions.length];
  const isPast = less(constant(int32(shape, [...keyPositions.keys()])), add(index, 1));
  const causal = where(isPast, filled('float32', shape, 0), masked);
  if (window === null) return causal;
  const never = 2 ** 30;
  const positions = keyPositions.map((own) => own ?? never);
  return where(less(constant(int32(shape, positions)), add(position, 1 - window)), masked, causal);
}

export interface Continuation {
  readonly engine: Engine;
  readonly step: Program;
  readonly layout: CacheLayout;
  /** The cache after the prompts. It is used up: written over, or disposed. */
  readonly cache: Readonly<Record<string, Feed>>;
  readonly prompts: readonly (readonly number[])[];
  /** Logits [B, V] of each sequence's first token. */
  readonly logits: Float32Array;
  readonly stopIds: readonly number[];
  readonly maxNewTokens: number;
  readonly decoding: Decoding;
  /** Is told of every token as it is made; a sequence for which it says true ends with that token. */
  readonly onToken?: ((sequence: number, id: number) => boolean) | undefined;
}

/** Continues every sequence until a stop token (not included) or `maxNewTokens`. */
export async function continueSequences(continuation: Continuation): Promise<number[][]> {
  const { engine, step, layout, prompts, stopIds, maxNewTokens, decoding, onToken } = continuation;
  const written = [...step.outputs.keys()].filter((name) => name.startsWith('next.'));
  const executable = await engine.compile(step, { keepOnDevice: engine.inPlace ? [] : written });
  const cache = cacheState(engine, continuation.cache, written);
  const sequences: number[][] = prompts.map(() => []);
  const seen = prompts.map((prompt) => [...prompt]);
  const finished = prompts.map(() => false);
  let { logits } = continuation;
  try {
    for (let made = 0; ; made++) {
      const tokens = chooseTokens(logits, seen, decoding);
      for (const [row, token] of tokens.entries()) {
        if (finished[row]) continue;
        if (stopIds.includes(token)) finished[row] = true;
        else {
          sequences[row]?.push(token);
          seen[row]?.push(token);
          finished[row] = onToken?.(row, token) ?? false;
        }
      }
      if (made === maxNewTokens - 1 || finished.every((done) => done)) return sequences;
      const slots = prompts.map((prompt) => prompt.length + made);
      const feeds = { token: int32([layout.batch], tokens), slot: int32([layout.batch], slots) };
      const outputs = await executable.run({ ...feeds, ...cache.feeds() }, cache.into);
      cache.advance(outputs);
      logits = plain(outputs, 'logits').data as Float32Array;
    }
  } finally {
    cache.dispose();
    await executable.dispose();
  }
}

/** A cache from step to step: in the memory that it began in, or as device tensors that replace each other. */
function cacheState(engine: Engine, initial: Readonly<Record<string, Feed>>, written: readonly string[]) {
  const feeds: Record<string, Feed> = { ...initial };
  const own = (name: string) => name.slice('next.'.length);
  const release = (feed: Feed | undefined) => {
    if (feed !== undefined && isDeviceTensor(feed)) feed.dispose();
  };
  return {
    feeds: () => feeds,
    into: engine.inPlace
      ? Object.fromEntries(written.map((name) => [name, plain(initial, own(name))]))
      : undefined,
    advance: (outputs: Readonly<Record<string, Feed>>) => {
      if (engine.inPlace) return;
      for (const name of written) {
        release(feeds[own(name)]);
        feeds[own(name)] = outputs[name] as Feed;
      }
    },
    dispose: () => Object.values(feeds).forEach(release),
  };
}
