/**
 * Mixture-of-Channels (Wu et al. 2025, arXiv 2511.09323): of a SwiGLU layer's channels (hidden units) every token
 * keeps the few with the largest gates. The products are those of a dense layer; the backward pass needs only what
 * was kept, and a single token's step reads only the weights of its channels.
 *
 * Shape suffixes: T tokens, D hidden, F channels, K channels that a token keeps.
 */
import {
  add,
  cast,
  concat,
  constant,
  filled,
  gather,
  gatherElements,
  magnitude,
  matmul,
  multiply,
  reshape,
  scatterElements,
  silu,
  slice,
  topK,
} from '../tensor/operations.ts';
import { type Parameters, parameter } from '../tensor/parameters.ts';
import { ProgramError, type Value } from '../tensor/program.ts';
import { adapterMask, adapterNames, project } from '../tensor/projection.ts';
import { recomputed } from '../tensor/recomputed.ts';
import { float32, int32, type Tensor } from '../tensor/tensor.ts';
import { named, scope, withGradient } from '../tensor/trace.ts';
import { type ChannelsLayer, structure } from './config.ts';
import { loadOf } from './dispatch.ts';
import type { FeedForward } from './feedForward.ts';
import { choiceStatistics } from './statistics.ts';

/** The layer that a configuration describes. */
export function channelsFeedForward(layer: ChannelsLayer): FeedForward {
  return (x, parameters, { prefix, rows }) => {
    const width = x.shape.at(-1) as number;
    const tokens = x.shape.slice(0, -1).reduce((product, size) => product * size, 1);
    const xTD = reshape(x, [tokens, width]);
    const gateTF = project(xTD, parameters, `${prefix}.gate_proj`);
    if (gateTF.shape[1] !== layer.channels)
      throw new ProgramError(
        `${prefix}: ${gateTF.shape[1]} channels, the configuration says ${layer.channels}`,
      );
    const keptTK = scope('selection', () => keptChannels(layer, gateTF));
    const stored = rowsOfFew(layer, parameters, prefix, tokens);
    const yTD =
      stored === undefined
        ? throughAll(layer, parameters, prefix, { xTD, gateTF, keptTK })
        : throughKept(stored, { xTD, gateTF, keptTK });
    const known = rows?.();
    const flat = (value: Value | undefined) => value && reshape(value, [tokens]);
    const choices = { blocksTC: keptTK, validT: flat(known?.validBT), audioT: flat(known?.audioBT) };
    return {
      y: named('output', reshape(yTD, x.shape)),
      statistics: scope('statistics', () => choiceStatistics(choices, loadOf(choices, layer.channels))),
      choices: { ...choices, blocks: layer.channels },
    };
  };
}

/** Which channels each token keeps, [T, K], int32; the lower channel wins a tie. */
export function keptChannels({ select, channels, active }: ChannelsLayer, gateTF: Value): Value {
  // No gradient flows through the choice, and the order of what is chosen does not matter.
  const best = (scores: Value, count: number) =>
    cast(topK(scores, count, { sorted: false }).indices, 'int32');
  if (select === 'gate') return named('kept', best(gateTF, active));
  if (select === 'magnitude') return named('kept', best(magnitude(silu(gateTF)), active));
  const tokens = gateTF.shape[0] as number;
  const { groups, of, kept, tail, keptOfTail } = structure(channels);
  const first = constant(
    int32(
      [1, groups, 1],
      [...Array(groups).keys()].map((group) => group * of),
    ),
  );
  const whole = reshape(slice(gateTF, 1, 0, groups * of), [tokens, groups, of]);
  const parts = groups === 0 ? [] : [reshape(add(best(whole, kept), first), [tokens, groups * kept])];
  if (tail > 0) {
    const rest = best(slice(gateTF, 1, groups * of, channels), keptOfTail);
    parts.push(add(rest, groups * of));
  }
  return named('kept', concat(parts, 1));
}

interface Rows {
  readonly xTD: Value;
  readonly gateTF: Value;
  readonly keptTK: Value;
}

/**
 * Dense products over matrices that are zero where a channel was not kept. Held for the backward pass are the indices
 * and the kept gates, their SiLU, the kept ups and the product, or without what `recompute` leaves out.
 */
