/**
 * The reference interpreter: every primitive written out as plainly as possible in float64, to be read and
 * trusted. It is the oracle for the engines; it is slow on purpose.
 */
import { castTensor } from './halfPrecision.ts';
import { type NodeOf, type Primitive, type Program, ProgramError, type Value } from './program.ts';
import { formatShape, type Shape, sameShape, sizeOf, type Tensor } from './tensor.ts';

/** Numbers of any dtype, held as float64 (int64 exactly up to 2^53; bool as 0 and 1). */
export interface Numbers {
  readonly shape: Shape;
  readonly data: Float64Array;
}

type Evaluate<P extends Primitive> = (
  inputs: readonly Numbers[],
  attributes: NodeOf<P>['attributes'],
  outputs: readonly Value[],
) => readonly Numbers[];

/** Elements between neighbours along each axis; 0 along axes of size one, so that they broadcast. */
function strides(shape: Shape, rank = shape.length): number[] {
  const result = new Array<number>(rank).fill(0);
  let step = 1;
  for (let axis = shape.length - 1; axis >= 0; axis--) {
    const size = shape[axis] as number;
    if (size !== 1) result[axis + rank - shape.length] = step;
    step *= size;
  }
  return result;
}

/** Calls `visit` with every index of a shape in row-major order. */
function forEachIndex(shape: Shape, visit: (index: readonly number[], flat: number) => void): void {
  const index = new Array<number>(shape.length).fill(0);
  const size = sizeOf(shape);
  for (let flat = 0; flat < size; flat++) {
    visit(index, flat);
    for (let axis = shape.length - 1; axis >= 0; axis--) {
      const next = (index[axis] as number) + 1;
      index[axis] = next === shape[axis] ? 0 : next;
      if (index[axis] !== 0) break;
    }
  }
}

function offset(index: readonly number[], steps: readonly number[]): number {
  let position = 0;
  for (let axis = 0; axis < index.length; axis++)
    position += (index[axis] as number) * (steps[axis] as number);
  return position;
}

/** Fills a shape from a function of the index. */
function build(shape: Shape, element: (index: readonly number[], flat: number) => number): Numbers {
  const data = new Float64Array(sizeOf(shape));
  forEachIndex(shape, (index, flat) => {
    data[flat] = element(index, flat);
  });
  return { shape, data };
}

function get(inputs: readonly Numbers[], position: number): Numbers {
  return inputs[position] as Numbers;
}

/** Reads a value at an index of a shape it broadcasts to. */
function reader(value: Numbers, rank: number): (index: readonly number[]) => number {
  const steps = strides(value.shape, rank);
  return (index) => value.data[offset(index, steps)] as number;
}

function shapeOf(outputs: readonly Value[], position = 0): Shape {
  return (outputs[position] as Value).shape;
}

function map<P extends Primitive>(apply: (x: number) => number): Evaluate<P> {
  return (inputs) => [{ shape: get(inputs, 0).shape, data: get(inputs, 0).data.map(apply) }];
}

function zip<P extends Primitive>(apply: (a: number, b: number) => number): Evaluate<P> {
  return (inputs, _, outputs) => {
    const shape = shapeOf(outputs);
    const [a, b] = [reader(get(inputs, 0), shape.length), reader(get(inputs, 1), shape.length)];
    return [build(shape, (index) => apply(a(index), b(index)))];
  };
}

/** Applies a function to each row along the last axis. */
function rows<P extends Primitive>(apply: (row: Float64Array) => Float64Array): Evaluate<P> {
  return (inputs) => {
    const { shape, data } = get(inputs, 0);
    const width = shape.at(-1) ?? 1;
    const result = new Float64Array(data.length);
    for (let start = 0; start < data.length; start += width) {
      result.set(apply(data.subarray(start, start + width)), start);
    }
    return [{ shape, data: result }];
  };
}

