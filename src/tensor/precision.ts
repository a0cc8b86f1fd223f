/**
 * Mixed precision (Micikevicius et al. 2018) by rule: matrix products in a half type, what sums or exponentiates in
 * float32, as PyTorch's autocast does. Parameters stay float32; gradients flow back through the casts by themselves.
 */
import type { Primitive, Value } from './program.ts';
import type { DType } from './tensor.ts';

/** The type of a model's matrix products. */
export type Precision = 'float32' | 'float16' | 'bfloat16';

export type HalfType = Exclude<Precision, 'float32'>;

export const halfTypes: readonly HalfType[] = ['float16', 'bfloat16'];

/**
 * `compute`: in the half type, whatever comes in. `float32`: the half types are too coarse or too narrow for it.
 * `widest`: in the widest type that comes in, so that no number is rounded for it.
 * `given`: every operand in the type that it has.
 */
type Rule = 'compute' | 'float32' | 'widest' | 'given';

/** One entry per primitive; a primitive without one does not compile. */
export const autocastRules: { readonly [P in Primitive]: Rule } = {
  input: 'widest',
  constant: 'widest',
  add: 'widest',
  subtract: 'widest',
  multiply: 'widest',
  divide: 'widest',
  negate: 'widest',
  // A float16 exponential overflows at 11.1.
  exp: 'float32',
  log: 'float32',
  sqrt: 'float32',
  sigmoid: 'widest',
  tanh: 'widest',
  // Its tails are differences of numbers close to one.
  erf: 'float32',
  silu: 'widest',
  detach: 'widest',
  after: 'given',
  equal: 'widest',
  less: 'widest',
  where: 'widest',
  cast: 'widest',
  softmax: 'float32',
  logSoftmax: 'float32',
  topK: 'widest',
  rmsNorm: 'float32',
  // Rounded angles would blur the positions; PyTorch's Llama rotates in float32 as well.
  rotary: 'float32',
  sum: 'float32',
  // What is subtracted from it afterwards is not to be rounded again.
  max: 'float32',
  matmul: 'compute',
  reshape: 'widest',
  transpose: 'widest',
  slice: 'widest',
  // ONNX Runtime's CUDA provider pads no bfloat16.
  pad: 'float32',
  concat: 'widest',
  expand: 'widest',
  gather: 'widest',
  gatherElements: 'widest',
  scatterElements: 'widest',
  scatterAdd: 'float32',
};

/** Whether a type is one of the half types. */
export function isHalf(dtype: DType): dtype is HalfType {
  return dtype === 'float16' || dtype === 'bfloat16';
}

const isMixed = ({ dtype }: Pick<Value, 'dtype'>) => dtype === 'float32' || isHalf(dtype);

/**
 * The type in which a primitive takes its operands; each is taken to it by a cast.
 * @param compute the half type of matrix products; undefined: nothing is cast
 */
export function operandType(
  primitive: Primitive,
  operand: Pick<Value, 'dtype'>,
  operands: readonly Pick<Value, 'dtype'>[],
  compute: HalfType | undefined,
): DType {
  // Indices and conditions have no precision, and float64 is there for those who check.
  if (compute === undefined || !isMixed(operand)) return operand.dtype;
  const rule = autocastRules[primitive];
  if (rule === 'compute') return compute;
  if (rule === 'float32') return 'float32';
  if (rule === 'given') return operand.dtype;
  return operands.some(({ dtype }) => dtype === 'float32') ? 'float32' : operand.dtype;
}
