/** Each primitive in ONNX operators, and a whole program as an ONNX model. */
import { create, toBinary } from '@bufbuild/protobuf';
import { GraphProtoSchema, ModelProtoSchema, OperatorSetIdProtoSchema } from 'onnx-buf';
import { removeDeadCode, simplify } from '../../tensor/passes.ts';
import type { Primitive, Program, Value } from '../../tensor/program.ts';
import { schedule } from '../../tensor/schedule.ts';
import { sizeOf } from '../../tensor/tensor.ts';
import { EngineError } from '../engine.ts';
import { emulateHalf } from './emulate.ts';
import { graphBuilder, sequenceInfo, valueInfo } from './graph.ts';
import { type ExternalData, onnxDType, type Placement } from './initializers.ts';
import { type Lower, type Lowerings, transposed } from './lowering.ts';
import { stackProducts } from './stackedProducts.ts';
import { webGpuLowerings } from './webGpu.ts';

/** A primitive that is an ONNX operator as it stands. */
function operator<P extends Primitive>(name: string, attributes?: Record<string, number | string>): Lower<P> {
  return ({ graph, inputs, outputs }) => graph.node(name, inputs, outputs, attributes);
}

function reduction<P extends 'sum' | 'max'>(name: string): Lower<P> {
  return ({ graph, attributes: { axes, keepDimensions }, inputs, outputs }) => {
    if (axes.length === 0) return graph.node('Identity', inputs, outputs);
    graph.node(name, [...inputs, graph.integers(axes)], outputs, { keepdims: keepDimensions ? 1 : 0 });
  };
}

function withShape<P extends 'reshape' | 'expand'>(name: string): Lower<P> {
  return ({ graph, attributes: { shape }, inputs, outputs }) =>
    graph.node(name, [...inputs, graph.integers(shape)], outputs);
}

function alongAxis<P extends 'gather' | 'gatherElements' | 'scatterElements' | 'concat'>(
  name: string,
): Lower<P> {
  return ({ graph, attributes: { axis }, inputs, outputs }) => graph.node(name, inputs, outputs, { axis });
}

const matmul: Lower<'matmul'> = ({ graph, node, attributes, inputs, outputs }) => {
  const { transposeA, transposeB, scale } = attributes;
  if (!transposeA && !transposeB && scale === 1) return graph.node('MatMul', inputs, outputs);
  const dtype = node.outputs[0]?.dtype;
  if (dtype === 'float32' || dtype === 'float16') {
    const fused = { transA: Number(transposeA), transB: Number(transposeB), alpha: { float: scale } };
    return graph.node('FusedMatMul', inputs, outputs, fused, 'com.microsoft');
  }
  // The fused operator has no kernel for the other types.
  const flags = [transposeA, transposeB];
  const factors = inputs.map((name, index) => {
    return flags[index] ? transposed(graph, name, node.inputs[index]?.shape.length ?? 2, outputs) : name;
  });
  if (scale === 1 || dtype === undefined) return graph.node('MatMul', factors, outputs);
  const product = graph.temporary(`${outputs[0]}.unscaled`);
  graph.node('MatMul', factors, [product]);
  graph.node('Mul', [product, graph.scalar(dtype, scale)], outputs);
};

const silu: Lower<'silu'> = ({ graph, node, inputs, outputs }) => {
  if (node.outputs[0]?.dtype === 'float32')
    return graph.node('QuickGelu', inputs, outputs, { alpha: { float: 1 } }, 'com.microsoft');
  // The fused operator has no kernel for the other types.
  const gate = graph.temporary(`${outputs[0]}.gate`);
  graph.node('Sigmoid', inputs, [gate]);
  graph.node('Mul', [...inputs, gate], outputs);
};

/** The operator looks its angles up in tables [positions, H / 2]; sequences of their own angles get rows of their own. */
const rotary: Lower<'rotary'> = ({ graph, node, inputs, outputs }) => {
  const [x = '', ...tables] = inputs;
  const [batch = 1] = node.inputs[0]?.shape ?? [];
  const [repeated = 1, rows = 1, half = 1] = node.inputs[1]?.shape ?? [];
  const flat = tables.map((name) =>
    // Every layer rotates by the same tables.
    graph.once(`${name}.flat`, (table) =>
      graph.node('Reshape', [name, graph.integers([repeated * rows, half])], [table]),
    ),
  );
  const positions = Array.from({ length: batch * rows }, (_, at) => (repeated === 1 ? at % rows : at));
  const ids = graph.integers(positions, [batch, rows]);
  graph.node('RotaryEmbedding', [x, ids, ...flat], outputs, {}, 'com.microsoft');
};

