/** Collects an ONNX graph: nodes, initializers and the names of tensors. */
import { create } from '@bufbuild/protobuf';
import {
  type AttributeProto,
  AttributeProto_AttributeType,
  AttributeProtoSchema,
  type NodeProto,
  NodeProtoSchema,
  TensorShapeProto_DimensionSchema,
  TensorShapeProtoSchema,
  TypeProto_SequenceSchema,
  TypeProto_TensorSchema,
  TypeProtoSchema,
  type ValueInfoProto,
  ValueInfoProtoSchema,
} from 'onnx-buf';
import { castTensor } from '../../tensor/halfPrecision.ts';
import type { ValueType } from '../../tensor/program.ts';
import { allocate, type DType, type Tensor, tensor } from '../../tensor/tensor.ts';
import { EngineError } from '../engine.ts';
import { type Initializers, initializers, onnxDType, type Placement } from './initializers.ts';

export type AttributeValue = number | string | { readonly float: number } | readonly number[];

export interface GraphBuilder {
  readonly nodes: NodeProto[];
  readonly initializers: Omit<Initializers, 'add'>;
  /** Adds a node of ONNX's own operators, or of `domain`. */
  node(
    operator: string,
    inputs: readonly string[],
    outputs: readonly string[],
    attributes?: Readonly<Record<string, AttributeValue>>,
    domain?: string,
  ): void;
  /** Adds numbers under a name. */
  initializer(name: string, values: Tensor): void;
  /** Shared int64 values: axes, shapes, paddings; a vector when no shape is given. */
  integers(values: readonly number[], shape?: readonly number[]): string;
  /** A shared scalar. */
  scalar(dtype: DType, value: number): string;
  /** The name of what `make` computes under it; what has the same key is computed once. */
  once(key: string, make: (name: string) => void): string;
  /** A name that no value of the program has. */
  temporary(base: string): string;
}

/** ONNX Runtime's CPU kernel of ScatterND loses updates when indices repeat and several threads run. */
const forbiddenOperators: ReadonlySet<string> = new Set(['ScatterND']);

/**
 * @param taken the names of the program's own values
 * @param externalFrom bytes from which a constant lies beside the model
 * @param place where it lies then
 */
export function graphBuilder(
  taken: ReadonlySet<string>,
  externalFrom: number,
  place?: Placement,
): GraphBuilder {
  const nodes: NodeProto[] = [];
  const constants = initializers(externalFrom, place);
  const shared = new Map<string, string>();
  const used = new Set(taken);

  function temporary(base: string): string {
    for (let count = 0; ; count++) {
      const name = count === 0 ? base : `${base}_${count}`;
      if (!used.has(name)) {
        used.add(name);
        return name;
      }
    }
  }

  const share = (key: string, values: Tensor) => once(key, (name) => constants.add(name, values));

  function once(key: string, make: (name: string) => void): string {
    const known = shared.get(key);
    if (known !== undefined) return known;
    const name = temporary(key);
    shared.set(key, name);
    make(name);
    return name;
  }

  return {
    nodes,
    initializers: constants,
    temporary,
    once,
    initializer: constants.add,
    node(operator, inputs, outputs, attributes = {}, domain = '') {
      if (forbiddenOperators.has(operator)) {
        throw new EngineError(
          `${outputs[0]}: ${operator} is never emitted, it gives wrong sums on several threads`,
        );
      }
      const attribute = Object.entries(attributes).map(([name, value]) => attributeProto(name, value));
      nodes.push(
        create(NodeProtoSchema, {
          name: outputs[0] ?? operator,
          opType: operator,
          domain,
          input: [...inputs],
          output: [...outputs],
          attribute,
        }),
      );
    },
    integers: (values, shape = [values.length]) =>
      share(
        `int64[${shape.join(',')}](${values.join(',')})`,
        tensor('int64', shape, BigInt64Array.from(values, BigInt)),
      ),
    scalar: (dtype, value) => {
      if (dtype === 'float64' || dtype === 'bool')
        return share(`${dtype}(${value})`, tensor(dtype, [], allocate(dtype, 1).fill(value)));
      const single = tensor('float32', [], Float32Array.of(value));
      const values = dtype === 'float32' ? single : castTensor(single, dtype);
      if (values === undefined) throw new EngineError(`no scalar constants of ${dtype}`);
      return share(`${dtype}(${value})`, values);
    },
  };
}

function attributeProto(name: string, value: AttributeValue): AttributeProto {
  if (typeof value === 'number') {
    return create(AttributeProtoSchema, { name, type: AttributeProto_AttributeType.INT, i: BigInt(value) });
  }
  if (typeof value === 'string') {
    const s = new TextEncoder().encode(value);
    return create(AttributeProtoSchema, { name, type: AttributeProto_AttributeType.STRING, s });
  }
  if ('float' in value) {
    return create(AttributeProtoSchema, { name, type: AttributeProto_AttributeType.FLOAT, f: value.float });
  }
  return create(AttributeProtoSchema, {
    name,
    type: AttributeProto_AttributeType.INTS,
    ints: value.map(BigInt),
  });
}

/** The declaration of an output that is a sequence of float32 tensors. */
export function sequenceInfo(name: string): ValueInfoProto {
  const element = create(TypeProtoSchema, {
    value: {
      case: 'tensorType',
      value: create(TypeProto_TensorSchema, { elemType: onnxDType.float32 }),
    },
  });
  return create(ValueInfoProtoSchema, {
    name,
    type: create(TypeProtoSchema, {
      value: { case: 'sequenceType', value: create(TypeProto_SequenceSchema, { elemType: element }) },
    }),
  });
}

/** The declaration of a graph input or output. */
export function valueInfo(name: string, { dtype, shape }: ValueType): ValueInfoProto {
  const dim = shape.map((size) =>
    create(TensorShapeProto_DimensionSchema, { value: { case: 'dimValue', value: BigInt(size) } }),
  );
  const type = create(TypeProto_TensorSchema, {
    elemType: onnxDType[dtype],
    shape: create(TensorShapeProtoSchema, { dim }),
  });
  return create(ValueInfoProtoSchema, {
    name,
    type: create(TypeProtoSchema, { value: { case: 'tensorType', value: type } }),
  });
}
