/**
 * Primitives that take indices. The indices are read back and checked, because kernels do not check all of them: a
 * negative index counts from the end, one outside of the axis is an error.
 */
import { type Shape, sizeOf } from '../../tensor/tensor.ts';
import { type Held, numeric, type Rule, typedLike } from './rule.ts';

/** Rows (or other slices) of the data. */
export const gather: Rule<'gather'> = ({ tf, a: data, b: indices, attributes: { axis }, output }) => {
  const size = data.shape[axis] as number;
  const picked = Int32Array.from(indices.dataSync(), (value) => normalized(value, size));
  if (sizeOf(output.shape) === 0) return tf.zeros([...output.shape], data.dtype);
  const rows = tf.gather(numeric(tf, data), tf.tensor1d(picked, 'int32'), axis);
  return tf.reshape(typedLike(tf, rows, data), [...output.shape]);
};

/** One element for each index. */
export const gatherElements: Rule<'gatherElements'> = ({ tf, a: data, b: indices, attributes, output }) => {
  const flat = flatIndices(indices, data.shape, attributes.axis);
  if (flat.length === 0) return tf.zeros([...output.shape], data.dtype);
  const elements = tf.gather(tf.reshape(numeric(tf, data), [-1]), tf.tensor1d(flat, 'int32'));
  return tf.reshape(typedLike(tf, elements, data), [...output.shape]);
};

/** Puts each update where its index says. */
export const scatterElements: Rule<'scatterElements'> = ({
  tf,
  a: data,
  b: indices,
  c: updates,
  attributes,
}) => {
  const flat = flatIndices(indices, data.shape, attributes.axis);
  if (flat.length === 0) return data.clone();
  const where = tf.tensor2d(flat, [flat.length, 1], 'int32');
  const spread = (values: Held) => tf.scatterND(where, tf.reshape(values, [-1]), [data.size]);
  const isHit = tf.cast(spread(tf.ones(updates.shape, 'int32')), 'bool');
  const all = tf.where(isHit, spread(numeric(tf, updates)), tf.reshape(numeric(tf, data), [-1]));
  return tf.reshape(typedLike(tf, all, data), data.shape);
};

/** Adds each update where its index says. */
export const scatterAdd: Rule<'scatterAdd'> = ({ tf, a: data, b: indices, c: updates, attributes }) => {
  const flat = flatIndices(indices, data.shape, attributes.axis);
  if (flat.length === 0) return data.clone();
  const where = tf.tensor2d(flat, [flat.length, 1], 'int32');
  const sums = tf.scatterND(where, tf.reshape(updates, [-1]), [data.size]);
  return tf.add(data, tf.reshape(sums, data.shape));
};

/** Where each index points in the flat data. */
function flatIndices(indices: Held, shape: Shape, axis: number): Int32Array {
  const values = indices.dataSync();
  const flat = new Int32Array(values.length);
  const size = shape[axis] as number;
  const steps = shape.map((_, other) => sizeOf(shape.slice(other + 1)));
  const step = steps[axis] as number;
  const index = new Array<number>(shape.length).fill(0);
  // The position of `index` in the data, but for the axis.
  let base = 0;
  for (let at = 0; at < values.length; at++) {
    flat[at] = base + normalized(values[at] as number, size) * step;
    for (let other = shape.length - 1; other >= 0; other--) {
      const length = indices.shape[other] as number;
      const next = (index[other] as number) + 1;
      const wraps = next === length;
      index[other] = wraps ? 0 : next;
      if (other !== axis) base += (wraps ? 1 - length : 1) * (steps[other] as number);
      if (!wraps) break;
    }
  }
  return flat;
}

function normalized(value: number, size: number): number {
  const index = value < 0 ? value + size : value;
  if (index < 0 || index >= size) throw new RangeError(`index ${value} is outside of 0..${size - 1}`);
  return index;
}
