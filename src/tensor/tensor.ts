/** Concrete numbers: what goes into and comes out of a compiled tensor program. */

export type DType = 'float32' | 'float16' | 'bfloat16' | 'float64' | 'int32' | 'int64' | 'bool';

/** Row-major values. float16 and bfloat16 are kept as their bit patterns; bool as 0 or 1. */
export type TensorData = {
  float32: Float32Array;
  float16: Uint16Array;
  bfloat16: Uint16Array;
  float64: Float64Array;
  int32: Int32Array;
  int64: BigInt64Array;
  bool: Uint8Array;
};

export type Shape = readonly number[];

export type Tensor = {
  [D in DType]: { readonly dtype: D; readonly shape: Shape; readonly data: TensorData[D] };
}[DType];

export const bytesPerElement: Readonly<Record<DType, number>> = {
  float32: 4,
  float16: 2,
  bfloat16: 2,
  float64: 8,
  int32: 4,
  int64: 8,
  bool: 1,
};

/** Number of elements of a shape; 1 for a scalar (the empty shape). */
export function sizeOf(shape: Shape): number {
  let size = 1;
  for (const dimension of shape) size *= dimension;
  return size;
}

/** `[2, 3]` */
export function formatShape(shape: Shape): string {
  return `[${shape.join(', ')}]`;
}

export function sameShape(a: Shape, b: Shape): boolean {
  return a.length === b.length && a.every((dimension, axis) => dimension === b[axis]);
}

/** Zero-filled storage for `size` elements of a dtype. */
export function allocate<D extends DType>(dtype: D, size: number): TensorData[D] {
  const storage: { [K in DType]: () => TensorData[K] } = {
    float32: () => new Float32Array(size),
    float16: () => new Uint16Array(size),
    bfloat16: () => new Uint16Array(size),
    float64: () => new Float64Array(size),
    int32: () => new Int32Array(size),
    int64: () => new BigInt64Array(size),
    bool: () => new Uint8Array(size),
  };
  return storage[dtype]();
}

/**
 * Makes a tensor and checks that data and shape agree.
 * @throws RangeError when the number of elements differs from the shape's.
 */
export function tensor<D extends DType>(dtype: D, shape: Shape, data: TensorData[D]): Tensor & { dtype: D } {
  if (data.length !== sizeOf(shape)) {
    throw new RangeError(
      `a ${dtype} tensor of shape ${formatShape(shape)} needs ${sizeOf(shape)} elements, got ${data.length}`,
    );
  }
  return { dtype, shape, data } as Tensor & { dtype: D };
}

export function float32(shape: Shape, data: Float32Array | readonly number[]): Tensor & { dtype: 'float32' } {
  return tensor('float32', shape, data instanceof Float32Array ? data : Float32Array.from(data));
}

export function int32(shape: Shape, data: Int32Array | readonly number[]): Tensor & { dtype: 'int32' } {
  return tensor('int32', shape, data instanceof Int32Array ? data : Int32Array.from(data));
}

/** Zeros of a dtype and shape. */
export function zeros<D extends DType>(dtype: D, shape: Shape): Tensor & { dtype: D } {
  return tensor(dtype, shape, allocate(dtype, sizeOf(shape)));
}