function reduce<P extends 'sum' | 'max'>(
  start: number,
  combine: (a: number, b: number) => number,
): Evaluate<P> {
  return (inputs, { axes }, outputs) => {
    const x = get(inputs, 0);
    const kept = x.shape.map((size, axis) => (axes.includes(axis) ? 1 : size));
    const data = new Float64Array(sizeOf(kept)).fill(start);
    const steps = strides(kept);
    forEachIndex(x.shape, (index, flat) => {
      const position = offset(index, steps);
      data[position] = combine(data[position] as number, x.data[flat] as number);
    });
    return [{ shape: shapeOf(outputs), data }];
  };
}

/** exp(-x²)-free error function: the Maclaurin series near 0, the continued fraction of erfc far from it. */
export function errorFunction(x: number): number {
  const magnitude = Math.abs(x);
  if (magnitude > 6) return Math.sign(x);
  if (magnitude < 2.5) {
    let term = magnitude;
    let total = magnitude;
    for (let n = 1; Math.abs(term) > 1e-17 * total && n < 200; n++) {
      term *= -(magnitude * magnitude) / n;
      total += term / (2 * n + 1);
    }
    return (Math.sign(x) * 2 * total) / Math.sqrt(Math.PI);
  }
  let fraction = 0;
  for (let n = 60; n >= 1; n--) fraction = n / 2 / (magnitude + fraction);
  const complement = Math.exp(-magnitude * magnitude) / Math.sqrt(Math.PI) / (magnitude + fraction);
  return Math.sign(x) * (1 - complement);
}

function normalizedIndex(value: number, size: number, primitive: string): number {
  const index = value < 0 ? value + size : value;
  if (index < 0 || index >= size)
    throw new RangeError(`${primitive}: index ${value} is outside of 0..${size - 1}`);
  return index;
}

function logSumExp(row: Float64Array): number {
  const top = row.reduce((a, b) => Math.max(a, b), Number.NEGATIVE_INFINITY);
  return top + Math.log(row.reduce((total, x) => total + Math.exp(x - top), 0));
}

