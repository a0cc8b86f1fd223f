/** Numbers on their way into and out of TensorFlow.js, which has float32, int32 and bool. */
import type * as TfTypes from '@tensorflow/tfjs-core';
import type { ValueType } from '../../tensor/program.ts';
import { allocate, type DType, type Tensor } from '../../tensor/tensor.ts';
import { EngineError } from '../engine.ts';
import type { Tf } from './backends.ts';
import { runError } from './failure.ts';

export type TfDType = 'float32' | 'int32' | 'bool';

/** What stands for a dtype; null for those that TensorFlow.js does not compute in. */
export const tfDType: Readonly<Record<DType, TfDType | null>> = {
  float32: 'float32',
  int32: 'int32',
  // Indices and token ids fit; uploads and sums check that they do.
  int64: 'int32',
  bool: 'bool',
  float16: null,
  bfloat16: null,
  float64: null,
};

const largest = 2n ** 31n - 1n;

/**
 * Copies a tensor to the backend.
 * @param what for the error: `input "ids"`
 * @throws EngineError for a dtype that TensorFlow.js lacks, an int64 that does not fit into int32, and want of memory
 */
export function upload(tf: Tf, source: Tensor, what: string): TfTypes.Tensor {
  const own = tfDType[source.dtype];
  if (own === null) throw new EngineError(`${what} is ${source.dtype}, which TensorFlow.js does not have`);
  // Copied, because some backends hold on to the array, and its owner may write into it later.
  const data = source.dtype === 'int64' ? narrowed(source.data, what) : source.data.slice();
  try {
    return tf.tensor(data as TfTypes.TypedArray, [...source.shape], own);
  } catch (error) {
    throw runError(error, what);
  }
}

/** int64 as int32. */
function narrowed(data: BigInt64Array, what: string): Int32Array {
  const narrow = new Int32Array(data.length);
  for (const [at, value] of data.entries()) {
    if (value > largest || value < -largest - 1n) {
      throw new EngineError(
        `${what}: ${value} at ${at} does not fit into int32, the only integers of TensorFlow.js`,
      );
    }
    narrow[at] = Number(value);
  }
  return narrow;
}

/** Copies a tensor of the backend into plain memory, into that of `target` where it is given. */
export function download(held: TfTypes.Tensor, { dtype, shape }: ValueType, target?: Tensor): Tensor {
  const data = held.dataSync();
  // Plain JavaScript's casts keep the array of the dtype before.
  const own = target ?? ({ dtype, shape, data: allocate(dtype, data.length) } as Tensor);
  if (own.dtype === 'int64') own.data.set(BigInt64Array.from(data, BigInt));
  else own.data.set(data);
  return own;
}
