/** Random cases for every primitive: shapes, attributes and inputs away from kinks and poles. */

import type { Random } from '../../src/config/random.ts';
import * as ops from '../../src/tensor/operations.ts';
import type { Primitive, Value, ValueType } from '../../src/tensor/program.ts';
import { sizeOf } from '../../src/tensor/tensor.ts';

export interface Case {
  readonly inputs: Readonly<Record<string, ValueType>>;
  /** Inputs whose gradient is checked. */
  readonly differentiable: readonly string[];
  readonly feeds: Readonly<Record<string, number[]>>;
  readonly model: (inputs: Readonly<Record<string, Value>>) => Value;
}

type Draw = (random: Random) => Case;

const float = (shape: readonly number[]): ValueType => ({ dtype: 'float64', shape });

function shape(random: Random, rank: number, largest = 4): number[] {
  return Array.from({ length: rank }, () => 1 + random.integer(largest));
}

/** A shape that broadcasts with the other: axes of size one, and missing leading axes. */
function broadcastable(random: Random, other: readonly number[]): number[] {
  const thinned = other.map((size) => (random.integer(3) === 0 ? 1 : size));
  return thinned.slice(random.integer(other.length + 1));
}

function normals(random: Random, size: number): number[] {
  return Array.from({ length: size }, () => random.normal());
}

/** Away from zero, so that a quotient or a logarithm is tame. */
function positives(random: Random, size: number): number[] {
  return Array.from({ length: size }, () => 0.5 + random.uniform() * 2);
}

/** Distinct by at least 0.1, so that a small step changes no order. */
function distinct(random: Random, size: number): number[] {
  return random.shuffle(Array.from({ length: size }, (_, index) => (index - size / 2) * 0.1));
}

function binary(apply: (a: Value, b: Value) => Value, numbers = normals): Draw {
  return (random) => {
    const full = shape(random, 1 + random.integer(3));
    const [a, b] =
      random.integer(2) === 0 ? [full, broadcastable(random, full)] : [broadcastable(random, full), full];
    return {
      inputs: { a: float(a), b: float(b) },
      differentiable: ['a', 'b'],
      feeds: { a: numbers(random, sizeOf(a)), b: numbers(random, sizeOf(b)) },
      model: ({ a, b }) => apply(a as Value, b as Value),
    };
  };
}

function unary(apply: (x: Value, random: Random) => Value, numbers = normals, rank?: number): Draw {
  return (random) => {
    const dims = shape(random, rank ?? 1 + random.integer(3));
    return {
      inputs: { x: float(dims) },
      differentiable: ['x'],
      feeds: { x: numbers(random, sizeOf(dims)) },
      model: ({ x }) => apply(x as Value, random),
    };
  };
}

function axesOf(random: Random, x: Value): number[] {
  const axes = [...x.shape.keys()].filter(() => random.integer(2) === 0);
  return axes.length === 0 ? [0] : axes;
}

function indexed(
  apply: (data: Value, indices: Value, axis: number, random: Random) => Value,
  sameRank: boolean,
  most = 5,
): Draw {
  return (random) => {
    const dims = shape(random, 1 + random.integer(3));
    const axis = random.integer(dims.length);
    const wanted = sameRank
      ? dims.map((size, other) => (other === axis ? 1 + random.integer(most) : 1 + random.integer(size)))
      : shape(random, random.integer(3));
    const indices = Array.from({ length: sizeOf(wanted) }, () => random.integer(dims[axis] as number));
    return {
      inputs: { data: float(dims), indices: { dtype: 'int32', shape: wanted } },
      differentiable: ['data'],
      feeds: { data: normals(random, sizeOf(dims)), indices },
      model: ({ data, indices }) => apply(data as Value, indices as Value, axis, random),
    };
  };
}

