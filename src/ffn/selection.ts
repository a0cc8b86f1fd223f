/**
 * How a token chooses its blocks. Scores are computed in float32; the lower block wins a tie.
 *
 * Shape suffixes: T tokens, B blocks, C choices of a token, D hidden, H heads.
 */
import {
  add,
  cast,
  divide,
  gather,
  gatherElements,
  linear,
  logSoftmax,
  magnitude,
  matmul,
  max,
  mean,
  multiply,
  reshape,
  rmsNorm,
  sigmoid,
  silu,
  slice,
  softmax,
  subtract,
  sum,
  topK,
  transpose,
} from '../tensor/operations.ts';
import { type Parameters, parameter } from '../tensor/parameters.ts';
import { ProgramError, type Value } from '../tensor/program.ts';
import { named, withPrecision } from '../tensor/trace.ts';
import type { Gate, SparseLayer } from './config.ts';
import { loadOf } from './dispatch.ts';

/** What a selection may look at. */
export interface SelectionInput {
  readonly xTD: Value;
  /** Where the selection's own parameters live: `ffn.layers.3`. */
  readonly prefix: string;
  readonly parameters: Parameters;
  /** Pre-activations of the gate are x keysᵀ + bias. */
  readonly keys: { readonly weight: Value; readonly bias?: Value | undefined };
  /** Rows of the hash table, [T], int32; where the layer is told no tokens, undefined. */
  readonly tokensT: Value | undefined;
  readonly validT: Value | undefined;
}

export interface Selection {
  readonly blocksTC: Value;
  /** What each chosen block's output is multiplied by; 1 when left out. */
  readonly weightsTC?: Value;
  /** Choices of each block, [B], float32. */
  readonly loadB: Value;
  /** Times its coefficient, a scalar. */
  readonly auxiliaryLoss?: Value;
}

type Chosen = Omit<Selection, 'loadB'>;

/** @throws ProgramError where a hash layer is told no tokens */
export function select(layer: SparseLayer, input: SelectionInput): Selection {
  return withPrecision('float32', () => {
    const { validT } = input;
    const found = chosen(layer, input);
    const loadB = loadOf({ blocksTC: found.blocksTC, validT }, layer.blocks);
    if (!('logitsTB' in found)) return { ...found, loadB };
    const { logitsTB, ...rest } = found;
    return { ...rest, loadB, ...routerLoss(layer, logitsTB, loadB, validT) };
  });
}

function chosen(layer: SparseLayer, input: SelectionInput): Chosen | (Chosen & { logitsTB: Value }) {
  const { active } = layer;
  switch (layer.select) {
    case 'switch':
    case 'topk': {
      const logitsTB = named('logits', linear(input.xTD, own(input, 'router.weight')));
      const probabilitiesTB = named('probabilities', softmax(logitsTB));
      const { values, indices } = topK(probabilitiesTB, active);
      const isNormalized = layer.select === 'topk' && layer.normalize === 'chosen';
      const weightsTC = isNormalized ? divide(values, sum(values, [1], { keepDimensions: true })) : values;
      return { blocksTC: indices, weightsTC, logitsTB };
    }
    case 'hash': {
      if (input.tokensT === undefined)
        throw new ProgramError(`${input.prefix}: blocks are chosen by token, and there are no tokens here`);
      return { blocksTC: cast(gather(own(input, 'table'), input.tokensT, 0), 'int32') };
    }
    case 'avg-k':
      return best(averageScores(layer, input), active, layer.gate);
    case 'vanilla-memory':
      return best(memoryScores(layer, input), active, layer.gate);
    case 'lowrank-memory': {
      const queriesTR = linear(input.xTD, own(input, 'query.weight'));
      return best(named('scores', linear(queriesTR, own(input, 'keys.weight'))), active, layer.gate);
    }
    case 'pkm':
      return productKeys(layer, input);
  }
}

function own({ parameters, prefix }: SelectionInput, name: string): Value {
  return parameter(parameters, `${prefix}.${name}`);
}

/** The blocks with the highest scores. */
function best(scoresTB: Value, active: number, gate: Gate): Chosen {
  const { values, indices } = topK(scoresTB, active);
  return gate === 'indicator' ? { blocksTC: indices } : { blocksTC: indices, weightsTC: gated(values, gate) };
}

function gated(scores: Value, gate: Exclude<Gate, 'indicator'>): Value {
  return gate === 'softmax' ? softmax(scores) : sigmoid(scores);
}

/** Hidden states against the mean of each block's keys: the mean of the block's pre-activations, at the cost of one. */
function averageScores({ blocks, blockSize }: SparseLayer, { xTD, keys }: SelectionInput): Value {
  const width = keys.weight.shape[1] as number;
  const meanBD = mean(reshape(keys.weight, [blocks, blockSize, width]), [1]);
  const bias = keys.bias === undefined ? undefined : mean(reshape(keys.bias, [blocks, blockSize]), [1]);
  return named('scores', linear(xTD, meanBD, bias));
}