function throughAll(
  { recompute, channels }: ChannelsLayer,
  parameters: Parameters,
  prefix: string,
  { xTD, gateTF, keptTK }: Rows,
): Value {
  const gateTK = pick(gateTF, keptTK);
  const upTK = pick(project(xTD, parameters, `${prefix}.up_proj`), keptTK);
  const down = `${prefix}.down_proj`;
  const weights = [`${down}.weight`, `${down}.bias`, ...Object.values(adapterNames(down))].flatMap((name) => {
    const found = parameters.get(name);
    return found === undefined ? [] : [found];
  });
  // Drawn once, for the pass that computes again as well.
  const mask = adapterMask(parameters, down, gateTF.shape);
  const spread = (productTK: Value) => project(put(productTK, keptTK, channels), parameters, down, mask);
  if (recompute)
    return recomputed([gateTK, upTK], weights, ([gate, up]) =>
      spread(multiply(silu(gate as Value), up as Value)),
    );
  return recomputed([multiply(silu(gateTK), upTK)], weights, ([product]) => spread(product as Value));
}

/** Columns of each row, [T, K]; no column twice, so that gradients need not be added up. */
function pick(xTF: Value, indicesTK: Value): Value {
  return withGradient(gatherElements(xTF, indicesTK, 1), {
    inputs: [xTF],
    backward: (dy) => [put(dy, indicesTK, xTF.shape[1] as number)],
  });
}

/** The inverse: [T, channels], zero elsewhere. */
function put(xTK: Value, indicesTK: Value, channels: number): Value {
  const zeros = filled(xTK.dtype, [xTK.shape[0] as number, channels], 0);
  return scatterElements(zeros, indicesTK, xTK, 1);
}

/** The weights of the kept channels alone can be read: as rows. */
interface StoredRows {
  readonly upFD: Value;
  readonly downFD: Value;
  readonly upBias: Value | undefined;
  readonly downBias: Value | undefined;
}

/** Reading a row and writing it to be multiplied takes as long as multiplying by so many that lie in order; measured. */
const costOfGathering = 2;

/**
 * The weights as rows where a step reads less by taking only those of the kept channels: in generation, where they are
 * constants, for few tokens.
 */
function rowsOfFew(
  { active, channels }: ChannelsLayer,
  parameters: Parameters,
  prefix: string,
  tokens: number,
): StoredRows | undefined {
  if (tokens * active * costOfGathering > channels) return undefined;
  const isAdapted = (name: string) => parameters.has(adapterNames(`${prefix}.${name}`).a);
  if (isAdapted('up_proj') || isAdapted('down_proj')) return undefined;
  const downDF = parameter(parameters, `${prefix}.down_proj.weight`);
  const upFD = parameter(parameters, `${prefix}.up_proj.weight`);
  if (downDF.node.primitive !== 'constant' || upFD.node.primitive !== 'constant') return undefined;
  return {
    upFD,
    downFD: constant(transposed(downDF.node.attributes.tensor)),
    upBias: parameters.get(`${prefix}.up_proj.bias`),
    downBias: parameters.get(`${prefix}.down_proj.bias`),
  };
}

function throughKept({ upFD, downFD, upBias, downBias }: StoredRows, { xTD, gateTF, keptTK }: Rows): Value {
  const [tokens, width] = xTD.shape as [number, number];
  const kept = keptTK.shape[1] as number;
  const productT1K = matmul(reshape(xTD, [tokens, 1, width]), gather(upFD, keptTK, 0), { transposeB: true });
  const upTK = reshape(productT1K, [tokens, kept]);
  const biased = upBias === undefined ? upTK : add(upTK, gather(upBias, keptTK, 0));
  const activated = multiply(silu(gatherElements(gateTF, keptTK, 1)), biased);
  const yT1D = matmul(reshape(activated, [tokens, 1, kept]), gather(downFD, keptTK, 0));
  const yTD = reshape(yT1D, [tokens, width]);
  return downBias === undefined ? yTD : add(yTD, downBias);
}

/** Programs of the same weights share what was made of them. */
const transposes = new WeakMap<Tensor, Tensor>();

function transposed(matrix: Tensor): Tensor {
  const known = transposes.get(matrix);
  if (known !== undefined) return known;
  if (matrix.dtype !== 'float32') throw new ProgramError(`weights of type ${matrix.dtype}: expected float32`);
  const [rows, columns] = matrix.shape as [number, number];
  const data = new Float32Array(matrix.data.length);
  for (let row = 0; row < rows; row++)
    for (let column = 0; column < columns; column++)
      data[column * rows + row] = matrix.data[row * columns + column] as number;
  const made = float32([columns, rows], data);
  transposes.set(matrix, made);
  return made;
}
