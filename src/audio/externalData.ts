/** ONNX models whose weights lie in other files: such a model may name any file, so none is followed. */
import { fromBinary, isMessage } from '@bufbuild/protobuf';
import { ModelProtoSchema, TensorProto_DataLocation, TensorProtoSchema } from 'onnx-buf';

/**
 * The name of the first tensor of a model that lies in another file, wherever in the model it stands.
 * @throws when the bytes are no ONNX model
 */
export function externalTensor(bytes: Uint8Array): string | undefined {
  return search(fromBinary(ModelProtoSchema, bytes));
}

function search(part: unknown): string | undefined {
  if (typeof part !== 'object' || part === null || ArrayBuffer.isView(part)) return undefined;
  if (isMessage(part, TensorProtoSchema)) {
    const { dataLocation, externalData, name } = part;
    return dataLocation === TensorProto_DataLocation.EXTERNAL || externalData.length > 0 ? name : undefined;
  }
  for (const inner of Object.values(part)) {
    const found = search(inner);
    if (found !== undefined) return found;
  }
  return undefined;
}
