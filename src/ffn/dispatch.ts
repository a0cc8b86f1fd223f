/**
 * Which token meets which block, in static shapes. Choices are sorted by block and laid into groups of equally many
 * slots, each of which belongs to one block: then all blocks are one batched matrix product (groups.ts).
 *
 * Shape suffixes: T tokens, C choices of a token, N = T * C choices, B blocks, G groups, S slots of all groups.
 */
import {
  add,
  cast,
  constant,
  filled,
  gather,
  less,
  matmul,
  multiply,
  negate,
  pad,
  reshape,
  scatterAdd,
  scatterElements,
  slice,
  subtract,
  sum,
  topK,
  where,
} from '../tensor/operations.ts';
import { ProgramError, type Value } from '../tensor/program.ts';
import { float32, int32 } from '../tensor/tensor.ts';
import { withPrecision } from '../tensor/trace.ts';

export interface Choices {
  /** The blocks of each token, [T, C], integers. */
  readonly blocksTC: Value;
  /** 1 for a real token, 0 for padding, which goes nowhere, [T]; all are real when left out. */
  readonly validT?: Value | undefined;
  /** 1 for an audio row, 0 for a text row, [T]; all are text when left out. */
  readonly audioT?: Value | undefined;
}

export interface Dispatch {
  readonly groups: number;
  /** Slots of a group. */
  readonly slots: number;
  /** The block of each group, [G]; where left out, group and block are one. */
  readonly blockOfGroup?: Value;
  /** The choice in each slot, [S]; 0 in an empty one, which nobody reads. */
  readonly choiceS: Value;
  /** 1 where a slot is taken, [S]. */
  readonly takenS: Value;
  /** The slot of each choice, [T, C]; 0 where it has none. */
  readonly slotTC: Value;
  /** 1 where a choice has a slot, [T, C]; all have when left out. */
  readonly keptTC?: Value;
}

/**
 * How choices are laid out: `capacity` slots for each block, or, where that is null, as many groups as any
 * distribution of the choices can need.
 */
export function planDispatch(
  choices: Choices,
  /** Choices of each block, [B], float32. */
  loadB: Value,
  capacity: number | null,
): Dispatch {
  return withPrecision('float32', () => {
    const [tokens, each] = choices.blocksTC.shape as [number, number];
    const blocks = loadB.shape[0] as number;
    const count = tokens * each;
    const slots = capacity ?? slotsPerGroup(count, blocks);
    const groups = capacity === null ? mostGroups(count, blocks, slots) : blocks;
    if (groups * slots + count > 2 ** 24)
      throw new ProgramError(`${count} choices among ${blocks} blocks are more than float32 can count`);
    const total = groups * slots;

    // Padding sorts behind all blocks.
    const chosenN = cast(reshape(choices.blocksTC, [count]), 'float32');
    const validN = validChoices(choices);
    const keyN = validN === undefined ? chosenN : where(validN, chosenN, blocks);
    const orderN = topK(negate(keyN), count).indices;
    const sortedN = cast(gather(keyN, orderN, 0), 'int32');

    const groupsB =
      capacity === null
        ? cast(cast(multiply(add(loadB, slots - 1), 1 / slots), 'int32'), 'float32')
        : filled('float32', [blocks], 1);
    const firstGroupB = sumBefore(groupsB);
    const table = (valuesB: Value) => gather(cast(pad(valuesB, 0, 0, 1), 'int32'), sortedN, 0);
    const placeN = constant(int32([count], [...Array(count).keys()]));
    const rankN = subtract(placeN, table(sumBefore(loadB)));
    const targetN = add(table(multiply(firstGroupB, slots)), rankN);
    const limits = [
      ...(capacity === null ? [] : [less(rankN, capacity)]),
      ...(validN === undefined ? [] : [less(sortedN, blocks)]),
    ];
    // What is dropped gets a place of its own behind the slots: no two choices may share one.
    const slotN = limits.reduce((slot, fits) => where(fits, slot, add(placeN, total)), targetN);
    const choiceAll = scatterElements(
      filled('int32', [total + count], count),
      slotN,
      cast(orderN, 'int32'),
      0,
    );
    const foundS = slice(choiceAll, 0, 0, total);
    const isTakenS = less(foundS, count);
    const slotOfN = scatterElements(filled('int32', [count], 0), orderN, slotN, 0);
    const isKeptN = limits.length === 0 ? undefined : less(slotOfN, total);
    const shape = [tokens, each];
    return {
      groups,
      slots,
      ...(capacity === null && { blockOfGroup: blockOfGroup(add(firstGroupB, groupsB), groups) }),
      choiceS: where(isTakenS, foundS, 0),
      takenS: cast(isTakenS, 'float32'),
      slotTC: reshape(isKeptN === undefined ? slotOfN : where(isKeptN, slotOfN, 0), shape),
      ...(isKeptN && { keptTC: reshape(cast(isKeptN, 'float32'), shape) }),
    };
  });
}

