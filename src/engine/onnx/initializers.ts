/**
 * Constants as ONNX initializers: small ones inside the model, large ones beside it. A model file ends at 2 GiB,
 * protobuf's limit, and each of its bytes is copied several times on the way; what lies beside it is read by ONNX
 * Runtime from where it is.
 */
import { create } from '@bufbuild/protobuf';
import {
  StringStringEntryProtoSchema,
  type TensorProto,
  TensorProto_DataLocation,
  TensorProto_DataType,
  TensorProtoSchema,
} from 'onnx-buf';
import { type DType, formatShape, type Tensor } from '../../tensor/tensor.ts';
import { EngineError } from '../engine.ts';

export const onnxDType: Readonly<Record<DType, TensorProto_DataType>> = {
  float32: TensorProto_DataType.FLOAT,
  float16: TensorProto_DataType.FLOAT16,
  bfloat16: TensorProto_DataType.BFLOAT16,
  float64: TensorProto_DataType.DOUBLE,
  int32: TensorProto_DataType.INT32,
  int64: TensorProto_DataType.INT64,
  bool: TensorProto_DataType.BOOL,
};

/** The bytes of a constant that lies beside the model, under the name that the model knows it by. */
export interface ExternalData {
  readonly path: string;
  readonly data: Uint8Array;
}

/** Where constants lie that are not in the model: takes the bytes of one, and says where it put them. */
export type Placement = (bytes: Uint8Array) => { readonly location: string; readonly offset: number };

export interface Initializers {
  readonly tensors: readonly TensorProto[];
  /** What lies beside the model, unless a placement took it. */
  readonly external: readonly ExternalData[];
  /**
   * Adds a constant.
   * @throws EngineError when it, or all that lies in the model, is larger than ONNX can say
   */
  add(name: string, values: Tensor): void;
}

/** Of one message of protobuf, and of one tensor that ONNX Runtime reads from memory. */
const limitBytes = 2 ** 31 - 1;

/**
 * @param externalFrom bytes from which a constant lies beside the model; Infinity: never
 * @param place where it lies then; in a piece of memory of its own when left out
 */
export function initializers(externalFrom: number, place?: Placement): Initializers {
  const tensors: TensorProto[] = [];
  const external: ExternalData[] = [];
  const alone: Placement = (data) => {
    const path = `constant-${external.length}`;
    external.push({ path, data });
    return { location: path, offset: 0 };
  };
  let inside = 0;
  return {
    tensors,
    external,
    add(name, { dtype, shape, data }) {
      const bytes = new Uint8Array(data.buffer as ArrayBuffer, data.byteOffset, data.byteLength);
      const own = { name, dims: shape.map(BigInt), dataType: onnxDType[dtype] };
      if (bytes.byteLength > limitBytes) {
        throw new EngineError(
          `the constant "${name}", ${dtype}${formatShape(shape)}, has ${bytes.byteLength} bytes; ONNX Runtime takes ` +
            'constants of up to 2 GiB each: feed it as an input, or cut it in two',
        );
      }
      if (bytes.byteLength < externalFrom) {
        inside += bytes.byteLength;
        if (inside > limitBytes) {
          throw new EngineError(
            `the program's constants do not fit into one ONNX file of 2 GiB ("${name}" is the first that does not)`,
          );
        }
        tensors.push(create(TensorProtoSchema, { ...own, rawData: bytes }));
        return;
      }
      const { location, offset } = (place ?? alone)(bytes);
      const entries = { location, offset: String(offset), length: String(bytes.byteLength) };
      tensors.push(
        create(TensorProtoSchema, {
          ...own,
          dataLocation: TensorProto_DataLocation.EXTERNAL,
          externalData: Object.entries(entries).map(([key, value]) =>
            create(StringStringEntryProtoSchema, { key, value }),
          ),
        }),
      );
    },
  };
}
