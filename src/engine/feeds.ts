/** What every engine checks before it runs a program, so that a wrong call is refused in the same words. */
import type { Node, Primitive, Program, Value } from '../tensor/program.ts';
import { formatShape, sameShape, type Tensor } from '../tensor/tensor.ts';
import { EngineError, type Feed, isDeviceTensor } from './engine.ts';

/**
 * The feeds in the order of the program's inputs.
 * @throws EngineError naming an input that is missing, unknown, or of another dtype or shape
 */
export function checkFeeds(
  program: Program,
  feeds: Readonly<Record<string, Feed>>,
): { readonly name: string; readonly value: Value; readonly feed: Feed }[] {
  const checked = [...program.inputs].map(([name, value]) => {
    const feed = feeds[name];
    const { dtype, shape } = value;
    if (feed === undefined) throw new EngineError(`input "${name}" is missing`);
    if (feed.dtype !== dtype || !sameShape(feed.shape, shape)) {
      throw new EngineError(
        `input "${name}" is ${feed.dtype}${formatShape(feed.shape)}, the program takes ${dtype}${formatShape(shape)}`,
      );
    }
    return { name, value, feed };
  });
  const unknown = Object.keys(feeds).filter((name) => !program.inputs.has(name));
  if (unknown.length > 0) throw new EngineError(`the program has no input "${unknown.join('", "')}"`);
  return checked;
}

/**
 * The names of the outputs that stay on the device.
 * @throws EngineError for one that the program does not have
 */
export function checkKept(program: Program, keepOnDevice: readonly string[]): Set<string> {
  for (const name of keepOnDevice) {
    if (!program.outputs.has(name))
      throw new EngineError(`keepOnDevice: the program has no output "${name}"`);
  }
  return new Set(keepOnDevice);
}

/**
 * Checks the tensors that outputs are to be written to.
 * @throws EngineError naming one that is no output, or of another dtype or shape
 */
export function checkInto(program: Program, into: Readonly<Record<string, Tensor>>): void {
  const unknown = Object.keys(into).find((name) => !program.outputs.has(name));
  if (unknown !== undefined) throw new EngineError(`the program has no output "${unknown}"`);
  for (const [name, { dtype, shape }] of program.outputs) {
    const given = into[name];
    if (given !== undefined && (given.dtype !== dtype || !sameShape(given.shape, shape))) {
      throw new EngineError(
        `output "${name}" is ${dtype}${formatShape(shape)}, it does not fit ${given.dtype}${formatShape(given.shape)}`,
      );
    }
  }
}

/** Primitives that read each element of their first inputs before they write it, if they write it at all. */
const elementwise: ReadonlySet<Primitive> = new Set<Primitive>(['add', 'scatterAdd', 'scatterElements']);

/** The nodes that read each of the program's inputs. */
export function inputReaders(program: Program): ReadonlyMap<Value, readonly Node[]> {
  const readers = new Map<Value, Node[]>([...program.inputs.values()].map((value) => [value, []]));
  for (const node of program.nodes) for (const value of new Set(node.inputs)) readers.get(value)?.push(node);
  return readers;
}

/**
 * Checks outputs that are to be written over feeds.
 * @param program as it runs
 * @param readers its `inputReaders`, which are the same at every run
 * @throws EngineError when something could still read a feed after it was overwritten
 */
export function checkOverwriting(
  program: Program,
  readers: ReadonlyMap<Value, readonly Node[]>,
  feeds: Readonly<Record<string, Feed>>,
  into: Readonly<Record<string, Tensor>>,
): void {
  const places = new Map<ArrayBufferLike, Map<number, string>>();
  for (const [name, feed] of Object.entries(feeds)) {
    if (isDeviceTensor(feed) || feed.data.length === 0) continue;
    const { buffer, byteOffset } = feed.data;
    const own = places.get(buffer) ?? new Map<number, string>();
    places.set(buffer, own.set(byteOffset, name));
  }
  for (const [name, { data, shape }] of Object.entries(into)) {
    const feed = data.length === 0 ? undefined : places.get(data.buffer)?.get(data.byteOffset);
    if (feed === undefined) continue;
    const input = program.inputs.get(feed) as Value;
    const { node } = program.outputs.get(name) as Value;
    const reading = readers.get(input) ?? [];
    const safe =
      elementwise.has(node.primitive) &&
      node.inputs[0] === input &&
      sameShape(input.shape, shape) &&
      reading.length === 1 &&
      reading[0] === node;
    if (!safe) {
      throw new EngineError(
        `output "${name}" cannot be written over input "${feed}": it is more than the input with something added or put into it`,
      );
    }
  }
}
