/** Reverse-mode differentiation: each primitive's rule, written in primitives, so that gradients are programs too. */
import * as ops from './operations.ts';
import { type Node, type NodeOf, type Primitive, ProgramError, sourcesOf, type Value } from './program.ts';
import type { DType } from './tensor.ts';
import { absoluteScope, customGradientOf, recordedNodes, scope } from './trace.ts';

/**
 * Given the gradients of the outputs, the gradients of the inputs (undefined: none, or not asked for).
 * `outputs[i]` is undefined where the loss does not depend on that output.
 */
type GradientRule<P extends Primitive> = (context: {
  readonly node: NodeOf<P>;
  readonly inputs: readonly Value[];
  readonly attributes: NodeOf<P>['attributes'];
  /** The node's first output, and its gradient. */
  readonly y: Value;
  readonly dy: Value;
  /** Whether somebody asks for the gradient of input `index`. */
  readonly asked: (index: number) => boolean;
}) => readonly (Value | undefined)[];

const noGradient = () => [];

function input(inputs: readonly Value[], index: number): Value {
  const value = inputs[index];
  if (value === undefined) throw new ProgramError(`the primitive has no input ${index}`);
  return value;
}

/** Binary arithmetic: the local gradients, summed over what broadcasting repeated. */
function broadcasting<P extends Primitive>(
  left: (dy: Value, a: Value, b: Value, y: Value) => Value,
  right: (dy: Value, a: Value, b: Value, y: Value) => Value,
): GradientRule<P> {
  return ({ inputs, y, dy, asked }) => {
    const [a, b] = [input(inputs, 0), input(inputs, 1)];
    return [
      asked(0) ? ops.unbroadcast(left(dy, a, b, y), a.shape) : undefined,
      asked(1) ? ops.unbroadcast(right(dy, a, b, y), b.shape) : undefined,
    ];
  };
}

/** Element-wise functions of one value. */
function elementwise<P extends Primitive>(rule: (dy: Value, x: Value, y: Value) => Value): GradientRule<P> {
  return ({ inputs, y, dy }) => [rule(dy, input(inputs, 0), y)];
}

/** Puts the reduced axes back with size one. */
function unreduce(value: Value, x: Value, axes: readonly number[]): Value {
  return ops.reshape(
    value,
    x.shape.map((size, axis) => (axes.includes(axis) ? 1 : size)),
  );
}

function zeros(x: Value): Value {
  return ops.filled(x.dtype, x.shape, 0);
}