/** Chooses the value over an element of each other one: a graph has no other way to make a node wait. */
const after: Lower<'after'> = ({ graph, node, inputs, outputs }) => {
  const [x, ...others] = node.inputs as readonly [Value, ...Value[]];
  const temporary = (what: string) => graph.temporary(`${outputs[0]}.${what}`);
  const elements = others.flatMap(({ dtype, shape }, at) => {
    if (sizeOf(shape) === 0) return [];
    let element = inputs[at + 1] as string;
    const through = (operator: string, rest: readonly string[], attributes = {}) => {
      const made = temporary(operator.toLowerCase());
      graph.node(operator, [element, ...rest], [made], attributes);
      element = made;
    };
    const axes = [...shape.keys()];
    const first = [axes.map(() => 0), axes.map(() => 1), axes].map((numbers) => graph.integers(numbers));
    if (sizeOf(shape) > 1) through('Slice', first);
    if (axes.length > 0) through('Reshape', [graph.integers([])]);
    if (dtype !== x.dtype) through('Cast', [], { to: onnxDType[x.dtype] });
    return [element];
  });
  if (elements.length === 0) return graph.node('Identity', inputs.slice(0, 1), outputs);
  let [held = ''] = inputs;
  for (const [at, element] of elements.entries()) {
    const chosen = at === elements.length - 1 ? (outputs[0] as string) : temporary('chosen');
    graph.node('Where', [graph.scalar('bool', 0), element, held], [chosen]);
    held = chosen;
  }
};

/** One entry per primitive; a primitive without one does not compile. */
const lowerings: Lowerings = {
  input: () => undefined,
  constant: ({ graph, attributes, outputs }) => graph.initializer(outputs[0] as string, attributes.tensor),
  add: operator('Add'),
  subtract: operator('Sub'),
  multiply: operator('Mul'),
  divide: operator('Div'),
  negate: operator('Neg'),
  exp: operator('Exp'),
  log: operator('Log'),
  sqrt: operator('Sqrt'),
  sigmoid: operator('Sigmoid'),
  tanh: operator('Tanh'),
  erf: operator('Erf'),
  silu,
  detach: operator('Identity'),
  after,
  equal: operator('Equal'),
  less: operator('Less'),
  where: operator('Where'),
  cast: ({ graph, attributes: { dtype }, inputs, outputs }) =>
    graph.node('Cast', inputs, outputs, { to: onnxDType[dtype] }),
  softmax: operator('Softmax', { axis: -1 }),
  logSoftmax: operator('LogSoftmax', { axis: -1 }),
  rmsNorm: ({ graph, attributes: { epsilon }, inputs, outputs }) =>
    graph.node('SimplifiedLayerNormalization', inputs, outputs, { axis: -1, epsilon: { float: epsilon } }),
  rotary,
  topK: ({ graph, attributes: { k, sorted = true }, inputs, outputs }) =>
    graph.node('TopK', [...inputs, graph.integers([k])], outputs, {
      axis: -1,
      largest: 1,
      sorted: Number(sorted),
    }),
  sum: reduction('ReduceSum'),
  max: reduction('ReduceMax'),
  matmul,
  reshape: withShape('Reshape'),
  transpose: ({ graph, attributes: { permutation }, inputs, outputs }) =>
    graph.node('Transpose', inputs, outputs, { perm: permutation }),
  slice: ({ graph, attributes: { starts, ends }, inputs, outputs }) =>
    graph.node(
      'Slice',
      [...inputs, graph.integers(starts), graph.integers(ends), graph.integers([...starts.keys()])],
      outputs,
    ),
  pad: ({ graph, attributes: { before, after }, inputs, outputs }) =>
    graph.node('Pad', [...inputs, graph.integers([...before, ...after])], outputs),
  concat: alongAxis('Concat'),
  expand: withShape('Expand'),
  gather: alongAxis('Gather'),
  gatherElements: alongAxis('GatherElements'),
  scatterElements: alongAxis('ScatterElements'),
  scatterAdd: ({ graph, attributes: { axis }, inputs, outputs }) =>
    graph.node('ScatterElements', inputs, outputs, { axis, reduction: 'add' }),
};

/**
 * ONNX Runtime's Node binding copies every output into new memory after a run, even one that was written where the
 * caller wanted it. It stops at the first output that is no tensor: this one, listed before the others.
 */
export const endingName = 'palkit.ending';

const opset = 21;
const irVersion = 10;

/** What a graph computes, in terms of the program. */
export interface LoweredValues {
  /** The program as it was lowered: simplified. */
  readonly program: Program;
  /** By the name of each node of the graph, the value that it computes or helps to compute. */
  readonly values: ReadonlyMap<string, Value>;
}

export interface LoweredProgram extends LoweredValues {
  readonly model: Uint8Array;
  /** The constants that lie beside the model. */
  readonly external: readonly ExternalData[];
}