/** All pre-activations, by block. */
function memoryScores(
  { blocks, blockSize, aggregate }: Extract<SparseLayer, { select: 'vanilla-memory' }>,
  { xTD, keys }: SelectionInput,
): Value {
  const tokens = xTD.shape[0] as number;
  const cellsTBM = reshape(linear(xTD, keys.weight, keys.bias), [tokens, blocks, blockSize]);
  const scores = {
    mean: () => mean(cellsTBM, [2]),
    max: () => max(cellsTBM, [2]),
    activation: () => mean(silu(cellsTBM), [2]),
    magnitude: () => mean(magnitude(cellsTBM), [2]),
  }[aggregate]();
  return named('scores', scores);
}

/**
 * Product keys (Lample et al. 2019, arXiv 1907.05242): a block's key is one of the first half keys and one of the
 * second, so the best of all blocks are among the pairs of the best halves.
 */
function productKeys(
  { blocks, active, heads, queryWidth, gate }: Extract<SparseLayer, { select: 'pkm' }>,
  input: SelectionInput,
): Chosen {
  const tokens = input.xTD.shape[0] as number;
  const [side, each, half] = [Math.sqrt(blocks), active / heads, queryWidth / 2];
  const raw = reshape(linear(input.xTD, own(input, 'query.weight')), [tokens, heads, queryWidth]);
  const queries = rmsNorm(raw, own(input, 'query_norm.weight'), 1e-6);
  // [2 * H, T, side]: every head's scores of both kinds of half keys.
  const halves = reshape(transpose(reshape(queries, [tokens, heads * 2, half]), [1, 0, 2]), [
    heads * 2,
    tokens,
    half,
  ]);
  const scores = named('scores', matmul(halves, own(input, 'keys.weight'), { transposeB: true }));
  const top = topK(scores, each);
  const halfOf = (value: Value, which: number) => {
    const both = reshape(value, [heads, 2, tokens, each]);
    return reshape(slice(both, 1, which, which + 1), [heads, tokens, each]);
  };
  const pairs = (combine: (first: Value, second: Value) => Value, value: Value) =>
    reshape(
      combine(
        reshape(halfOf(value, 0), [heads, tokens, each, 1]),
        reshape(halfOf(value, 1), [heads, tokens, 1, each]),
      ),
      [heads, tokens, each * each],
    );
  const sums = topK(pairs(add, top.values), each);
  const blocksOfPairs = pairs(
    (first, second) => add(multiply(first, side), second),
    cast(top.indices, 'int32'),
  );
  const byToken = (value: Value) => reshape(transpose(value, [1, 0, 2]), [tokens, active]);
  return {
    blocksTC: byToken(gatherElements(blocksOfPairs, sums.indices, 2)),
    weightsTC: byToken(gated(sums.values, gate)),
  };
}

/** Load balancing (Fedus et al. 2021, arXiv 2101.03961, eq. 4) and the z-loss (Zoph et al. 2022, arXiv 2202.08906). */
function routerLoss(
  layer: SparseLayer,
  logitsTB: Value,
  loadB: Value,
  validT: Value | undefined,
): Pick<Selection, 'auxiliaryLoss'> {
  if (!('balanceLoss' in layer)) return {};
  const { balanceLoss, zLoss, blocks } = layer;
  const tokens = logitsTB.shape[0] as number;
  const logProbabilitiesTB = logSoftmax(logitsTB);
  /** The mean over the real tokens of something [T, ...]. */
  const overTokens = (value: Value) => {
    if (validT === undefined) return mean(value, [0]);
    const weights = reshape(validT, [tokens, ...value.shape.slice(1).map(() => 1)]);
    return divide(sum(multiply(value, weights), [0]), sum(validT));
  };
  const losses: Value[] = [];
  if (balanceLoss > 0) {
    const shareB = divide(loadB, sum(loadB));
    const balance = sum(multiply(shareB, overTokens(softmax(logitsTB))));
    losses.push(named('balanceLoss', multiply(balance, balanceLoss * blocks)));
  }
  if (zLoss > 0) {
    const first = (value: Value) => reshape(slice(value, 1, 0, 1), [tokens]);
    const logSumExpT = subtract(first(logitsTB), first(logProbabilitiesTB));
    losses.push(named('zLoss', multiply(overTokens(multiply(logSumExpT, logSumExpT)), zLoss)));
  }
  return losses.length === 0 ? {} : { auxiliaryLoss: losses.reduce((total, loss) => add(total, loss)) };
}
