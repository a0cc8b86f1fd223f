/** What every engine checks before it runs a program, so that a wrong call is refused in the same words. */
import type { Program, Value } from '../tensor/program.ts';
import { formatShape, sameShape, type Tensor } from '../tensor/tensor.ts';
import { EngineError, type Feed } from './engine.ts';

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
