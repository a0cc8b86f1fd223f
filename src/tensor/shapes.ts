/** What each primitive makes of its inputs' types, and how many floating-point operations that takes. */
import type { NodeOf, Primitive, ValueType } from './program.ts';
import { type DType, formatShape, type Shape, sameShape, sizeOf } from './tensor.ts';

export interface ShapeRule<P extends Primitive> {
  /** @throws Error with a message that says what does not fit; the caller adds where. */
  readonly types: (inputs: readonly ValueType[], attributes: NodeOf<P>['attributes']) => readonly ValueType[];
  /** Floating-point operations; a multiply-add counts as two, a transcendental function as one. */
  readonly flops: (
    inputs: readonly ValueType[],
    outputs: readonly ValueType[],
    attributes: NodeOf<P>['attributes'],
  ) => number;
}

const floating: ReadonlySet<DType> = new Set(['float32', 'float16', 'bfloat16', 'float64']);
const integer: ReadonlySet<DType> = new Set(['int32', 'int64']);

/** The shape that numpy's broadcasting gives. */
export function broadcastShapes(a: Shape, b: Shape): Shape {
  const rank = Math.max(a.length, b.length);
  return Array.from({ length: rank }, (_, axis) => {
    const left = a[axis - rank + a.length] ?? 1;
    const right = b[axis - rank + b.length] ?? 1;
    if (left !== right && left !== 1 && right !== 1) {
      throw new Error(`shapes ${formatShape(a)} and ${formatShape(b)} do not broadcast`);
    }
    return left === 1 ? right : left;
  });
}

function arity<const N extends number>(inputs: readonly ValueType[], count: N): readonly ValueType[] {
  if (inputs.length !== count) throw new Error(`takes ${count} values, got ${inputs.length}`);
  return inputs;
}

function at(inputs: readonly ValueType[], index: number): ValueType {
  const type = inputs[index];
  if (type === undefined) throw new Error(`takes at least ${index + 1} values, got ${inputs.length}`);
  return type;
}

function mustFloat(type: ValueType): ValueType {
  if (!floating.has(type.dtype)) throw new Error(`takes floating-point values, got ${type.dtype}`);
  return type;
}

function mustInteger(type: ValueType): ValueType {
  if (!integer.has(type.dtype)) throw new Error(`takes integer indices, got ${type.dtype}`);
  return type;
}

function sameDType(a: ValueType, b: ValueType): DType {
  if (a.dtype !== b.dtype) throw new Error(`dtypes differ: ${a.dtype} and ${b.dtype}`);
  return a.dtype;
}

function mustAxis(type: ValueType, axis: number): number {
  const size = type.shape[axis];
  if (size === undefined || !Number.isInteger(axis)) {
    throw new Error(`axis ${axis} is outside of shape ${formatShape(type.shape)}`);
  }
  return size;
}

const perElement = (_: readonly ValueType[], outputs: readonly ValueType[]) => sizeOf(at(outputs, 0).shape);
const perInputElement = (inputs: readonly ValueType[]) => sizeOf(at(inputs, 0).shape);
const free = () => 0;

function arithmetic<P extends Primitive>(): ShapeRule<P> {
  return {
    types: (inputs) => {
      arity(inputs, 2);
      const [a, b] = [at(inputs, 0), at(inputs, 1)];
      const dtype = sameDType(a, b);
      if (dtype === 'bool') throw new Error('takes numbers, got bool');
      return [{ dtype, shape: broadcastShapes(a.shape, b.shape) }];
    },
    flops: perElement,
  };
}

function comparison<P extends Primitive>(): ShapeRule<P> {
  return {
    types: (inputs) => {
      arity(inputs, 2);
      const [a, b] = [at(inputs, 0), at(inputs, 1)];
      sameDType(a, b);
      return [{ dtype: 'bool', shape: broadcastShapes(a.shape, b.shape) }];
    },
    flops: perElement,
  };
}

function unary<P extends Primitive>(): ShapeRule<P> {
  return { types: (inputs) => [mustFloat(at(arity(inputs, 1), 0))], flops: perElement };
}