/** Where the graph is to run: the operators that it is written in are those that the provider has. */
export type Provider = 'cpu' | 'webgpu' | 'cuda';

const providerLowerings: Readonly<Record<Provider, Lowerings>> = {
  cpu: lowerings,
  webgpu: { ...lowerings, ...webGpuLowerings },
  cuda: lowerings,
};

/** A program as ONNX model bytes, its constants among them. @throws as `lowerProgram` */
export function programToOnnx(source: Program, provider: Provider = 'cpu'): Uint8Array {
  return lowerProgram(source, provider).model;
}

/**
 * A program as an ONNX model. Graph inputs and outputs have the program's names, every other tensor the name of
 * its value.
 * @param ending adds the output `endingName`, which makes a run end without copies of its outputs
 * @param externalFrom bytes from which a constant lies beside the model; all lie inside when left out
 * @param place where such a constant lies; in a piece of memory of its own when left out
 * @throws EngineError when an input and an output share a name, which ONNX cannot express, and for constants that
 * are too large
 */
export function lowerProgram(
  source: Program,
  provider: Provider,
  {
    ending = false,
    externalFrom = Number.POSITIVE_INFINITY,
    place,
  }: { readonly ending?: boolean; readonly externalFrom?: number; readonly place?: Placement } = {},
): LoweredProgram {
  const program = schedule(prepared(source, provider));
  const names = tensorNames(program);
  const graph = graphBuilder(new Set(names.values()), externalFrom, place);
  const values = new Map<string, Value>();
  const attribute = (from: number, value: Value | undefined) => {
    for (const { name } of graph.nodes.slice(from)) if (value !== undefined) values.set(name, value);
  };
  // ONNX Runtime walks depth first from the last node of the list that nobody reads, whatever order the list has:
  // listed backwards, the nodes run in the program's order, and memory is held as long as the program says.
  for (const node of [...program.nodes].reverse()) {
    const lower = providerLowerings[provider][node.primitive] as Lower<Primitive>;
    const name = (value: Value) => names.get(value) as string;
    const [inputs, outputs] = [node.inputs.map(name), node.outputs.map(name)];
    const before = graph.nodes.length;
    lower({ graph, node, attributes: node.attributes, inputs, outputs });
    attribute(before, node.outputs[0]);
  }
  for (const [name, value] of program.outputs) {
    const tensorName = names.get(value) as string;
    if (tensorName === name) continue;
    graph.node('Identity', [tensorName], [name]);
    attribute(graph.nodes.length - 1, value);
  }
  const outputs = [...program.outputs].map(([name, value]) => valueInfo(name, value));
  if (ending) {
    graph.node('SequenceConstruct', [graph.scalar('float32', 0)], [endingName]);
    outputs.unshift(sequenceInfo(endingName));
  }
  const model = create(ModelProtoSchema, {
    irVersion: BigInt(irVersion),
    producerName: 'palkit',
    opsetImport: [
      create(OperatorSetIdProtoSchema, { domain: '', version: BigInt(opset) }),
      create(OperatorSetIdProtoSchema, { domain: 'com.microsoft', version: 1n }),
    ],
    graph: create(GraphProtoSchema, {
      name: 'program',
      node: graph.nodes,
      initializer: [...graph.initializers.tensors],
      input: [...program.inputs].map(([name, value]) => valueInfo(name, value)),
      output: outputs,
    }),
  });
  return { model: toBinary(ModelProtoSchema, model), external: graph.initializers.external, program, values };
}

/** The program in primitives and types that the provider has. */
export function prepared(source: Program, provider: Provider): Program {
  const simple = simplify(source);
  if (provider !== 'cpu') return simple;
  const emulated = emulateHalf(simple);
  return removeDeadCode(stackProducts(emulated === simple ? simple : simplify(emulated)));
}

/** An ONNX name for every value: outputs that a node computes carry the output's name, to save a copy. */
function tensorNames(program: Program): Map<Value, string> {
  const names = new Map<Value, string>();
  const taken = new Set<string>(program.inputs.keys());
  for (const [name, value] of program.inputs) names.set(value, name);
  for (const [name, value] of program.outputs) {
    if (taken.has(name)) {
      throw new EngineError(`"${name}" is the name of an input and of an output: rename the output`);
    }
    taken.add(name);
    if (!names.has(value) && value.node.primitive !== 'constant') names.set(value, name);
  }
  for (const node of program.nodes) {
    for (const value of node.outputs) {
      if (names.has(value)) continue;
      let name = value.name;
      while (taken.has(name)) name = `${name}'`;
      taken.add(name);
      names.set(value, name);
    }
  }
  return names;
}
