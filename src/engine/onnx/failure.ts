/** What ONNX Runtime says when it fails, as an error that names the value, the cause and what to do. */
import { EngineError } from '../engine.ts';
import type { LoweredValues, Provider } from './lower.ts';

interface Cause {
  readonly pattern: RegExp;
  readonly what: string;
  readonly advice: string;
}

const smaller = 'lower train.batchSize (train.accumulate makes up for it), or shorten what a question holds';

/**
 * In the words of ONNX Runtime's providers; the first that matches counts. Those of WebGPU were provoked with a
 * driver whose calls fail (`test/engine/failingDriver.c`); those of CUDA are as its documentation has them.
 */
const causes: readonly Cause[] = [
  {
    // A checkpoint's reading waits for the device; the other calls are told that it is gone.
    pattern:
      /device\]? (was |is )?lost|Failed to wait for the operation|CUDA_ERROR_(ILLEGAL_ADDRESS|LAUNCH_FAILED)/i,
    what: 'the GPU device was lost: its driver was reset, or another program took it down',
    advice: 'look at the system log, and start again',
  },
  {
    pattern: /No cached or pending pipeline/,
    what: 'the GPU driver did not compile a shader: the device was lost, or the driver has a fault',
    advice: 'look at the system log, update the driver, and start again',
  },
  {
    pattern: /exceeds the max buffer size|Too many storage buffers/i,
    what: 'a tensor is larger than the GPU device takes in one buffer',
    advice: smaller,
  },
  {
    pattern:
      /out of memory|OUT_OF_(HOST|DEVICE)_MEMORY|Failed to allocate memory|bad_alloc|Array buffer allocation failed|CUDA failure 2\b/i,
    what: 'out of memory',
    advice: smaller,
  },
  {
    // The device refused a buffer earlier, and only the log says why. Whoever uses that buffer fails.
    pattern: /is invalid due to a previous error/i,
    what: 'the GPU device refused an earlier allocation: it is out of memory, or the tensor is larger than one buffer',
    advice: smaller,
  },
];

const reasonOf = (error: unknown) => (error instanceof Error ? error.message : String(error));

/** Cause and advice, where the reason is a known one. */
function explained(reason: string): string {
  const cause = causes.find(({ pattern }) => pattern.test(reason));
  return cause === undefined ? '' : `${cause.what}; ${cause.advice}.\n`;
}

/**
 * The error of a failed run. ONNX Runtime names the node; nodes have the names of the program's values.
 * @param error what ONNX Runtime threw
 */
export function runError(error: unknown, { values }: Pick<LoweredValues, 'values'>): EngineError {
  const reason = reasonOf(error);
  const value = values.get(/Name:\s*'([^']*)'/.exec(reason)?.[1] ?? '');
  const where = value === undefined ? '' : ` at "${value.name}" (${value.node.primitive})`;
  return new EngineError(`the program failed${where}: ${explained(reason)}${reason.trim()}`, {
    cause: error,
  });
}

/**
 * The error of a program that ONNX Runtime does not take.
 * @param error what ONNX Runtime threw
 */
export function compileError(error: unknown, provider: Provider): EngineError {
  const reason = reasonOf(error).trim();
  const told = explained(reason);
  const advice =
    provider === 'cpu' || told !== ''
      ? ''
      : `\nIs a ${provider} device there? \`palkit doctor\` checks and says what to install.`;
  return new EngineError(`ONNX Runtime (${provider}) does not take the program: ${told}${reason}${advice}`, {
    cause: error,
  });
}