/** One entry per primitive, so that a new one cannot be left untested. */
export const cases: { readonly [P in Exclude<Primitive, 'input'>]: Draw } = {
  constant: unary((x) => ops.multiply(x, ops.filled(x.dtype, [1], 1.5))),
  add: binary(ops.add),
  subtract: binary(ops.subtract),
  multiply: binary(ops.multiply),
  divide: binary(ops.divide, positives),
  negate: unary(ops.negate),
  exp: unary(ops.exp),
  log: unary(ops.log, positives),
  sqrt: unary(ops.sqrt, positives),
  sigmoid: unary(ops.sigmoid),
  tanh: unary(ops.tanh),
  erf: unary(ops.erf),
  silu: unary(ops.silu),
  // Linear in what is detached: central differences would see a slope where the gradient has none.
  detach: (random) => {
    const dims = shape(random, 2);
    return {
      inputs: { x: float(dims), held: float(dims) },
      differentiable: ['x'],
      feeds: { x: normals(random, sizeOf(dims)), held: normals(random, sizeOf(dims)) },
      model: ({ x, held }) => ops.multiply(x as Value, ops.detach(held as Value)),
    };
  },
  after: (random) => {
    const [dims, other] = [shape(random, random.integer(3)), shape(random, random.integer(3))];
    return {
      inputs: { x: float(dims), other: float(other), whole: { dtype: 'int32', shape: other } },
      differentiable: ['x'],
      feeds: {
        x: normals(random, sizeOf(dims)),
        other: normals(random, sizeOf(other)),
        whole: Array.from({ length: sizeOf(other) }, () => random.integer(9)),
      },
      // The others are computed for their own sake as well: what is not is not waited for.
      model: ({ x, other, whole }) => {
        const others = [ops.exp(other as Value), whole as Value];
        const waited = ops.after(ops.exp(x as Value), others);
        return ops.add(waited, ops.sum(ops.detach(others[0] as Value)));
      },
    };
  },
  equal: binary((a, b) => ops.add(ops.cast(ops.equal(a, b), a.dtype), ops.add(a, b))),
  less: binary((a, b) => ops.add(ops.cast(ops.less(a, b), a.dtype), ops.add(a, b))),
  where: (random) => {
    const full = shape(random, 1 + random.integer(3));
    const [a, b, c] = [broadcastable(random, full), broadcastable(random, full), full];
    return {
      inputs: { a: float(a), b: float(b), condition: { dtype: 'bool', shape: c } },
      differentiable: ['a', 'b'],
      feeds: {
        a: normals(random, sizeOf(a)),
        b: normals(random, sizeOf(b)),
        condition: Array.from({ length: sizeOf(c) }, () => random.integer(2)),
      },
      model: ({ a, b, condition }) => ops.where(condition as Value, a as Value, b as Value),
    };
  },
  cast: unary(
    (x) => ops.add(x, ops.cast(ops.cast(x, 'int32'), x.dtype)),
    (random, size) => Array.from({ length: size }, () => random.integer(9) - 4 + 0.5),
  ),
  softmax: unary(ops.softmax),
  logSoftmax: unary(ops.logSoftmax),
  rmsNorm: (random) => {
    const dims = shape(random, 1 + random.integer(3));
    const weight = [dims.at(-1) as number];
    return {
      inputs: { x: float(dims), weight: float(weight) },
      differentiable: ['x', 'weight'],
      feeds: { x: normals(random, sizeOf(dims)), weight: normals(random, sizeOf(weight)) },
      model: ({ x, weight }) => ops.rmsNorm(x as Value, weight as Value, 0.1),
    };
  },
  rotary: (random) => {
    const [batch, heads, rows, half] = [1, 2, 3, 4].map(() => 1 + random.integer(3)) as [
      number,
      number,
      number,
      number,
    ];
    const dims = [batch, heads, rows, 2 * half];
    const table = [random.integer(2) === 0 ? 1 : batch, rows, half];
    return {
      inputs: { x: float(dims), cosines: float(table), sines: float(table) },
      differentiable: ['x'],
      feeds: {
        x: normals(random, sizeOf(dims)),
        cosines: normals(random, sizeOf(table)),
        sines: normals(random, sizeOf(table)),
      },
      model: ({ x, cosines, sines }) => ops.rotary(x as Value, cosines as Value, sines as Value),
    };
  },
  topK: unary((x, random) => {
    const { values, indices } = ops.topK(x, 1 + random.integer(x.shape.at(-1) as number));
    return ops.add(values, ops.cast(indices, x.dtype));
  }, distinct),
  sum: unary((x, random) => ops.sum(x, axesOf(random, x), { keepDimensions: random.integer(2) === 0 })),
  max: unary(
    (x, random) => ops.max(x, axesOf(random, x), { keepDimensions: random.integer(2) === 0 }),
    distinct,
  ),
  matmul: (random) => {
    const [m, k, n] = [1 + random.integer(4), 1 + random.integer(4), 1 + random.integer(4)];
    const batch = shape(random, random.integer(3));
    const options = { transposeA: random.integer(2) === 0, transposeB: random.integer(2) === 0, scale: 0.5 };
    const a = [...batch, ...(options.transposeA ? [k, m] : [m, k])];
    const b = [...broadcastable(random, batch), ...(options.transposeB ? [n, k] : [k, n])];
    return {
      inputs: { a: float(a), b: float(b) },
      differentiable: ['a', 'b'],
      feeds: { a: normals(random, sizeOf(a)), b: normals(random, sizeOf(b)) },
      model: ({ a, b }) => ops.matmul(a as Value, b as Value, options),
    };
  },
  reshape: unary((x) => ops.reshape(x, [sizeOf(x.shape), 1])),
  transpose: unary((x, random) => ops.transpose(x, random.shuffle([...x.shape.keys()])), normals, 3),
  slice: unary((x, random) => {
    const axis = random.integer(x.shape.length);
    const start = random.integer(x.shape[axis] as number);
    return ops.slice(x, axis, start, start + 1 + random.integer((x.shape[axis] as number) - start));
  }),
  pad: unary((x, random) => ops.pad(x, random.integer(x.shape.length), random.integer(3), random.integer(3))),
  concat: (random) => {
    const dims = shape(random, 1 + random.integer(3));
    const axis = random.integer(dims.length);
    const other = dims.map((size, at) => (at === axis ? 1 + random.integer(4) : size));
    return {
      inputs: { a: float(dims), b: float(other) },
      differentiable: ['a', 'b'],
      feeds: { a: normals(random, sizeOf(dims)), b: normals(random, sizeOf(other)) },
      model: ({ a, b }) => ops.concat([a as Value, b as Value, a as Value], axis),
    };
  },
  expand: (random) => {
    const full = shape(random, 1 + random.integer(3));
    const dims = broadcastable(random, full);
    return {
      inputs: { x: float(dims) },
      differentiable: ['x'],
      feeds: { x: normals(random, sizeOf(dims)) },
      model: ({ x }) => ops.expand(x as Value, full),
    };
  },
  gather: indexed((data, indices, axis) => ops.gather(data, indices, axis), false),
  gatherElements: indexed((data, indices, axis) => ops.gatherElements(data, indices, axis), true),
  // One index along the axis, so that no two point to the same element.
  scatterElements: indexed(
    (data, indices, axis) => {
      const updates = ops.multiply(ops.gatherElements(data, indices, axis), 3);
      return ops.scatterElements(ops.multiply(data, data), indices, updates, axis);
    },
    true,
    1,
  ),
  scatterAdd: indexed((data, indices, axis) => {
    // The updates depend on the data as well, so that both gradients are seen.
    const updates = ops.multiply(ops.gatherElements(data, indices, axis), 3);
    return ops.scatterAdd(ops.multiply(data, data), indices, updates, axis);
  }, true),
};
