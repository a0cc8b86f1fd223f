/** Tracing: calling a model function once on handles writes its tensor program down. */
import { type HalfType, operandType, type Precision } from './precision.ts';
import {
  type Attributes,
  type Node,
  type NodeOf,
  type Primitive,
  type Program,
  ProgramError,
  type Value,
  type ValueType,
} from './program.ts';
import { type ShapeRule, shapeRules } from './shapes.ts';
import { type DType, formatShape, type Shape } from './tensor.ts';

interface Recorder {
  readonly nodes: Node[];
  readonly names: Map<string, number>;
  readonly values: Set<Value>;
  readonly inputs: Map<string, Value>;
  readonly customGradients: Map<Value, CustomGradient>;
  scopes: string[];
  /** The type of matrix products, where it is not that of their operands. */
  compute: HalfType | undefined;
  /** Whether values are dropped at random: in training alone. */
  dropout: boolean;
}

/** How a gradient is computed where the primitives' rules would waste time or memory. */
export interface CustomGradient {
  readonly inputs: readonly Value[];
  /** Given the gradient of the value, those of the inputs; undefined for one that is not asked for. */
  readonly backward: (dy: Value, asked: (index: number) => boolean) => readonly (Value | undefined)[];
}

let recorder: Recorder | undefined;

function recording(): Recorder {
  if (recorder === undefined) {
    throw new ProgramError(
      'tensor operations only make sense inside trace(): they record, they do not compute',
    );
  }
  return recorder;
}

/**
 * Records a program.
 * @param inputs name -> dtype and shape of what is fed at each run; masks of dropout are inputs beside them
 * @param model called once with a handle per input; returns the outputs by name
 * @throws ProgramError naming the value and primitive that does not fit
 */
export function trace<Names extends string>(
  inputs: Readonly<Record<Names, ValueType>>,
  model: (inputs: Readonly<Record<Names, Value>>) => Readonly<Record<string, Value>>,
): Program {
  const outer = recorder;
  const own: Recorder = {
    nodes: [],
    names: new Map(),
    values: new Set(),
    inputs: new Map(),
    customGradients: new Map(),
    scopes: [],
    compute: undefined,
    dropout: false,
  };
  recorder = own;
  try {
    const handles = Object.fromEntries(
      Object.entries<ValueType>(inputs).map(([name, type]) => [name, declare(name, type)]),
    );
    const named = Object.entries(model(handles as Record<Names, Value>));
    for (const [name, value] of named) {
      if (!own.values.has(value)) throw new ProgramError(`output "${name}" comes from another trace`);
    }
    return { nodes: own.nodes, inputs: own.inputs, outputs: new Map(named) };
  } finally {
    recorder = outer;
  }
}

/** Runs `body` with `name` added to the names of all values it makes: `layers.5.attention`. */
export function scope<T>(name: string, body: () => T): T {
  const own = recording();
  own.scopes.push(name);
  try {
    return body();
  } finally {
    own.scopes.pop();
  }
}

/** Runs `body` under exactly this scope, whatever surrounds it. */
export function absoluteScope<T>(name: string, body: () => T): T {
  const own = recording();
  const outer = own.scopes;
  own.scopes = [name];
  try {
    return body();
  } finally {
    own.scopes = outer;
  }
}

/** Runs `body` with matrix products in `precision`, and with the casts that this takes. */
export function withPrecision<T>(precision: Precision, body: () => T): T {
  const own = recording();
  const outer = own.compute;
  own.compute = precision === 'float32' ? undefined : precision;
  try {
    return body();
  } finally {
    own.compute = outer;
  }
}

/** Runs `body` with dropout where the model has some. */
export function withDropout<T>(body: () => T): T {
  const own = recording();
  const outer = own.dropout;
  own.dropout = true;
  try {
    return body();
  } finally {
    own.dropout = outer;
  }
}

/** What the names of masks begin with. */
export const maskPrefix = 'dropout.';

/**
 * An input that says what is left of a value of this shape: zeros, and one over the share that is kept; undefined
 * outside of `withDropout`. Values of the same name have masks of their own.
 */
export function dropoutMask(name: string, shape: Shape): Value | undefined {
  const { dropout, inputs } = recording();
  if (!dropout) return undefined;
  const first = `${maskPrefix}${name}`;
  let free = first;
  for (let next = 2; inputs.has(free); next++) free = `${first}_${next}`;
  return declare(free, { dtype: 'float32', shape });
}

function declare(name: string, type: ValueType): Value {
  const value = record('input', [], { name }, [type], name);
  recording().inputs.set(name, value);
  return value;
}

/** The type in which a matrix product of such values is computed here. */
export function productType(dtype: DType): DType {
  return operandType('matmul', { dtype }, [{ dtype }], recording().compute);
}

/** Gives a value the name by which probes and errors speak of it, below the current scopes. */
export function named(name: string, value: Value): Value {
  const own = recording();
  (value as { name: string }).name = uniqueName(own, [...own.scopes, name].join('.'));
  return value;
}

/** Says how the gradient of a value flows to some values that it was computed from. Returns the value. */
export function withGradient(value: Value, gradient: CustomGradient): Value {
  recording().customGradients.set(value, gradient);
  return value;
}

/** The gradient that was given for a value by hand. */
export function customGradientOf(value: Value): CustomGradient | undefined {
  return recording().customGradients.get(value);
}

/** The nodes recorded so far in the surrounding trace, in order. */
export function recordedNodes(): readonly Node[] {
  return recording().nodes;
}

/** Adds one primitive operation and returns what it makes. */
export function emit<P extends Primitive>(
  primitive: P,
  operands: readonly Value[],
  attributes: Attributes[P],
): readonly Value[] {
  const own = recording();
  for (const value of operands) {
    if (!own.values.has(value))
      throw new ProgramError(`${primitive}: "${value.name}" comes from another trace`);
  }
  const inputs = operands.map((value) => {
    const dtype = operandType(primitive, value, operands, own.compute);
    return dtype === value.dtype ? value : (emit('cast', [value], { dtype })[0] as Value);
  });
  const rule: ShapeRule<P> = shapeRules[primitive];
  let types: readonly ValueType[];
  try {
    types = rule.types(inputs, attributes);
  } catch (error) {
    const where = [...own.scopes, primitive].join('.');
    const taken = inputs.map((value) => `${value.name} ${value.dtype}${formatShape(value.shape)}`).join(', ');
    throw new ProgramError(`${where}(${taken}): ${error instanceof Error ? error.message : String(error)}`);
  }
  record(primitive, inputs, attributes, types, [...own.scopes, primitive].join('.'));
  return (own.nodes.at(-1) as Node).outputs;
}

function record<P extends Primitive>(
  primitive: P,
  inputs: readonly Value[],
  attributes: Attributes[P],
  types: readonly ValueType[],
  name: string,
): Value {
  const own = recording();
  const outputs: Value[] = [];
  const node = { primitive, inputs, attributes, outputs } as NodeOf<P> as Node;
  for (const [index, { dtype, shape }] of types.entries()) {
    const base = types.length === 1 ? name : `${name}.${index}`;
    outputs.push({ id: own.values.size, name: uniqueName(own, base), dtype, shape, node });
    own.values.add(outputs[index] as Value);
  }
  own.nodes.push(node);
  return outputs[0] as Value;
}

function uniqueName(own: Recorder, name: string): string {
  const count = own.names.get(name) ?? 0;
  own.names.set(name, count + 1);
  return count === 0 ? name : uniqueName(own, `${name}_${count + 1}`);
}
