/** The vocabulary models are written in: one function per primitive, and a few compositions of them. */
import { isHalf } from './precision.ts';
import { ProgramError, type Value } from './program.ts';
import { broadcastShapes } from './shapes.ts';
import { allocate, type DType, type Shape, sameShape, sizeOf, type Tensor, tensor } from './tensor.ts';
import { emit } from './trace.ts';

/** A value, or a number that becomes a constant of the other operand's dtype. */
export type Operand = Value | number;

const none = {} as const;

function only(values: readonly Value[]): Value {
  const value = values[0];
  if (value === undefined) throw new ProgramError('the primitive has no output');
  return value;
}

/** Numbers that are part of the program: a table, a mask, a frozen weight. */
export function constant(values: Tensor): Value {
  return only(emit('constant', [], { tensor: values }));
}

/** A constant of one repeated number. */
export function filled(dtype: DType, shape: Shape, value: number): Value {
  const scalar = allocate(isHalf(dtype) ? 'float32' : dtype, 1);
  if (scalar instanceof BigInt64Array) scalar.fill(BigInt(value));
  else scalar.fill(value);
  const one = isHalf(dtype)
    ? cast(constant(tensor('float32', [], scalar as Float32Array)), dtype)
    : constant(tensor(dtype, [], scalar));
  return shape.length === 0 ? one : expand(one, shape);
}

function operands(a: Operand, b: Operand): [Value, Value] {
  if (typeof a === 'number' && typeof b === 'number') {
    throw new ProgramError('one of the operands must be a value of the program');
  }
  const value = (typeof a === 'number' ? b : a) as Value;
  const lift = (operand: Operand) =>
    typeof operand === 'number' ? filled(value.dtype, [], operand) : operand;
  return [lift(a), lift(b)];
}

export const add = (a: Operand, b: Operand) => only(emit('add', operands(a, b), none));
export const subtract = (a: Operand, b: Operand) => only(emit('subtract', operands(a, b), none));
export const multiply = (a: Operand, b: Operand) => only(emit('multiply', operands(a, b), none));
export const divide = (a: Operand, b: Operand) => only(emit('divide', operands(a, b), none));
export const negate = (x: Value) => only(emit('negate', [x], none));
export const exp = (x: Value) => only(emit('exp', [x], none));
export const log = (x: Value) => only(emit('log', [x], none));
export const sqrt = (x: Value) => only(emit('sqrt', [x], none));
export const sigmoid = (x: Value) => only(emit('sigmoid', [x], none));
export const tanh = (x: Value) => only(emit('tanh', [x], none));
export const erf = (x: Value) => only(emit('erf', [x], none));
export const silu = (x: Value) => only(emit('silu', [x], none));
/** The value, through which no gradient flows. */
export const detach = (x: Value) => only(emit('detach', [x], none));
/** `x`, but not before `others` are there. */
export const after = (x: Value, others: readonly Value[]) =>
  others.length === 0 ? x : only(emit('after', [x, ...others], none));
export const equal = (a: Operand, b: Operand) => only(emit('equal', operands(a, b), none));
export const less = (a: Operand, b: Operand) => only(emit('less', operands(a, b), none));

/** `condition ? then : otherwise`, element by element. */
export function where(condition: Value, then: Operand, otherwise: Operand): Value {
  return only(emit('where', [condition, ...operands(then, otherwise)], none));
}

/** |x|, element by element. */
export const magnitude = (x: Value) => where(less(x, 0), negate(x), x);

export function cast(x: Value, dtype: DType): Value {
  return x.dtype === dtype ? x : only(emit('cast', [x], { dtype }));
}

/** Over the last axis. */
export const softmax = (x: Value) => only(emit('softmax', [x], none));
/** Logarithm of the softmax over the last axis. */
export const logSoftmax = (x: Value) => only(emit('logSoftmax', [x], none));

/** Root-mean-square normalisation over the last axis: `x / sqrt(mean(x²) + epsilon) * weight`. */
export const rmsNorm = (x: Value, weight: Value, epsilon: number) =>
  only(emit('rmsNorm', [x, weight], { epsilon }));

/** Rotates pairs (i, i + H / 2) of x [B, heads, T, H] by the angles of cosines and sines [B or 1, T, H / 2]. */
export const rotary = (x: Value, cosines: Value, sines: Value) =>
  only(emit('rotary', [x, cosines, sines], none));

/**
 * The k largest along the last axis in falling order, and where they stand (int64).
 * @param sorted false: in any order, which is faster where k is large
 */
export function topK(x: Value, k: number, { sorted = true } = {}): { values: Value; indices: Value } {
  const [values, indices] = emit('topK', [x], { k, ...(!sorted && { sorted }) });
  return { values: values as Value, indices: indices as Value };
}

export interface ReductionOptions {
  readonly keepDimensions?: boolean;
}

function axesOf(x: Value, axes: readonly number[] | undefined): number[] {
  const rank = x.shape.length;
  return (axes ?? [...x.shape.keys()]).map((axis) => (axis < 0 ? axis + rank : axis)).sort((a, b) => a - b);
}