/** One entry per primitive; a primitive without one does not compile. */
const evaluate: { readonly [P in Primitive]: Evaluate<P> } = {
  input: () => [],
  constant: (_, { tensor }) => [toNumbers(tensor)],
  add: zip((a, b) => a + b),
  subtract: zip((a, b) => a - b),
  multiply: zip((a, b) => a * b),
  divide: zip((a, b) => a / b),
  negate: map((x) => -x),
  exp: map(Math.exp),
  log: map(Math.log),
  sqrt: map(Math.sqrt),
  sigmoid: map((x) => 1 / (1 + Math.exp(-x))),
  tanh: map(Math.tanh),
  erf: map(errorFunction),
  silu: map((x) => x / (1 + Math.exp(-x))),
  detach: map((x) => x),
  after: map((x) => x),
  equal: zip((a, b) => (a === b ? 1 : 0)),
  less: zip((a, b) => (a < b ? 1 : 0)),
  where: (inputs, _, outputs) => {
    const shape = shapeOf(outputs);
    const [condition, then, otherwise] = [0, 1, 2].map((position) =>
      reader(get(inputs, position), shape.length),
    );
    return [build(shape, (index) => (condition?.(index) ? then?.(index) : otherwise?.(index)) as number)];
  },
  cast: (inputs, { dtype }) => {
    const { shape, data } = get(inputs, 0);
    if (dtype === 'bool') return [{ shape, data: data.map((x) => (x === 0 ? 0 : 1)) }];
    return [{ shape, data: dtype === 'int32' || dtype === 'int64' ? data.map(Math.trunc) : data }];
  },
  softmax: rows((row) => {
    const total = logSumExp(row);
    return row.map((x) => Math.exp(x - total));
  }),
  logSoftmax: rows((row) => {
    const total = logSumExp(row);
    return row.map((x) => x - total);
  }),
  rmsNorm: (inputs, { epsilon }) => {
    const weight = get(inputs, 1).data;
    const norm = rows((row) => {
      const meanSquare = row.reduce((total, value) => total + value * value, 0) / row.length;
      return row.map((value, at) => (value / Math.sqrt(meanSquare + epsilon)) * (weight[at] as number));
    });
    return norm(inputs, {}, []);
  },
  rotary: (inputs) => {
    const [x, cosines, sines] = [get(inputs, 0), get(inputs, 1), get(inputs, 2)];
    const half = (x.shape[3] as number) / 2;
    const [read, cosine, sine] = [reader(x, 4), reader(cosines, 3), reader(sines, 3)];
    return [
      build(x.shape, ([batch = 0, head = 0, row = 0, column = 0]) => {
        const angle = [batch, row, column % half];
        const [first, second] = [
          read([batch, head, row, column % half]),
          read([batch, head, row, half + (column % half)]),
        ];
        return column < half
          ? first * cosine(angle) - second * sine(angle)
          : second * cosine(angle) + first * sine(angle);
      }),
    ];
  },
  topK: (inputs, { k }, outputs) => {
    const { shape, data } = get(inputs, 0);
    const width = shape.at(-1) ?? 1;
    const values: number[] = [];
    const indices: number[] = [];
    for (let start = 0; start < data.length; start += width) {
      const row = data.subarray(start, start + width);
      const order = [...row.keys()]
        .sort((a, b) => (row[b] as number) - (row[a] as number) || a - b)
        .slice(0, k);
      indices.push(...order);
      values.push(...order.map((index) => row[index] as number));
    }
    return [
      { shape: shapeOf(outputs, 0), data: Float64Array.from(values) },
      { shape: shapeOf(outputs, 1), data: Float64Array.from(indices) },
    ];
  },
  sum: reduce(0, (a, b) => a + b),
  max: reduce(Number.NEGATIVE_INFINITY, (a, b) => Math.max(a, b)),
  matmul: (inputs, { transposeA, transposeB, scale }, outputs) => {
    const shape = shapeOf(outputs);
    const rank = shape.length;
    const [a, b] = [get(inputs, 0), get(inputs, 1)];
    const inner = a.shape.at(transposeA ? -2 : -1) as number;
    const [readA, readB] = [reader(a, rank), reader(b, rank)];
    return [
      build(shape, (index) => {
        const batch = index.slice(0, -2);
        const [row, column] = [index.at(-2) as number, index.at(-1) as number];
        let total = 0;
        for (let k = 0; k < inner; k++) {
          const left = readA([...batch, ...(transposeA ? [k, row] : [row, k])]);
          total += left * readB([...batch, ...(transposeB ? [column, k] : [k, column])]);
        }
        return scale * total;
      }),
    ];
  },
  reshape: (inputs, { shape }) => [{ shape, data: get(inputs, 0).data }],
  transpose: (inputs, { permutation }, outputs) => {
    const x = get(inputs, 0);
    const read = reader(x, x.shape.length);
    return [
      build(shapeOf(outputs), (index) =>
        read(x.shape.map((_, axis) => index[permutation.indexOf(axis)] ?? 0)),
      ),
    ];
  },
  slice: (inputs, { starts }, outputs) => {
    const read = reader(get(inputs, 0), starts.length);
    return [
      build(shapeOf(outputs), (index) => read(index.map((value, axis) => value + (starts[axis] ?? 0)))),
    ];
  },
  pad: (inputs, { before }, outputs) => {
    const x = get(inputs, 0);
    const read = reader(x, before.length);
    return [
      build(shapeOf(outputs), (index) => {
        const source = index.map((value, axis) => value - (before[axis] ?? 0));
        return source.every((value, axis) => value >= 0 && value < (x.shape[axis] ?? 0)) ? read(source) : 0;
      }),
    ];
  },
  concat: (inputs, { axis }, outputs) => {
    const owner: [input: Numbers, position: number][] = [];
    for (const x of inputs) for (let at = 0; at < (x.shape[axis] ?? 0); at++) owner.push([x, at]);
    return [
      build(shapeOf(outputs), (index) => {
        const [x, position] = owner[index[axis] as number] as [Numbers, number];
        return reader(x, index.length)(index.map((value, other) => (other === axis ? position : value)));
      }),
    ];
  },
  expand: (inputs, _, outputs) => {
    const read = reader(get(inputs, 0), shapeOf(outputs).length);
    return [build(shapeOf(outputs), read)];
  },
  gather: (inputs, { axis }, outputs) => {
    const [data, indices] = [get(inputs, 0), get(inputs, 1)];
    const [readData, readIndex] = [reader(data, data.shape.length), reader(indices, indices.shape.length)];
    const end = axis + indices.shape.length;
    return [
      build(shapeOf(outputs), (index) => {
        const picked = normalizedIndex(readIndex(index.slice(axis, end)), data.shape[axis] ?? 0, 'gather');
        return readData([...index.slice(0, axis), picked, ...index.slice(end)]);
      }),
    ];
  },
  gatherElements: (inputs, { axis }, outputs) => {
    const [data, indices] = [get(inputs, 0), get(inputs, 1)];
    const read = reader(data, data.shape.length);
    return [
      build(shapeOf(outputs), (index, flat) => {
        const picked = normalizedIndex(indices.data[flat] as number, data.shape[axis] ?? 0, 'gatherElements');
        return read(index.map((value, other) => (other === axis ? picked : value)));
      }),
    ];
  },
  scatterElements: (inputs, { axis }) => scattered(inputs, axis, (_, update) => update),
  scatterAdd: (inputs, { axis }) => scattered(inputs, axis, (old, update) => old + update),
};

