/** What a lowering to TensorFlow.js is, and the pieces that several of them share. */
import type * as TfTypes from '@tensorflow/tfjs-core';
import type { NodeOf, Primitive, Value } from '../../tensor/program.ts';
import { type Shape, sameShape, sizeOf } from '../../tensor/tensor.ts';
import type { Tf } from './backends.ts';

export type Held = TfTypes.Tensor;

export interface Call<P extends Primitive> {
  readonly tf: Tf;
  readonly attributes: NodeOf<P>['attributes'];
  readonly inputs: readonly Held[];
  /** The first three inputs; no primitive but `concat` has more. */
  readonly a: Held;
  readonly b: Held;
  readonly c: Held;
  /** The first output: what its tensor must look like. */
  readonly output: Value;
}

/**
 * Computes a node. It runs inside `tf.tidy`: what it does not return is freed. It returns tensors of its own, never
 * an input itself.
 */
export type Rule<P extends Primitive> = (call: Call<P>) => Held | Held[];

/**
 * Repeats along axes of size one up to a shape. Multiplying with ones is broadcast by every backend, and on wasm
 * sixty times as fast as its Tile kernel.
 */
export function expandTo(tf: Tf, x: Held, shape: Shape): Held {
  if (sameShape(x.shape, shape)) return x.clone();
  if (sizeOf(shape) === x.size) return tf.reshape(x, [...shape]);
  if (x.dtype === 'bool') return tf.cast(expandTo(tf, tf.cast(x, 'int32'), shape), 'bool');
  return tf.mul(x, tf.fill([...shape], 1, x.dtype as 'float32'));
}

/** Booleans as int32: many kernels compute no booleans. */
export function numeric(tf: Tf, x: Held): Held {
  return x.dtype === 'bool' ? tf.cast(x, 'int32') : x;
}

/** Undoes `numeric` for a result of the dtype of `like`. */
export function typedLike(tf: Tf, x: Held, like: Held): Held {
  return x.dtype === like.dtype ? x : tf.cast(x, like.dtype);
}

/**
 * int64 is computed as int32, which wraps around at 2^31 without a word. The same in float32 is off by little, and by
 * 2^32 where it wrapped.
 * @throws RangeError when it did
 */
export function mustFit(tf: Tf, result: Held, inFloats: Held): void {
  const difference = tf.abs(tf.sub(inFloats, tf.cast(result, 'float32')));
  const [largest = 0] = tf.max(difference).dataSync();
  if (largest < 2 ** 30 || difference.size === 0) return;
  throw new RangeError('an int64 does not fit into int32, the only integers of TensorFlow.js');
}
