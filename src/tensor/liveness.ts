/** How much memory a program's values take while it runs: read off the program, exactly, before anything runs. */
import { isLeaf, type Node, type Primitive, type Program, type Value } from './program.ts';
import { bytesPerElement, sizeOf } from './tensor.ts';

/** Primitives that give another view of their input's memory. */
const views: ReadonlySet<Primitive> = new Set<Primitive>(['reshape', 'detach']);

/**
 * Primitives that write over their first input when nobody needs it afterwards: what ONNX Runtime's CPU kernels
 * were seen to do. Arithmetic does not.
 */
const inPlace: ReadonlySet<Primitive> = new Set<Primitive>([
  'sigmoid',
  'tanh',
  'softmax',
  'logSoftmax',
  'scatterElements',
  'scatterAdd',
]);

export function bytesOf({ dtype, shape }: Pick<Value, 'dtype' | 'shape'>): number {
  return sizeOf(shape) * bytesPerElement[dtype];
}

export interface Liveness {
  /** Most bytes that computed values hold at once; inputs and constants are not among them. */
  readonly peakBytes: number;
  /** What is computed when the peak is reached. */
  readonly peakAt: Node | undefined;
  /** The values whose memory is held at the peak. */
  readonly heldAtPeak: readonly Value[];
  /** Bytes held after each node, in the order of the program. */
  readonly timeline: readonly number[];
}

/**
 * Runs through a program in its order and keeps account: a value holds memory from the node that makes it to the
 * last one that reads it, outputs to the end. A view shares its source's memory.
 * @param outputs `elsewhere` when they are written to memory that the caller holds: then they are not counted
 */
export function liveness(program: Program, outputs: 'held' | 'elsewhere' = 'held'): Liveness {
  const away = new Set(outputs === 'elsewhere' ? program.outputs.values() : []);
  const owner = new Map<Value, Value>();
  const ownerOf = (value: Value) => owner.get(value) ?? value;
  const lastUse = new Map<Value, number>();
  for (const [at, node] of program.nodes.entries()) {
    const source = node.inputs[0];
    if (views.has(node.primitive) && source !== undefined)
      for (const value of node.outputs) owner.set(value, ownerOf(source));
    for (const value of node.inputs) lastUse.set(ownerOf(value), at);
  }
  if (outputs === 'held')
    for (const value of program.outputs.values()) lastUse.set(ownerOf(value), Number.POSITIVE_INFINITY);

  const held = new Map<Value, number>();
  const timeline: number[] = [];
  // Two moments a node: values are made, and after that the dying ones go.
  const spans = new Map<Value, { readonly born: number; died: number }>();
  let now = 0;
  let peakBytes = 0;
  let peak = -1;
  const free = (value: Value, moment: number) => {
    now -= held.get(value) ?? 0;
    held.delete(value);
    const span = spans.get(value);
    if (span !== undefined) span.died = moment;
  };
  for (const [at, node] of program.nodes.entries()) {
    const dying = new Set(
      node.inputs.map(ownerOf).filter((value) => lastUse.get(value) === at && held.has(value)),
    );
    if (!isLeaf(node) && !views.has(node.primitive)) {
      const reused = ownerOf(node.inputs[0] as Value);
      if (inPlace.has(node.primitive) && dying.has(reused)) free(reused, 2 * at);
      for (const value of node.outputs) {
        if (away.has(value)) continue;
        const bytes = bytesOf(value);
        held.set(value, bytes);
        spans.set(value, { born: 2 * at, died: Number.POSITIVE_INFINITY });
        now += bytes;
      }
    }
    if (now > peakBytes) {
      peakBytes = now;
      peak = at;
    }
    for (const value of dying) if (held.has(value)) free(value, 2 * at + 1);
    for (const value of node.outputs) {
      if (!lastUse.has(ownerOf(value)) && held.has(value)) free(value, 2 * at + 1);
    }
    timeline.push(now);
  }
  const heldAtPeak = [...spans].filter(([, { born, died }]) => born <= 2 * peak && died > 2 * peak);
  return {
    peakBytes,
    peakAt: program.nodes[peak],
    heldAtPeak: heldAtPeak.map(([value]) => value),
    timeline,
  };
}
