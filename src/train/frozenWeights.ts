/**
 * What a program compiled for the CPU holds of frozen weights. ONNX Runtime packs a constant anew for every product
 * that has it as its second factor, and keeps it as it is for every other reader.
 */
import type { Program, Value } from '../tensor/program.ts';
import type { Tensor } from '../tensor/tensor.ts';

/** A weight's products: one going forward, one going back. */
const packedCopies = 2;
/** What is left free in the heap between the packed copies, as a share of the weights. Measured: 0 to 0.4; see LOG.md. */
const heapHoles = 0.2;

/** Copies of the frozen weights in one program, at most, as long as no weight has more products. */
export const copiesPerProgram = packedCopies + heapHoles;

/** Bytes of the copies of its constants that a compiled program holds, and of the holes between them. */
export function constantCopiesBytes(program: Program): number {
  const packed = new Map<Value, number>();
  const plain = new Set<Value>();
  for (const { primitive, inputs } of program.nodes) {
    for (const [at, value] of inputs.entries()) {
      if (value.node.primitive !== 'constant') continue;
      if (primitive === 'matmul' && at === 1 && value.shape.length === 2)
        packed.set(value, (packed.get(value) ?? 0) + 1);
      else plain.add(value);
    }
  }
  return constantsOf(program).reduce(
    (total, [value, { data }]) =>
      total + data.byteLength * ((packed.get(value) ?? 0) + (plain.has(value) ? 1 : 0) + heapHoles),
    0,
  );
}

/** Bytes of a program's constants that are none of the weights: those that were rounded for a half type. */
export function ownConstantsBytes(program: Program, weights: Iterable<Tensor>): number {
  const loaded = new Set<Tensor['data']>([...weights].map(({ data }) => data));
  const own = new Set(
    constantsOf(program)
      .map(([, { data }]) => data)
      .filter((data) => !loaded.has(data)),
  );
  return [...own].reduce((total, { byteLength }) => total + byteLength, 0);
}

function constantsOf({ nodes }: Program): [Value, Tensor][] {
  return nodes.flatMap((node): [Value, Tensor][] =>
    node.primitive === 'constant' ? [[node.outputs[0] as Value, node.attributes.tensor]] : [],
  );
}
