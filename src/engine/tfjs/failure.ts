/** What TensorFlow.js says when a run fails, as an error that names the value, the cause and what to do. */
import { EngineError } from '../engine.ts';

const memory =
  'out of memory; lower train.batchSize (train.accumulate makes up for it), or choose --engine cpu, which has no ' +
  'limit of its own';

/** Of WebAssembly, of plain JavaScript, and of TensorFlow itself. */
const patterns = /Aborted\(|has no .* bytes left|Array buffer allocation failed|OOM|out of memory/i;

/**
 * The error of a failed run.
 * @param error what TensorFlow.js threw
 * @param where `"layers.0.matmul" (matmul)`, `input "ids"`
 */
export function runError(error: unknown, where: string): EngineError {
  const reason = error instanceof Error ? error.message : String(error);
  const cause = patterns.test(reason) ? `${memory}.\n` : '';
  return new EngineError(`the program failed at ${where}: ${cause}${reason}`, { cause: error });
}

const refusing = new WeakSet<object>();

/** The part of the WebAssembly module that is looked after. */
interface Module {
  _malloc(bytes: number): number;
}

/**
 * Makes the wasm backend say when its 4 GB are full. TensorFlow.js does not look at what its allocator answers: it
 * writes the tensor to address 0, over whatever is there, and goes on with wrong numbers.
 */
export function refuseNullPointers(backend: object): void {
  if (refusing.has(backend)) return;
  refusing.add(backend);
  const { wasm } = backend as { readonly wasm: Module };
  const allocate = wasm._malloc;
  wasm._malloc = (bytes) => {
    const address = allocate(bytes);
    if (address === 0) throw new Error(`WebAssembly has no ${bytes} bytes left of its 4 GB`);
    return address;
  };
}