function scattered(
  inputs: readonly Numbers[],
  axis: number,
  combine: (old: number, update: number) => number,
): Numbers[] {
  const [data, indices, updates] = [get(inputs, 0), get(inputs, 1), get(inputs, 2)];
  const result = data.data.slice();
  const steps = strides(data.shape);
  forEachIndex(indices.shape, (index, flat) => {
    const picked = normalizedIndex(indices.data[flat] as number, data.shape[axis] ?? 0, 'scatter');
    const position = offset(
      index.map((value, other) => (other === axis ? picked : value)),
      steps,
    );
    result[position] = combine(result[position] as number, updates.data[flat] as number);
  });
  return [{ shape: data.shape, data: result }];
}

/** A tensor's numbers as float64. */
export function toNumbers(tensor: Tensor): Numbers {
  const { shape, data } = castTensor(tensor, 'float32') ?? tensor;
  return { shape, data: Float64Array.from(data as ArrayLike<number | bigint>, Number) };
}

/**
 * Runs a program in float64.
 * @throws ProgramError when an input is missing or has another shape
 */
export function interpret(
  program: Program,
  feeds: Readonly<Record<string, Tensor | Numbers>>,
): Record<string, Numbers> {
  const values = new Map<Value, Numbers>();
  for (const [name, value] of program.inputs) {
    const feed = feeds[name];
    if (feed === undefined) throw new ProgramError(`input "${name}" is missing`);
    if (!sameShape(feed.shape, value.shape)) {
      throw new ProgramError(
        `input "${name}" has shape ${formatShape(feed.shape)}, the program takes ${formatShape(value.shape)}`,
      );
    }
    values.set(value, 'dtype' in feed ? toNumbers(feed) : feed);
  }
  for (const node of program.nodes) {
    if (node.primitive === 'input') continue;
    const rule = evaluate[node.primitive] as Evaluate<Primitive>;
    const inputs = node.inputs.map((value) => values.get(value) as Numbers);
    for (const [index, made] of rule(inputs, node.attributes, node.outputs).entries()) {
      values.set(node.outputs[index] as Value, made);
    }
  }
  return Object.fromEntries(
    [...program.outputs].map(([name, value]) => [name, values.get(value) as Numbers]),
  );
}