/** One entry per primitive; a primitive without one does not compile. */
const gradientRules: { readonly [P in Primitive]: GradientRule<P> } = {
  input: noGradient,
  constant: noGradient,
  add: broadcasting(
    (dy) => dy,
    (dy) => dy,
  ),
  subtract: broadcasting(
    (dy) => dy,
    (dy) => ops.negate(dy),
  ),
  multiply: broadcasting(
    (dy, _a, b) => ops.multiply(dy, b),
    (dy, a) => ops.multiply(dy, a),
  ),
  divide: broadcasting(
    (dy, _a, b) => ops.divide(dy, b),
    (dy, _a, b, y) => ops.negate(ops.divide(ops.multiply(dy, y), b)),
  ),
  negate: elementwise((dy) => ops.negate(dy)),
  exp: elementwise((dy, _x, y) => ops.multiply(dy, y)),
  log: elementwise((dy, x) => ops.divide(dy, x)),
  sqrt: elementwise((dy, _x, y) => ops.divide(ops.multiply(dy, 0.5), y)),
  sigmoid: elementwise((dy, _x, y) => ops.multiply(dy, ops.multiply(y, ops.subtract(1, y)))),
  tanh: elementwise((dy, _x, y) => ops.multiply(dy, ops.subtract(1, ops.multiply(y, y)))),
  erf: elementwise((dy, x) =>
    ops.multiply(dy, ops.multiply(ops.exp(ops.negate(ops.multiply(x, x))), 2 / Math.sqrt(Math.PI))),
  ),
  silu: elementwise((dy, x, y) => {
    const gate = ops.sigmoid(x);
    return ops.multiply(dy, ops.add(gate, ops.multiply(y, ops.subtract(1, gate))));
  }),
  detach: noGradient,
  after: ({ dy }) => [dy],
  equal: noGradient,
  less: noGradient,
  where: ({ inputs, dy, asked }) => {
    const [condition, then, otherwise] = [input(inputs, 0), input(inputs, 1), input(inputs, 2)];
    return [
      undefined,
      asked(1) ? ops.unbroadcast(ops.where(condition, dy, zeros(dy)), then.shape) : undefined,
      asked(2) ? ops.unbroadcast(ops.where(condition, zeros(dy), dy), otherwise.shape) : undefined,
    ];
  },
  cast: ({ inputs, dy }) => {
    const x = input(inputs, 0);
    const floating: DType[] = ['float32', 'float16', 'bfloat16', 'float64'];
    return [floating.includes(x.dtype) ? ops.cast(dy, x.dtype) : undefined];
  },
  softmax: elementwise((dy, _x, y) =>
    ops.multiply(y, ops.subtract(dy, ops.sum(ops.multiply(dy, y), [-1], { keepDimensions: true }))),
  ),
  logSoftmax: elementwise((dy, _x, y) =>
    ops.subtract(dy, ops.multiply(ops.exp(y), ops.sum(dy, [-1], { keepDimensions: true }))),
  ),
  rmsNorm: ({ inputs, attributes, dy, asked }) => {
    const [x, weight] = [input(inputs, 0), input(inputs, 1)];
    const meanSquare = ops.mean(ops.multiply(x, x), [-1], { keepDimensions: true });
    const inverse = ops.divide(1, ops.sqrt(ops.add(meanSquare, attributes.epsilon)));
    const unit = ops.multiply(x, inverse);
    const scaled = ops.multiply(dy, weight);
    const dx = () => {
      const projection = ops.mean(ops.multiply(scaled, unit), [-1], { keepDimensions: true });
      return ops.multiply(inverse, ops.subtract(scaled, ops.multiply(unit, projection)));
    };
    return [
      asked(0) ? dx() : undefined,
      asked(1) ? ops.unbroadcast(ops.multiply(dy, unit), weight.shape) : undefined,
    ];
  },
  // The inverse of a rotation turns the other way. The tables are not learned.
  rotary: ({ inputs, dy, asked }) => {
    if (asked(1) || asked(2)) throw new ProgramError('rotary: no gradient flows to the tables of angles');
    return [ops.rotary(dy, input(inputs, 1), ops.negate(input(inputs, 2)))];
  },
  topK: ({ node, inputs, dy }) => {
    const x = input(inputs, 0);
    const indices = input(node.outputs, 1);
    return [ops.scatterAdd(zeros(x), indices, dy, x.shape.length - 1)];
  },
  sum: ({ inputs, attributes, dy }) => {
    const x = input(inputs, 0);
    return [ops.expand(unreduce(dy, x, attributes.axes), x.shape)];
  },
  // Elements that tie for the maximum share the gradient.
  max: ({ inputs, attributes, y, dy }) => {
    const x = input(inputs, 0);
    const isMax = ops.cast(ops.equal(x, ops.expand(unreduce(y, x, attributes.axes), x.shape)), x.dtype);
    const ties = ops.sum(isMax, attributes.axes, { keepDimensions: true });
    return [ops.multiply(isMax, ops.divide(unreduce(dy, x, attributes.axes), ties))];
  },
  matmul: ({ inputs, attributes, dy, asked }) => {
    const [a, b] = [input(inputs, 0), input(inputs, 1)];
    const { transposeA, transposeB, scale } = attributes;
    const da = () =>
      transposeA
        ? ops.matmul(b, dy, { transposeA: transposeB, transposeB: true, scale })
        : ops.matmul(dy, b, { transposeB: !transposeB, scale });
    const db = () =>
      transposeB
        ? ops.matmul(dy, a, { transposeA: true, transposeB: transposeA, scale })
        : ops.matmul(a, dy, { transposeA: !transposeA, scale });
    return [
      asked(0) ? ops.unbroadcast(da(), a.shape) : undefined,
      asked(1) ? ops.unbroadcast(db(), b.shape) : undefined,
    ];
  },
  reshape: ({ inputs, dy }) => [ops.reshape(dy, input(inputs, 0).shape)],
  transpose: ({ attributes, dy }) => {
    const inverse = attributes.permutation.map((_, axis) => attributes.permutation.indexOf(axis));
    return [ops.transpose(dy, inverse)];
  },
  slice: ({ inputs, attributes, dy }) => {
    const padded = input(inputs, 0).shape.reduce((value, size, axis) => {
      const [start, end] = [attributes.starts[axis] ?? 0, attributes.ends[axis] ?? size];
      return ops.pad(value, axis, start, size - end);
    }, dy);
    return [padded];
  },
  pad: ({ inputs, attributes, dy }) => {
    const cut = input(inputs, 0).shape.reduce((value, size, axis) => {
      const start = attributes.before[axis] ?? 0;
      return ops.slice(value, axis, start, start + size);
    }, dy);
    return [cut];
  },
  concat: ({ inputs, attributes, dy, asked }) => {
    let start = 0;
    return inputs.map((value, index) => {
      const end = start + (value.shape[attributes.axis] ?? 0);
      const part = asked(index) ? ops.slice(dy, attributes.axis, start, end) : undefined;
      start = end;
      return part;
    });
  },
  expand: ({ inputs, dy }) => [ops.unbroadcast(dy, input(inputs, 0).shape)],
  gather: ({ inputs, attributes, dy }) => {
    const [data, indices] = [input(inputs, 0), input(inputs, 1)];
    const { axis } = attributes;
    // One flat index axis, repeated over the other axes: scatterAdd works element by element.
    const count = indices.shape.reduce((product, size) => product * size, 1);
    const shape = [...data.shape.slice(0, axis), count, ...data.shape.slice(axis + 1)];
    const column = ops.reshape(
      indices,
      shape.map((_, other) => (other === axis ? count : 1)),
    );
    return [ops.scatterAdd(zeros(data), ops.expand(column, shape), ops.reshape(dy, shape), axis)];
  },
  gatherElements: ({ inputs, attributes, dy }) => [
    ops.scatterAdd(zeros(input(inputs, 0)), input(inputs, 1), dy, attributes.axis),
  ],
  scatterElements: ({ inputs, attributes: { axis }, dy, asked }) => {
    const [indices, updates] = [input(inputs, 1), input(inputs, 2)];
    return [
      asked(0) ? ops.scatterElements(dy, indices, zeros(updates), axis) : undefined,
      undefined,
      asked(2) ? ops.gatherElements(dy, indices, axis) : undefined,
    ];
  },
  scatterAdd: ({ inputs, attributes, dy, asked }) => [
    asked(0) ? dy : undefined,
    undefined,
    asked(2) ? ops.gatherElements(dy, input(inputs, 1), attributes.axis) : undefined,
  ],
};

