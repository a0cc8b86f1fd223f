/**
 * Rows on their way to the groups of a dispatch and back, and the groups' products. Rows find their way back by the
 * inverse of the sorting, forwards and backwards: nothing is scattered.
 *
 * Shape suffixes: T tokens, C choices of a token, B blocks, G groups, M slots of a group, S = G * M slots, D hidden.
 */
import {
  add,
  after,
  cast,
  constant,
  divide,
  equal,
  gather,
  matmul,
  multiply,
  reshape,
  slice,
  sum,
} from '../tensor/operations.ts';
import type { Value } from '../tensor/program.ts';
import { int32, type Shape, sizeOf } from '../tensor/tensor.ts';
import { withGradient, withPrecision } from '../tensor/trace.ts';
import type { Dispatch } from './dispatch.ts';

/** The rows of x [T, D] that the slots take, [S, D]; the gradients of a token's slots are gathered and added up. */
export function toSlots(x: Value, dispatch: Dispatch): Value {
  const [, each] = dispatch.slotTC.shape as [number, number];
  const rows = gather(x, tokenOf(dispatch.choiceS, each), 0);
  return withGradient(rows, {
    inputs: [x],
    backward: (dy) => [sumOverChoices(dy, dispatch, dispatch.keptTC)],
  });
}

/**
 * What the blocks made of the tokens, [S, D], added up by token, [T, D].
 * @param weightsTC what each choice is multiplied by; 1 when left out
 */
export function fromSlots(ySD: Value, dispatch: Dispatch, weightsTC?: Value): Value {
  const { slotTC, keptTC, choiceS, takenS } = dispatch;
  const [tokens, each] = slotTC.shape as [number, number];
  const kept =
    weightsTC === undefined || keptTC === undefined ? (weightsTC ?? keptTC) : multiply(weightsTC, keptTC);
  const result = sumOverChoices(ySD, dispatch, kept);
  const slots = choiceS.shape[0] as number;
  return withGradient(result, {
    inputs: weightsTC === undefined ? [ySD] : [ySD, weightsTC],
    backward: (dy, asked) => {
      const toSlot = () => {
        const weightS =
          weightsTC === undefined
            ? takenS
            : multiply(takenS, gather(reshape(weightsTC, [tokens * each]), choiceS, 0));
        return multiply(gather(dy, tokenOf(choiceS, each), 0), reshape(weightS, [slots, 1]));
      };
      const toWeight = () => {
        const width = dy.shape[1] as number;
        const products = multiply(gather(ySD, slotTC, 0), reshape(dy, [tokens, 1, width]));
        const dotTC = sum(products, [2]);
        return keptTC === undefined ? dotTC : multiply(dotTC, keptTC);
      };
      return [asked(0) ? toSlot() : undefined, asked(1) ? toWeight() : undefined];
    },
  });
}

/** sum over C of weights[t, c] * rows[slot[t, c]], [T, D] */
function sumOverChoices(rowsSD: Value, { slotTC }: Dispatch, weightsTC: Value | undefined): Value {
  const [tokens, each] = slotTC.shape as [number, number];
  const width = rowsSD.shape[1] as number;
  const term = (choice: number) => {
    const column = (table: Value) => slice(table, 1, choice, choice + 1);
    const rows = gather(rowsSD, reshape(column(slotTC), [tokens]), 0);
    return weightsTC === undefined ? rows : multiply(rows, column(weightsTC));
  };
  // Term by term while there are few: [T, C, D] would be written once more.
  if (each <= 4) return [...Array(each).keys()].map(term).reduce((total, own) => add(total, own));
  const rowsTCD = gather(rowsSD, slotTC, 0);
  if (weightsTC === undefined) return sum(rowsTCD, [1]);
  return reshape(matmul(reshape(weightsTC, [tokens, 1, each]), rowsTCD), [tokens, width]);
}

/** The token of each choice. */
function tokenOf(choiceS: Value, each: number): Value {
  if (each === 1) return choiceS;
  return cast(divideExactly(choiceS, each), 'int32');
}

function divideExactly(integers: Value, by: number): Value {
  // Half a unit above the whole number: rounding cannot carry the quotient below it.
  return withPrecision('float32', () => divide(add(cast(integers, 'float32'), 0.5), by));
}

/**
 * Rows [G, M, I] times their blocks' matrices, of matrices [B, O, I], [G, M, O]. The backward pass takes the matrices
 * of the groups anew: held, they would be as many times the weights as there are groups to a block.
 */
export function productByGroup(xGMI: Value, weightBOI: Value, { blockOfGroup, groups }: Dispatch): Value {
  if (blockOfGroup === undefined) return matmul(xGMI, weightBOI, { transposeB: true });
  return withGradient(matmul(xGMI, gather(weightBOI, blockOfGroup, 0), { transposeB: true }), {
    inputs: [xGMI, weightBOI],
    backward: (dy, asked) => [
      asked(0) ? matmul(dy, gather(weightBOI, after(blockOfGroup, [dy]), 0)) : undefined,
      asked(1)
        ? sumByBlock(matmul(dy, xGMI, { transposeA: true }), blockOfGroup, groups, weightBOI.shape)
        : undefined,
    ],
  });
}

/** The vectors of each group's block, [G, 1, F], of vectors [B, 1, F]. */
export function vectorByGroup(vectorB1F: Value, { blockOfGroup, groups }: Dispatch): Value {
  if (blockOfGroup === undefined) return vectorB1F;
  return withGradient(gather(vectorB1F, blockOfGroup, 0), {
    inputs: [vectorB1F],
    backward: (dy) => [sumByBlock(dy, blockOfGroup, groups, vectorB1F.shape)],
  });
}

/** What the groups [G, ...] of each block say together, [B, ...]: a product with ones and zeros. */
function sumByBlock(value: Value, blockOfGroup: Value, groups: number, shape: Shape): Value {
  return withPrecision('float32', () => {
    const [blocks] = shape as [number];
    const numbers = constant(int32([1, blocks], [...Array(blocks).keys()]));
    const isOwn = cast(equal(reshape(blockOfGroup, [groups, 1]), numbers), 'float32');
    const flat = reshape(cast(value, 'float32'), [groups, sizeOf(shape) / blocks]);
    return reshape(matmul(isOwn, flat, { transposeA: true }), shape);
  });
}