function alongLastAxis<P extends Primitive>(flopsPerElement: number): ShapeRule<P> {
  return {
    types: (inputs) => {
      const type = mustFloat(at(arity(inputs, 1), 0));
      mustAxis(type, type.shape.length - 1);
      return [type];
    },
    flops: (inputs) => flopsPerElement * perInputElement(inputs),
  };
}

function reduction<P extends 'sum' | 'max'>(): ShapeRule<P> {
  return {
    types: (inputs, { axes, keepDimensions }) => {
      const type = at(arity(inputs, 1), 0);
      if (type.dtype === 'bool') throw new Error('takes numbers, got bool');
      for (const axis of axes) mustAxis(type, axis);
      if (new Set(axes).size !== axes.length) throw new Error(`axes ${formatShape(axes)} repeat`);
      const shape = keepDimensions
        ? type.shape.map((size, axis) => (axes.includes(axis) ? 1 : size))
        : type.shape.filter((_, axis) => !axes.includes(axis));
      return [{ dtype: type.dtype, shape }];
    },
    flops: perInputElement,
  };
}

function matrixDimensions(type: ValueType, transpose: boolean): [rows: number, columns: number] {
  const rank = type.shape.length;
  if (rank < 2) throw new Error(`takes matrices, got shape ${formatShape(type.shape)}`);
  const [rows, columns] = [mustAxis(type, rank - 2), mustAxis(type, rank - 1)];
  return transpose ? [columns, rows] : [rows, columns];
}