/** Sum over the axes (negative ones count from the end; all when left out). */
export function sum(
  x: Value,
  axes?: readonly number[],
  { keepDimensions = false }: ReductionOptions = {},
): Value {
  return only(emit('sum', [x], { axes: axesOf(x, axes), keepDimensions }));
}

/** Largest element over the axes. */
export function max(
  x: Value,
  axes?: readonly number[],
  { keepDimensions = false }: ReductionOptions = {},
): Value {
  return only(emit('max', [x], { axes: axesOf(x, axes), keepDimensions }));
}

/** Mean over the axes. */
export function mean(x: Value, axes?: readonly number[], options: ReductionOptions = {}): Value {
  const count = axesOf(x, axes).reduce((product, axis) => product * (x.shape[axis] ?? 1), 1);
  return multiply(sum(x, axes, options), 1 / count);
}

export interface MatmulOptions {
  readonly transposeA?: boolean;
  readonly transposeB?: boolean;
  readonly scale?: number;
}

/**
 * `scale * op(A) op(B)` over the last two axes; leading axes broadcast. A stack of matrices times one matrix
 * runs as one large product.
 */
export function matmul(
  a: Value,
  b: Value,
  { transposeA = false, transposeB = false, scale = 1 }: MatmulOptions = {},
): Value {
  if (a.shape.length > 2 && b.shape.length === 2 && !transposeA) {
    const leading = a.shape.slice(0, -1);
    const flat = reshape(a, [sizeOf(leading), a.shape.at(-1) ?? 1]);
    const product = matmul(flat, b, { transposeB, scale });
    return reshape(product, [...leading, product.shape.at(-1) ?? 1]);
  }
  return only(emit('matmul', [a, b], { transposeA, transposeB, scale }));
}

/** `x Wᵀ + b` with the weight as [out, in], the way checkpoints store it. */
export function linear(x: Value, weight: Value, bias?: Value): Value {
  const product = matmul(x, weight, { transposeB: true });
  return bias === undefined ? product : add(product, bias);
}

export function reshape(x: Value, shape: Shape): Value {
  return sameShape(x.shape, shape) ? x : only(emit('reshape', [x], { shape }));
}

export function transpose(x: Value, permutation: readonly number[]): Value {
  const identity = permutation.every((axis, index) => axis === index);
  return identity ? x : only(emit('transpose', [x], { permutation }));
}

/** `start` up to, not including, `end` along one axis. */
export function slice(x: Value, axis: number, start: number, end: number): Value {
  const along = axis < 0 ? axis + x.shape.length : axis;
  if (start === 0 && end === x.shape[along]) return x;
  const starts = x.shape.map((_, other) => (other === along ? start : 0));
  const ends = x.shape.map((size, other) => (other === along ? end : size));
  return only(emit('slice', [x], { starts, ends }));
}

/** Zeros around a value along one axis. */
export function pad(x: Value, axis: number, before: number, after: number): Value {
  if (before === 0 && after === 0) return x;
  const along = axis < 0 ? axis + x.shape.length : axis;
  const at = (amount: number) => x.shape.map((_, other) => (other === along ? amount : 0));
  return only(emit('pad', [x], { before: at(before), after: at(after) }));
}

export function concat(values: readonly Value[], axis: number): Value {
  const first = values[0];
  if (first === undefined) throw new ProgramError('concat needs at least one value');
  if (values.length === 1) return first;
  return only(emit('concat', values, { axis: axis < 0 ? axis + first.shape.length : axis }));
}

/** Repeats along axes of size one (and new leading ones) up to `shape`. */
export function expand(x: Value, shape: Shape): Value {
  return sameShape(x.shape, shape) ? x : only(emit('expand', [x], { shape }));
}

/** Rows (or other slices) of `data` by index; `gather(table, ids, 0)` is an embedding lookup. */
export const gather = (data: Value, indices: Value, axis: number) =>
  only(emit('gather', [data, indices], { axis }));

/** One element per index along the axis: `out[i][j] = data[i][indices[i][j]]` for axis 1. */
export const gatherElements = (data: Value, indices: Value, axis: number) =>
  only(emit('gatherElements', [data, indices], { axis }));

/**
 * Puts each update where its index says along the axis: `out[i][indices[i][j]] = updates[i][j]` for axis 1. No two
 * indices may point to the same element.
 */
export const scatterElements = (data: Value, indices: Value, updates: Value, axis: number) =>
  only(emit('scatterElements', [data, indices, updates], { axis }));

/** Adds each update where its index says along the axis; repeated indices add up. */
export const scatterAdd = (data: Value, indices: Value, updates: Value, axis: number) =>
  only(emit('scatterAdd', [data, indices, updates], { axis }));

/** Sums a value over what broadcasting repeated, back to `shape`. */
export function unbroadcast(x: Value, shape: Shape): Value {
  if (sameShape(x.shape, shape)) return x;
  broadcastShapes(x.shape, shape);
  const extra = x.shape.length - shape.length;
  const axes = x.shape.flatMap((size, axis) =>
    axis < extra || (shape[axis - extra] === 1 && size !== 1) ? [axis] : [],
  );
  return reshape(sum(x, axes), shape);
}
