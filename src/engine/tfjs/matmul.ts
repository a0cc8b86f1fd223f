/** Matrix products, arranged so that the wasm backend multiplies with its fast kernel. */
import { type Shape, sizeOf } from '../../tensor/tensor.ts';
import type { Tf } from './backends.ts';
import { expandTo, type Held, type Rule } from './rule.ts';

/**
 * On wasm only the product of two single matrices, neither transposed, runs in XNNPACK; any other takes a plain loop
 * that is 10 to 50 times slower (27 against 0.5 to 2 GFLOP/s on one core). A product this large is worth a call of
 * its own, and the transposing.
 */
const flopsWorthACall = 200_000;

export const matmul: Rule<'matmul'> = ({ tf, a, b, attributes, output }) => {
  const { transposeA, transposeB, scale } = attributes;
  const [rows, columns] = lastTwo(output.shape);
  const inner = a.shape.at(transposeA ? -2 : -1) as number;
  if (inner === 0) return tf.zeros([...output.shape]);
  const split = tf.getBackend() === 'wasm' && 2 * rows * inner * columns >= flopsWorthACall;
  const product = split
    ? oneByOne(tf, transposed(tf, a, transposeA), transposed(tf, b, transposeB), output.shape)
    : tf.matMul(stack(tf, a, output.shape), stack(tf, b, output.shape), transposeA, transposeB);
  const shaped = tf.reshape(product, [...output.shape]);
  return scale === 1 ? shaped : tf.mul(shaped, scale);
};

const lastTwo = (shape: Shape) => shape.slice(-2) as [number, number];

function transposed(tf: Tf, x: Held, flag: boolean): Held {
  if (!flag) return x;
  const rank = x.shape.length;
  const permutation = x.shape.map((_, axis) => (axis < rank - 2 ? axis : 2 * rank - 3 - axis));
  return tf.transpose(x, permutation);
}

/** Matrices with one batch axis, as many as the result has; one that stands for all stays one. */
function stack(tf: Tf, x: Held, shape: Shape): Held {
  const [own, batch] = [x.shape.slice(0, -2), shape.slice(0, -2)];
  const full = sizeOf(own) === 1 ? x : expandTo(tf, x, [...batch, ...lastTwo(x.shape)]);
  return tf.reshape(full, [sizeOf(full.shape.slice(0, -2)), ...lastTwo(x.shape)]);
}

/** A call for each matrix, or one for all where they share the right factor. */
function oneByOne(tf: Tf, a: Held, b: Held, shape: Shape): Held {
  const [left, right] = [stack(tf, a, shape), stack(tf, b, shape)];
  const count = sizeOf(shape.slice(0, -2));
  if (right.shape[0] === 1) {
    const rows = sizeOf(left.shape.slice(0, -1));
    return tf.matMul(
      tf.reshape(left, [rows, left.shape[2] as number]),
      tf.reshape(right, lastTwo(right.shape)),
    );
  }
  // Reading the whole and writing the parts is copying memory; the kernels that take parts go element by element.
  const matrices = (all: Held) => {
    const [size, data] = [sizeOf(lastTwo(all.shape)), all.dataSync() as Float32Array];
    return (at: number) => {
      const start = all.shape[0] === 1 ? 0 : at * size;
      return tf.tensor(data.subarray(start, start + size), lastTwo(all.shape));
    };
  };
  const [leftAt, rightAt] = [matrices(left), matrices(right)];
  const products = Array.from({ length: count }, (_, at) =>
    tf.tidy(() => tf.matMul(leftAt(at), rightAt(at))),
  );
  return tf.concat(products, 0);
}