/** One entry per primitive; a primitive without one does not compile. */
export const shapeRules: { readonly [P in Primitive]: ShapeRule<P> } = {
  input: {
    types: () => {
      throw new Error('inputs are declared, not computed');
    },
    flops: free,
  },
  constant: { types: (_, { tensor }) => [{ dtype: tensor.dtype, shape: tensor.shape }], flops: free },
  add: arithmetic(),
  subtract: arithmetic(),
  multiply: arithmetic(),
  divide: arithmetic(),
  negate: unary(),
  exp: unary(),
  log: unary(),
  sqrt: unary(),
  sigmoid: unary(),
  tanh: unary(),
  erf: unary(),
  silu: { ...unary(), flops: (inputs) => 2 * perInputElement(inputs) },
  detach: { types: (inputs) => [at(arity(inputs, 1), 0)], flops: free },
  after: { types: (inputs) => [at(inputs, 0)], flops: free },
  equal: comparison(),
  less: comparison(),
  where: {
    types: (inputs) => {
      arity(inputs, 3);
      const [condition, then, otherwise] = [at(inputs, 0), at(inputs, 1), at(inputs, 2)];
      if (condition.dtype !== 'bool') throw new Error(`takes a bool condition, got ${condition.dtype}`);
      const dtype = sameDType(then, otherwise);
      return [
        { dtype, shape: broadcastShapes(condition.shape, broadcastShapes(then.shape, otherwise.shape)) },
      ];
    },
    flops: free,
  },
  cast: { types: (inputs, { dtype }) => [{ dtype, shape: at(arity(inputs, 1), 0).shape }], flops: free },
  softmax: alongLastAxis(5),
  logSoftmax: alongLastAxis(5),
  rmsNorm: {
    types: (inputs, { epsilon }) => {
      arity(inputs, 2);
      const [x, weight] = [mustFloat(at(inputs, 0)), at(inputs, 1)];
      const width = mustAxis(x, x.shape.length - 1);
      if (!sameShape(weight.shape, [width]))
        throw new Error(`the weight of a width of ${width} has shape ${formatShape(weight.shape)}`);
      if (!(epsilon >= 0)) throw new Error(`epsilon ${epsilon} is not positive`);
      return [{ dtype: sameDType(x, weight), shape: x.shape }];
    },
    flops: (inputs) => 4 * perInputElement(inputs),
  },
  rotary: {
    types: (inputs) => {
      arity(inputs, 3);
      const [x, cosines, sines] = [mustFloat(at(inputs, 0)), at(inputs, 1), at(inputs, 2)];
      const [batch, , rows, width] = x.shape;
      const [repeated] = cosines.shape;
      const table = [repeated, rows, (width ?? 0) / 2] as number[];
      if (x.shape.length !== 4 || (repeated !== 1 && repeated !== batch) || !sameShape(cosines.shape, table))
        throw new Error(`a table ${formatShape(cosines.shape)} does not rotate ${formatShape(x.shape)}`);
      if (!sameShape(sines.shape, table))
        throw new Error(`sines ${formatShape(sines.shape)} differ from cosines ${formatShape(table)}`);
      sameDType(cosines, sines);
      return [{ dtype: sameDType(x, cosines), shape: x.shape }];
    },
    flops: (inputs) => 3 * perInputElement(inputs),
  },
  topK: {
    types: (inputs, { k }) => {
      const type = mustFloat(at(arity(inputs, 1), 0));
      const size = mustAxis(type, type.shape.length - 1);
      if (!Number.isInteger(k) || k < 1 || k > size) throw new Error(`k = ${k} is not in 1..${size}`);
      const shape = [...type.shape.slice(0, -1), k];
      return [
        { dtype: type.dtype, shape },
        { dtype: 'int64', shape },
      ];
    },
    flops: perInputElement,
  },
  sum: reduction(),
  max: reduction(),
  matmul: {
    types: (inputs, { transposeA, transposeB }) => {
      arity(inputs, 2);
      const [a, b] = [mustFloat(at(inputs, 0)), mustFloat(at(inputs, 1))];
      const [rows, inner] = matrixDimensions(a, transposeA);
      const [innerB, columns] = matrixDimensions(b, transposeB);
      if (inner !== innerB) {
        const mark = (transposed: boolean) => (transposed ? ' transposed' : '');
        throw new Error(
          `inner dimensions differ: ${formatShape(a.shape)}${mark(transposeA)} x ${formatShape(b.shape)}${mark(transposeB)}`,
        );
      }
      const batch = broadcastShapes(a.shape.slice(0, -2), b.shape.slice(0, -2));
      return [{ dtype: sameDType(a, b), shape: [...batch, rows, columns] }];
    },
    flops: (inputs, outputs, { transposeA }) =>
      2 * sizeOf(at(outputs, 0).shape) * matrixDimensions(at(inputs, 0), transposeA)[1],
  },
  reshape: {
    types: (inputs, { shape }) => {
      const type = at(arity(inputs, 1), 0);
      if (sizeOf(shape) !== sizeOf(type.shape)) {
        throw new Error(`${formatShape(type.shape)} does not reshape to ${formatShape(shape)}`);
      }
      return [{ dtype: type.dtype, shape }];
    },
    flops: free,
  },
  transpose: {
    types: (inputs, { permutation }) => {
      const type = at(arity(inputs, 1), 0);
      const sorted = [...permutation].sort((a, b) => a - b);
      if (!sameShape(sorted, [...type.shape.keys()])) {
        throw new Error(
          `${formatShape(permutation)} does not permute the axes of ${formatShape(type.shape)}`,
        );
      }
      return [{ dtype: type.dtype, shape: permutation.map((axis) => mustAxis(type, axis)) }];
    },
    flops: free,
  },
  slice: {
    types: (inputs, { starts, ends }) => {
      const type = at(arity(inputs, 1), 0);
      if (starts.length !== type.shape.length || ends.length !== type.shape.length) {
        throw new Error(`needs a start and an end for each axis of ${formatShape(type.shape)}`);
      }
      const shape = type.shape.map((size, axis) => {
        const [start, end] = [starts[axis] ?? 0, ends[axis] ?? size];
        if (start < 0 || end > size || start > end) {
          throw new Error(`${start}..${end} is outside of axis ${axis} of ${formatShape(type.shape)}`);
        }
        return end - start;
      });
      return [{ dtype: type.dtype, shape }];
    },
    flops: free,
  },
  pad: {
    types: (inputs, { before, after }) => {
      const type = mustFloat(at(arity(inputs, 1), 0));
      if (before.length !== type.shape.length || after.length !== type.shape.length) {
        throw new Error(`needs paddings for each axis of ${formatShape(type.shape)}`);
      }
      const shape = type.shape.map((size, axis) => {
        const [left, right] = [before[axis] ?? 0, after[axis] ?? 0];
        if (left < 0 || right < 0) throw new Error('paddings are not negative');
        return left + size + right;
      });
      return [{ dtype: type.dtype, shape }];
    },
    flops: free,
  },
  concat: {
    types: (inputs, { axis }) => {
      const first = at(inputs, 0);
      mustAxis(first, axis);
      let size = 0;
      for (const type of inputs) {
        sameDType(first, type);
        const rest = type.shape.map((value, other) => (other === axis ? (first.shape[axis] ?? 0) : value));
        if (!sameShape(rest, first.shape)) {
          throw new Error(
            `${formatShape(first.shape)} and ${formatShape(type.shape)} differ beside axis ${axis}`,
          );
        }
        size += mustAxis(type, axis);
      }
      return [
        { dtype: first.dtype, shape: first.shape.map((value, other) => (other === axis ? size : value)) },
      ];
    },
    flops: free,
  },
  expand: {
    types: (inputs, { shape }) => {
      const type = at(arity(inputs, 1), 0);
      if (!sameShape(broadcastShapes(type.shape, shape), shape)) {
        throw new Error(`${formatShape(type.shape)} does not expand to ${formatShape(shape)}`);
      }
      return [{ dtype: type.dtype, shape }];
    },
    flops: free,
  },
  gather: {
    types: (inputs, { axis }) => {
      arity(inputs, 2);
      const [data, indices] = [at(inputs, 0), mustInteger(at(inputs, 1))];
      mustAxis(data, axis);
      return [
        {
          dtype: data.dtype,
          shape: [...data.shape.slice(0, axis), ...indices.shape, ...data.shape.slice(axis + 1)],
        },
      ];
    },
    flops: free,
  },
  gatherElements: {
    types: (inputs, { axis }) => {
      arity(inputs, 2);
      const [data, indices] = [at(inputs, 0), mustInteger(at(inputs, 1))];
      mustElementIndices(data, indices, axis);
      return [{ dtype: data.dtype, shape: indices.shape }];
    },
    flops: free,
  },
  scatterElements: { types: scatterTypes, flops: free },
  scatterAdd: {
    types: (inputs, { axis }) => {
      mustFloat(at(inputs, 0));
      return scatterTypes(inputs, { axis });
    },
    flops: (inputs) => sizeOf(at(inputs, 2).shape),
  },
};

