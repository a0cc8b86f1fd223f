/**
 * The decoder of the Llama, Mistral and Qwen families: RMSNorm, rotary positions, grouped-query attention, SwiGLU.
 * Parameters carry Hugging Face's names.
 *
 * Shape suffixes: B batch, T rows that ask (queries), S rows that are asked (keys), D hidden, H head width,
 * K key-value heads, V vocabulary, N any rows.
 */
import type { FeedForwardContext, FeedForwardOutput, FeedForwards } from '../ffn/feedForward.ts';
import {
  add,
  cast,
  concat,
  constant,
  gather,
  less,
  linear,
  matmul,
  reshape,
  rmsNorm,
  softmax,
  subtract,
  transpose,
  where,
} from '../tensor/operations.ts';
import { type Parameters, parameter } from '../tensor/parameters.ts';
import type { Value } from '../tensor/program.ts';
import { project } from '../tensor/projection.ts';
import { float32, int32 } from '../tensor/tensor.ts';
import { named, scope } from '../tensor/trace.ts';
import type { DecoderConfig } from './config.ts';
import { type Rotary, rotaryAt, rotaryFor, rotate } from './rotary.ts';

/** Added to the score of a key that a query must not see. */
export const masked = -1e9;

/** Keys and values of one layer, [B, K, S, H], keys already rotated. */
export interface KeysValues {
  readonly keysBKSH: Value;
  readonly valuesBKSH: Value;
}

export interface LayerContext {
  /** Rotary tables of the rows; undefined: the rows are not rotated. */
  readonly rotary: Rotary;
  /** Added to the attention scores, broadcast to [B, 1, T, S]: 0 where a key is visible, `masked` where not. */
  readonly bias: Value;
  readonly feedForward: FeedForwards;
  /** What feed-forward layers that choose by token or leave out padding know of the rows. */
  readonly rows?: FeedForwardContext['rows'];
  /** What the rows attend to, given their own keys and values; their own when left out. */
  readonly attendTo?: (own: KeysValues) => KeysValues;
}

/** Token embeddings of ids. */
export function embed(parameters: Parameters, ids: Value): Value {
  return named('embeddings', gather(parameter(parameters, 'model.embed_tokens.weight'), ids, 0));
}

/** One decoder layer over rows [B, T, D]. Values are named `layers.<layer>.*`. */
export function decoderLayer(
  config: DecoderConfig,
  parameters: Parameters,
  layer: number,
  hiddenBTD: Value,
  context: LayerContext,
): { hiddenBTD: Value; keysValues: KeysValues; feedForward: Omit<FeedForwardOutput, 'y'> } {
  const prefix = layerPrefix(layer);
  return scope(`layers.${layer}`, () => {
    const normedBTD = inputNorm(config, parameters, layer, hiddenBTD);
    const { attendedBTD, keysValues } = scope('attention', () => {
      const own = keysValuesOf(config, parameters, layer, normedBTD, context.rotary);
      const all = context.attendTo?.(own) ?? own;
      return { attendedBTD: attend(config, parameters, layer, normedBTD, context, all), keysValues: all };
    });
    const residualBTD = named('residual', add(hiddenBTD, attendedBTD));
    const feedForward = context.feedForward(layer);
    if (feedForward === undefined)
      return { hiddenBTD: named('hidden', residualBTD), keysValues, feedForward: {} };
    const { y, ...beside } = scope('feedForward', () => {
      const weight = parameter(parameters, `${prefix}.post_attention_layernorm.weight`);
      const normed = named('input', rmsNorm(residualBTD, weight, config.rmsNormEpsilon));
      return feedForward(normed, parameters, { layer, prefix: `${prefix}.mlp`, rows: context.rows });
    });
    return { hiddenBTD: named('hidden', add(residualBTD, y)), keysValues, feedForward: beside };
  });
}

/** The normalisation in front of a layer's attention. */
export function inputNorm(config: DecoderConfig, parameters: Parameters, layer: number, x: Value): Value {
  return rmsNorm(
    x,
    parameter(parameters, `${layerPrefix(layer)}.input_layernorm.weight`),
    config.rmsNormEpsilon,
  );
}

/**
 * A layer's keys and values for normalised rows [B, S, D].
 * @param rotary undefined leaves the keys without positions
 * @param weights where the projections live; the layer's own when left out
 */
export function keysValuesOf(
  config: DecoderConfig,
  parameters: Parameters,
  layer: number,
  normedBSD: Value,
  rotary: Rotary | undefined,
  weights = `${layerPrefix(layer)}.self_attn`,
): KeysValues {
  const split = (name: string) =>
    splitHeads(project(normedBSD, parameters, `${weights}.${name}`), config.keyValueHeads);
  const keysBKSH = headNorm(config, parameters, `${layerPrefix(layer)}.self_attn.k_norm`, split('k_proj'));
  return {
    keysBKSH: named('keys', rotary === undefined ? keysBKSH : rotate(keysBKSH, rotary)),
    valuesBKSH: named('values', split('v_proj')),
  };
}

/** Queries or keys [..., H] of a model that normalises them; those of others as they are. */
function headNorm(config: DecoderConfig, parameters: Parameters, name: string, x: Value): Value {
  if (!config.queryKeyNorm) return x;
  return rmsNorm(x, parameter(parameters, `${name}.weight`), config.rmsNormEpsilon);
}

/** One after the other along the key axis. */
export function concatKeysValues(parts: readonly KeysValues[]): KeysValues {
  return {
    keysBKSH: concat(
      parts.map((part) => part.keysBKSH),
      2,
    ),
    valuesBKSH: concat(
      parts.map((part) => part.valuesBKSH),
      2,
    ),
  };
}