/** How often each block was chosen by real tokens, [B], float32. */
export function loadOf(choices: Choices, blocks: number): Value {
  const [tokens, each] = choices.blocksTC.shape as [number, number];
  const count = tokens * each;
  const { validT } = choices;
  const ones = filled('float32', [tokens, each], 1);
  const weights = validT === undefined ? ones : multiply(ones, reshape(validT, [tokens, 1]));
  const indices = reshape(choices.blocksTC, [count]);
  return scatterAdd(filled('float32', [blocks], 0), indices, reshape(weights, [count]), 0);
}

function validChoices({ blocksTC, validT }: Choices): Value | undefined {
  if (validT === undefined) return undefined;
  const [tokens, each] = blocksTC.shape as [number, number];
  const repeated = multiply(filled('float32', [tokens, each], 1), reshape(validT, [tokens, 1]));
  return less(0.5, reshape(repeated, [tokens * each]));
}

/** What moving a block's weights into a group costs, in rows that could be multiplied by them meanwhile; measured. */
const rowsPerMove = 40;

/** Slots of a group: few leave little empty, many move the weights less often. */
export function slotsPerGroup(choices: number, blocks: number): number {
  const cost = (slots: number) => mostGroups(choices, blocks, slots) * (slots + rowsPerMove);
  let best = 1;
  for (let slots = 2; slots < 2 * choices; slots *= 2) if (cost(slots) < cost(best)) best = slots;
  return best;
}

/** Groups that any distribution of choices among blocks fits into: the sum of ceil(load / slots) at its largest. */
export function mostGroups(choices: number, blocks: number, slots: number): number {
  return Math.floor((choices + Math.min(blocks, choices) * (slots - 1)) / slots);
}

/** For each group the block whose groups are not over yet. Groups behind the last one go to the last block. */
function blockOfGroup(endB: Value, groups: number): Value {
  const blocks = endB.shape[0] as number;
  const groupG1 = constant(
    float32(
      [groups, 1],
      [...Array(groups).keys()].map((group) => group + 0.5),
    ),
  );
  const overG = sum(cast(less(reshape(endB, [1, blocks]), groupG1), 'float32'), [1]);
  return cast(where(less(overG, blocks), overG, blocks - 1), 'int32');
}

/** For each element of a list the sum of those before it, in two steps of about the square root of its length. */
export function sumBefore(values: Value): Value {
  const length = values.shape[0] as number;
  const width = Math.ceil(Math.sqrt(length));
  const rows = Math.ceil(length / width);
  const table = reshape(pad(values, 0, 0, rows * width - length), [rows, width]);
  const inRow = matmul(table, constant(triangle(width)));
  const above = matmul(constant(triangle(rows)), sum(table, [1], { keepDimensions: true }), {
    transposeA: true,
  });
  return slice(reshape(add(inRow, above), [rows * width]), 0, 0, length);
}

/** 1 above the diagonal: x times it sums what stands before. */
function triangle(size: number) {
  return float32(
    [size, size],
    Float32Array.from({ length: size * size }, (_, at) => (Math.floor(at / size) < at % size ? 1 : 0)),
  );
}