function scatterTypes(inputs: readonly ValueType[], { axis }: { readonly axis: number }): ValueType[] {
  arity(inputs, 3);
  const [data, indices, updates] = [at(inputs, 0), mustInteger(at(inputs, 1)), at(inputs, 2)];
  sameDType(data, updates);
  mustElementIndices(data, indices, axis);
  if (!sameShape(indices.shape, updates.shape)) {
    throw new Error(
      `indices ${formatShape(indices.shape)} and updates ${formatShape(updates.shape)} differ in shape`,
    );
  }
  return [data];
}

function mustElementIndices(data: ValueType, indices: ValueType, axis: number): void {
  mustAxis(data, axis);
  const fits =
    indices.shape.length === data.shape.length &&
    indices.shape.every((size, other) => other === axis || size <= (data.shape[other] ?? 0));
  if (!fits) {
    throw new Error(
      `indices ${formatShape(indices.shape)} do not fit ${formatShape(data.shape)} along axis ${axis}`,
    );
  }
}

/** Floating-point operations of one node. */
export function flopsOf(node: { readonly [P in Primitive]: NodeOf<P> }[Primitive]): number {
  const rule = shapeRules[node.primitive] as ShapeRule<typeof node.primitive>;
  return rule.flops(node.inputs, node.outputs, node.attributes as never);
}