/**
 * The gradients of a scalar with respect to some values, recorded into the surrounding trace. Only what lies
 * between them is differentiated: frozen parts cost nothing.
 * @param seed the gradient of `loss` itself; one when left out
 * @throws ProgramError when the loss is not a scalar, or does not depend on one of the values
 */
export function gradients(loss: Value, of: readonly Value[], seed?: Value): Value[] {
  if (loss.shape.length !== 0 && seed === undefined) {
    throw new ProgramError(
      `the gradient of "${loss.name}" needs a scalar, it has shape [${loss.shape.join(', ')}]`,
    );
  }
  const nodes = [...recordedNodes()];
  const asked = new Set<Value>(of);
  for (const node of nodes) {
    if (sourcesOf(node).some((value) => asked.has(value))) for (const value of node.outputs) asked.add(value);
  }
  const reached = new Set<Value>([loss]);
  for (const node of [...nodes].reverse()) {
    if (node.outputs.some((value) => reached.has(value)))
      for (const value of sourcesOf(node)) reached.add(value);
  }
  const unreached = of.filter((value) => !reached.has(value));
  if (unreached.length > 0) {
    const names = unreached.map((value) => `"${value.name}"`).join(', ');
    throw new ProgramError(`"${loss.name}" does not depend on ${names}, so there is no gradient to compute`);
  }
  const total = new Map<Value, Value>();
  total.set(loss, seed ?? absoluteScope('gradient', () => ops.filled(loss.dtype, loss.shape, 1)));
  for (const node of nodes.reverse()) {
    const custom = node.outputs[0] && customGradientOf(node.outputs[0]);
    const inputs = custom?.inputs ?? sourcesOf(node);
    const wanted = inputs.map((value) => asked.has(value));
    if (!wanted.includes(true) || !node.outputs.some((value) => total.has(value))) continue;
    const first = node.outputs[0] as Value;
    const dy = total.get(first);
    const other = node.outputs.slice(1).find((value) => total.has(value));
    if (other !== undefined)
      throw new ProgramError(
        `no gradient flows through "${other.name}", the second output of ${node.primitive}`,
      );
    if (dy === undefined) continue;
    const parts = absoluteScope('gradient', () =>
      scope(first.name, () =>
        custom === undefined
          ? applyRule(node, dy, wanted)
          : custom.backward(dy, (index) => wanted[index] ?? false),
      ),
    );
    for (const [index, value] of inputs.entries()) {
      const made = parts[index];
      if (made === undefined || !asked.has(value)) continue;
      // Under mixed precision a rule may compute in another type than the value's.
      const part = absoluteScope('gradient', () => scope(first.name, () => ops.cast(made, value.dtype)));
      const earlier = total.get(value);
      total.set(
        value,
        earlier === undefined ? part : absoluteScope('gradient', () => ops.add(earlier, part)),
      );
    }
  }
  return of.map((value) => {
    const gradient = total.get(value);
    if (gradient === undefined)
      throw new ProgramError(`no gradient flows from "${loss.name}" to "${value.name}"`);
    return gradient;
  });
}

function applyRule(node: Node, dy: Value, wanted: readonly boolean[]): readonly (Value | undefined)[] {
  const rule = gradientRules[node.primitive] as GradientRule<Primitive>;
  return rule({
    node,
    inputs: node.inputs,
    attributes: node.attributes,
    y: node.outputs[0] as Value,
    dy,
    asked: (index) => wanted[index] ?? false,
  });
}
