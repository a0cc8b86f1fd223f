/** Each primitive in operations of TensorFlow.js. */
import type { Primitive } from '../../tensor/program.ts';
import { gather, gatherElements, scatterAdd, scatterElements } from './indexing.ts';
import { matmul } from './matmul.ts';
import { expandTo, mustFit, numeric, type Rule, typedLike } from './rule.ts';
import { type TfDType, tfDType } from './transfer.ts';

type UnaryName = 'neg' | 'exp' | 'log' | 'sqrt' | 'sigmoid' | 'tanh' | 'erf' | 'softmax' | 'logSoftmax';

/** A primitive that is an operation of TensorFlow.js as it stands. */
const unary =
  <P extends Primitive>(name: UnaryName): Rule<P> =>
  ({ tf, a }) =>
    tf[name](a);

const binary =
  <P extends Primitive>(name: 'add' | 'sub' | 'mul' | 'div'): Rule<P> =>
  ({ tf, a, b, output }) => {
    const result = tf[name](a, b);
    if (output.dtype === 'int64') mustFit(tf, result, tf[name](tf.cast(a, 'float32'), tf.cast(b, 'float32')));
    return result;
  };

const comparison =
  <P extends Primitive>(name: 'equal' | 'less'): Rule<P> =>
  ({ tf, a, b }) =>
    tf[name](numeric(tf, a), numeric(tf, b));

/** @param empty what comes out where nothing goes in */
const reduction =
  <P extends 'sum' | 'max'>(name: 'sum' | 'max', empty: number): Rule<P> =>
  ({ tf, a, attributes: { axes, keepDimensions }, output }) => {
    if (axes.length === 0) return a.clone();
    if (a.size === 0) return tf.fill([...output.shape], empty, a.dtype as TfDType);
    const result = tf[name](a, [...axes], keepDimensions);
    if (output.dtype === 'int64') {
      mustFit(tf, result, tf[name](tf.cast(a, 'float32'), [...axes], keepDimensions));
    }
    return result;
  };

const where: Rule<'where'> = ({ tf, a: condition, b: then, c: otherwise, output: { shape } }) => {
  const [left, right] = [then, otherwise].map((x) => expandTo(tf, numeric(tf, x), shape));
  return typedLike(
    tf,
    tf.where(expandTo(tf, condition, shape), left as typeof then, right as typeof then),
    then,
  );
};

const cast: Rule<'cast'> = ({ tf, a, output }) => {
  const dtype = tfDType[output.dtype] as TfDType;
  if (dtype === a.dtype) return a.clone();
  // The kernels keep the low byte of a number.
  if (dtype === 'bool') return tf.notEqual(a, 0);
  const result = tf.cast(a, dtype);
  if (output.dtype === 'int64') mustFit(tf, result, a);
  return result;
};

const rmsNorm: Rule<'rmsNorm'> = ({ tf, a: x, b: weight, attributes: { epsilon } }) => {
  const meanSquare = tf.mean(tf.mul(x, x), -1, true);
  return tf.mul(tf.mul(x, tf.rsqrt(tf.add(meanSquare, epsilon))), weight);
};

/**
 * The halves of all rows are brought together first: on wasm, taking halves row by row costs ten times what two
 * transpositions cost.
 */
const rotary: Rule<'rotary'> = ({ tf, a: x, b: cosines, c: sines, output: { shape } }) => {
  const [batch = 1, heads = 1, rows = 1, width = 2] = shape;
  const [half, count] = [width / 2, batch * heads * rows];
  const halves = tf.transpose(tf.reshape(x, [count, 2, half]), [1, 0, 2]);
  const [first, second] = [0, 1].map((at) =>
    tf.reshape(tf.slice(halves, [at, 0, 0], [1, count, half]), [batch, heads, rows, half]),
  ) as [typeof x, typeof x];
  const [cosine, sine] = [cosines, sines].map((angles) => tf.expandDims(angles, 1)) as [typeof x, typeof x];
  const turned = tf.stack([
    tf.sub(tf.mul(first, cosine), tf.mul(second, sine)),
    tf.add(tf.mul(second, cosine), tf.mul(first, sine)),
  ]);
  const joined = tf.transpose(tf.reshape(turned, [2, count, half]), [1, 0, 2]);
  return tf.reshape(joined, [batch, heads, rows, width]);
};

/** One entry per primitive; a primitive without one does not compile. */
export const rules: { readonly [P in Primitive]: Rule<P> } = {
  // The engine itself holds inputs and constants.
  input: () => [],
  constant: () => [],
  add: binary('add'),
  subtract: binary('sub'),
  multiply: binary('mul'),
  divide: binary('div'),
  negate: unary('neg'),
  exp: unary('exp'),
  log: unary('log'),
  sqrt: unary('sqrt'),
  sigmoid: unary('sigmoid'),
  tanh: unary('tanh'),
  erf: unary('erf'),
  silu: ({ tf, a }) => tf.mul(a, tf.sigmoid(a)),
  detach: ({ a }) => a.clone(),
  // Nodes run in the program's order.
  after: ({ a }) => a.clone(),
  equal: comparison('equal'),
  less: comparison('less'),
  where,
  cast,
  softmax: unary('softmax'),
  logSoftmax: unary('logSoftmax'),
  topK: ({ tf, a, attributes: { k } }) => {
    const { values, indices } = tf.topk(a, k, true);
    return [values, indices];
  },
  rmsNorm,
  rotary,
  sum: reduction('sum', 0),
  max: reduction('max', Number.NEGATIVE_INFINITY),
  matmul,
  reshape: ({ tf, a, output: { shape } }) => tf.reshape(a, [...shape]),
  transpose: ({ tf, a, attributes: { permutation } }) => tf.transpose(a, [...permutation]),
  slice: ({ tf, a, attributes: { starts }, output: { shape } }) =>
    shape.length === 0 ? a.clone() : tf.slice(a, [...starts], [...shape]),
  pad: ({ tf, a, attributes: { before, after } }) =>
    tf.pad(
      a,
      before.map((amount, axis): [number, number] => [amount, after[axis] ?? 0]),
    ),
  concat: ({ tf, inputs, attributes: { axis } }) => tf.concat([...inputs], axis),
  expand: ({ tf, a, output }) => expandTo(tf, a, output.shape),
  gather,
  gatherElements,
  scatterElements,
  scatterAdd,
};