function attend(
  config: DecoderConfig,
  parameters: Parameters,
  layer: number,
  normedBTD: Value,
  { rotary, bias }: LayerContext,
  { keysBKSH, valuesBKSH }: KeysValues,
): Value {
  const { heads, keyValueHeads, headWidth } = config;
  const prefix = `${layerPrefix(layer)}.self_attn`;
  const [batch, rows] = normedBTD.shape as [number, number, number];
  const keyRows = keysBKSH.shape[2] as number;
  const group = heads / keyValueHeads;
  const own = splitHeads(project(normedBTD, parameters, `${prefix}.q_proj`), heads);
  const queries = rotate(headNorm(config, parameters, `${prefix}.q_norm`, own), rotary);
  // The query heads of one key-value head become rows of one product, so that keys are never repeated.
  const grouped = reshape(queries, [batch, keyValueHeads, group * rows, headWidth]);
  const scores = matmul(grouped, keysBKSH, { transposeB: true, scale: headWidth ** -0.5 });
  // A single row sees the same keys in every head: there the bias fits the groups as they are.
  const separate = rows === 1 ? scores : reshape(scores, [batch, heads, rows, keyRows]);
  const probabilities = named('probabilities', softmax(add(separate, bias)));
  const mixed = matmul(reshape(probabilities, [batch, keyValueHeads, group * rows, keyRows]), valuesBKSH);
  const merged = transpose(reshape(mixed, [batch, heads, rows, headWidth]), [0, 2, 1, 3]);
  const flat = reshape(merged, [batch, rows, heads * headWidth]);
  return named('output', project(flat, parameters, `${prefix}.o_proj`));
}

/** Normalised final hidden states to logits over the vocabulary, [N, V]. */
export function logits(config: DecoderConfig, parameters: Parameters, hiddenND: Value): Value {
  const normed = rmsNorm(hiddenND, parameter(parameters, 'model.norm.weight'), config.rmsNormEpsilon);
  return named('logits', linear(normed, parameter(parameters, headName(config))));
}

/** The matrix [V, D] that makes logits of hidden states. */
export function headName(config: DecoderConfig): string {
  return config.tieWordEmbeddings ? 'model.embed_tokens.weight' : 'lm_head.weight';
}

/**
 * The hidden states [B, T, D] of a plain language model. Padding on the right needs no mask: nothing real sees it.
 * @param paddingB int32: how many ids of each sequence are padding on the left; they take no position and are not seen
 */
export function languageModel(
  config: DecoderConfig,
  parameters: Parameters,
  idsBT: Value,
  feedForward: FeedForwards,
  paddingB?: Value,
): Value {
  const [batch, rows] = idsBT.shape as [number, number];
  const index = [...Array(rows).keys()];
  const padding = paddingB === undefined ? undefined : reshape(paddingB, [batch, 1]);
  const rotary =
    padding === undefined ? rotaryAt(config, index) : rotaryFor(config, positionsBehind(padding, rows), rows);
  const isPadding =
    padding === undefined
      ? undefined
      : less(constant(int32([1, 1, 1, rows], index)), reshape(padding, [batch, 1, 1, 1]));
  const known = () => ({
    tokensBT: idsBT,
    validBT:
      padding &&
      cast(
        less(
          padding,
          constant(
            int32(
              [1, rows],
              index.map((at) => at + 1),
            ),
          ),
        ),
        'float32',
      ),
  });
  // Layers with the same window share a bias.
  const biases = new Map<number | null, Value>();
  const biasOf = (window: number | null) => {
    const causal = constant(causalBias(rows, window));
    return isPadding === undefined ? causal : where(isPadding, masked, causal);
  };
  let hiddenBTD = embed(parameters, idsBT);
  for (let layer = 0; layer < config.layers; layer++) {
    const window = config.windows[layer] ?? null;
    const bias = biases.get(window) ?? biasOf(window);
    biases.set(window, bias);
    ({ hiddenBTD } = decoderLayer(config, parameters, layer, hiddenBTD, {
      rotary,
      bias,
      feedForward,
      rows: known,
    }));
  }
  return hiddenBTD;
}

/** Positions [B, rows] that count from the end of the padding [B, 1]; the padding itself stands at 0. */
function positionsBehind(padding: Value, rows: number): Value {
  const position = subtract(constant(int32([1, rows], [...Array(rows).keys()])), padding);
  return where(less(position, 0), 0, position);
}

/** [1, 1, rows, rows]: a row sees itself and what stands before it, as far as the window reaches. */
export function causalBias(rows: number, window: number | null = null) {
  const bias = Float32Array.from({ length: rows * rows }, (_, at) => {
    const [row, key] = [Math.floor(at / rows), at % rows];
    return key <= row && isInWindow(row, key, window) ? 0 : masked;
  });
  return float32([1, 1, rows, rows], bias);
}

/** Whether a row's window reaches back to a key, by their positions; null: there is no window. */
export function isInWindow(row: number, key: number, window: number | null): boolean {
  return window === null || row - key < window;
}

export function layerPrefix(layer: number): string {
  return `model.layers.${layer}`;
}

/** [B, N, heads * H] -> [B, heads, N, H] */
function splitHeads(x: Value, heads: number): Value {
  const [batch, rows, width] = x.shape as [number, number, number];
  return transpose(reshape(x, [batch, rows, heads, width / heads]), [0, 2, 1, 3]);
}
