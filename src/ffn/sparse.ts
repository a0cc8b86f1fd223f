/**
 * A feed-forward layer as a memory of blocks, of which every token uses a few: SwiGLU, y = Σ over the chosen blocks b
 * of weight_b * down_b(silu(gate_b x) * up_b x). A block is some neighbouring hidden units; the rows of the gate are
 * the memory's keys. Only what was chosen is multiplied.
 *
 * Shape suffixes: T tokens, D hidden, B blocks, G groups, M slots of a group, F cells of a block.
 */
import {
  add,
  concat,
  divide,
  multiply,
  reshape,
  sigmoid,
  silu,
  slice,
  subtract,
  sum,
  transpose,
} from '../tensor/operations.ts';
import { type Parameters, parameter } from '../tensor/parameters.ts';
import { ProgramError, type Value } from '../tensor/program.ts';
import type { Shape } from '../tensor/tensor.ts';
import { named, scope, withGradient, withPrecision } from '../tensor/trace.ts';
import type { SparseLayer } from './config.ts';
import { type Choices, type Dispatch, planDispatch } from './dispatch.ts';
import type { FeedForward, FeedForwardOutput } from './feedForward.ts';
import { fromSlots, productByGroup, toSlots, vectorByGroup } from './groups.ts';
import { memoryPrefix, ownPrefix } from './parameters.ts';
import { type Selection, select } from './selection.ts';
import { choiceStatistics } from './statistics.ts';

/** The layer that a configuration describes. */
export function sparseFeedForward(layer: SparseLayer): FeedForward {
  return (x, parameters, context) => {
    const width = x.shape.at(-1) as number;
    const tokens = x.shape.slice(0, -1).reduce((product, size) => product * size, 1);
    const xTD = reshape(x, [tokens, width]);
    const rows = context.rows?.();
    const flat = (value: Value | undefined) => value && reshape(value, [tokens]);
    const validT = flat(rows?.validBT);
    const memory = memoryOf(layer, parameters, memoryPrefix(layer, context.layer));
    const selection = scope('selection', () =>
      select(layer, {
        xTD,
        parameters,
        prefix: ownPrefix(context.layer),
        keys: { weight: memory.gate, bias: memory.gateBias },
        tokensT: flat(rows?.tokensBT),
        validT,
      }),
    );
    const { blocksTC, loadB } = selection;
    const choices = { blocksTC, validT, audioT: flat(rows?.audioBT) };
    const dispatch = scope('dispatch', () => planDispatch(choices, loadB, capacityOf(layer, tokens)));
    const sparse = scope('blocks', () => throughBlocks(layer, memory, xTD, selection, dispatch));
    const yTD = memory.downBias === undefined ? sparse : add(sparse, memory.downBias);
    return {
      y: named('output', reshape(yTD, x.shape)),
      ...(selection.auxiliaryLoss && { auxiliaryLoss: selection.auxiliaryLoss }),
      statistics: scope('statistics', () => statisticsOf(choices, loadB, dispatch)),
      choices: { ...choices, blocks: layer.blocks, keptTC: dispatch.keptTC },
    };
  };
}

/**
 * Slots of each block; null where there is room for all.
 * @throws ProgramError where the factor leaves none in a batch that could fill every block
 */
export function capacityOf(layer: SparseLayer, tokens: number): number | null {
  const { capacityFactor, active, blocks } = layer;
  if (capacityFactor === null) return null;
  const choices = tokens * active;
  const room = (capacityFactor * choices) / blocks;
  if (room < 1 && choices >= blocks)
    throw new ProgramError(
      `llm.ffn.capacityFactor: ${capacityFactor} * ${tokens} tokens * ${active} choices / ${blocks} blocks = ` +
        `${Number(room.toPrecision(3))} slots a block: everything would be dropped`,
    );
  return Math.min(Math.ceil(room), choices);
}

interface Memory {
  readonly gate: Value;
  readonly up: Value;
  readonly down: Value;
  readonly gateBias: Value | undefined;
  readonly upBias: Value | undefined;
  readonly downBias: Value | undefined;
}

function memoryOf(layer: SparseLayer, parameters: Parameters, prefix: string): Memory {
  const weight = (name: string) => parameter(parameters, `${prefix}.${name}.weight`);
  const bias = (name: string) => parameters.get(`${prefix}.${name}.bias`);
  const gate = weight('gate_proj');
  if (gate.shape[0] !== layer.memory)
    throw new ProgramError(
      `${prefix}: a memory of ${gate.shape[0]} cells, the configuration says ${layer.memory}`,
    );
  return {
    gate,
    up: weight('up_proj'),
    down: weight('down_proj'),
    gateBias: bias('gate_proj'),
    upBias: bias('up_proj'),
    downBias: bias('down_proj'),
  };
}

/**
 * Two batched products for all groups, and the sum over each token's choices. Gate and up are one product: the blocks
 * are small, and one of twice the size runs faster than two.
 */
export function throughBlocks(
  { blocks, blockSize }: Pick<SparseLayer, 'blocks' | 'blockSize'>,
  memory: Memory,
  xTD: Value,
  { weightsTC }: Pick<Selection, 'weightsTC'>,
  dispatch: Dispatch,
): Value {
  const { groups, slots } = dispatch;
  const width = xTD.shape[1] as number;
  const xGMD = reshape(toSlots(xTD, dispatch), [groups, slots, width]);
  const { gate, up, gateBias, upBias } = memory;
  const joined = (parts: readonly Value[], shape: Shape, axis: number) =>
    concat(
      parts.map((part) => reshape(part, shape)),
      axis,
    );
  const product = productByGroup(xGMD, joined([gate, up], [blocks, blockSize, width], 1), dispatch);
  const preGMF =
    gateBias === undefined || upBias === undefined
      ? product
      : add(product, vectorByGroup(joined([gateBias, upBias], [blocks, 1, blockSize], 2), dispatch));
  const downBDF = transpose(reshape(memory.down, [width, blocks, blockSize]), [1, 0, 2]);
  const yGMD = productByGroup(swiGlu(preGMF), downBDF, dispatch);
  return fromSlots(reshape(yGMD, [groups * slots, width]), dispatch, weightsTC);
}

/** silu(gate) * up of pre-activations [..., gate; up]. */
function swiGlu(both: Value): Value {
  const cells = (both.shape.at(-1) as number) / 2;
  const [gate, up] = [slice(both, -1, 0, cells), slice(both, -1, cells, 2 * cells)];
  const activated = silu(gate);
  return withGradient(multiply(activated, up), {
    inputs: [both],
    // The halves of the gradient are joined; the rules of slices would pad each with zeros, and add.
    backward: (dy) => {
      const open = sigmoid(gate);
      const slope = add(open, multiply(activated, subtract(1, open)));
      return [concat([multiply(multiply(dy, up), slope), multiply(dy, activated)], -1)];
    },
  });
}

/** How the choices fall, of real tokens alone. */
function statisticsOf(
  choices: Choices,
  loadB: Value,
  { takenS }: Dispatch,
): NonNullable<FeedForwardOutput['statistics']> {
  return withPrecision('float32', () => {
    const total = sum(loadB);
    return {
      ...choiceStatistics(choices, loadB),
      overflow: divide(subtract(total, sum(takenS)), total),
    };
  });
}
