/** A key under which equal programs are found again. */
import { createHash } from 'node:crypto';
import { updateHash } from '../config/hash.ts';
import type { Program, Value } from '../tensor/program.ts';
import type { Tensor } from '../tensor/tensor.ts';
import type { CompileOptions } from './engine.ts';

/**
 * The same for two programs exactly when they compute the same under the same names: the same nodes in the same
 * order, attributes, inputs, outputs and options, and constants of the same content. Content, not identity: the
 * array of a constant may have been written to since.
 */
export function programKey(program: Program, { keepOnDevice = [] }: CompileOptions = {}): string {
  const hash = createHash('sha256');
  const digests = new Map<Tensor, string>();
  const places = new Map<Value, number>();
  for (const node of program.nodes) {
    const { primitive, inputs, outputs } = node;
    const attributes =
      node.primitive === 'constant'
        ? describeConstant(node.attributes.tensor, digests)
        : JSON.stringify(node.attributes);
    for (const value of outputs) places.set(value, places.size);
    const from = inputs.map((value) => places.get(value)).join(',');
    const made = outputs.map(
      ({ name, dtype, shape }) => `${JSON.stringify(name)}${dtype}[${shape.join(',')}]`,
    );
    hash.update(`${primitive}(${from})${attributes}${made.join(',')}\n`);
  }
  const placed = (values: ReadonlyMap<string, Value>) =>
    [...values].map(([name, value]) => [name, places.get(value)]);
  hash.update(JSON.stringify([placed(program.inputs), placed(program.outputs), [...keepOnDevice].sort()]));
  return hash.digest('hex');
}

function describeConstant(tensor: Tensor, digests: Map<Tensor, string>): string {
  const known = digests.get(tensor);
  if (known !== undefined) return known;
  const { dtype, shape, data } = tensor;
  const bytes = new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
  const digest = `${dtype}[${shape.join(',')}]${updateHash(createHash('sha1'), bytes).digest('hex')}`;
  digests.set(tensor, digest);
  return digest;
}
