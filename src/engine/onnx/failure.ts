/** What ONNX Runtime says when a run fails, as an error that names the value, the cause and what to do. */
import { EngineError } from '../engine.ts';
import type { LoweredValues } from './lower.ts';

interface Cause {
  readonly pattern: RegExp;
  readonly what: string;
  readonly advice: string;
}

const smaller = 'lower train.batchSize (train.accumulate makes up for it), or shorten what a question holds';

/** In the words of ONNX Runtime's providers; the first that matches counts. */
const causes: readonly Cause[] = [
  {
    pattern:
      /device (was |is )?lost|DeviceLost|DEVICE_LOST|CUDA_ERROR_(ILLEGAL_ADDRESS|LAUNCH_FAILED|DEVICE)/i,
    what: 'the GPU device was lost: its driver was reset, or another program took it down',
    advice: 'look at the system log, and start again',
  },
  {
    pattern: /exceeds the max buffer size|Allocation size too large|Too many storage buffers/i,
    what: 'a tensor is larger than the GPU device takes in one buffer',
    advice: smaller,
  },
  {
    pattern: /out of memory|OutOfMemory|OUT_OF_MEMORY|Failed to allocate memory|bad_alloc|CUDA failure 2\b/i,
    what: 'out of memory',
    advice: smaller,
  },
  {
    // The device refused a buffer earlier and only logged why.
    pattern: /is invalid due to a previous error/i,
    what: 'the GPU device refused an earlier allocation, most likely for want of memory',
    advice: smaller,
  },
];

/**
 * The error of a failed run. ONNX Runtime names the node; nodes have the names of the program's values.
 * @param error what ONNX Runtime threw
 */
export function runError(error: unknown, { values }: Pick<LoweredValues, 'values'>): EngineError {
  const reason = error instanceof Error ? error.message : String(error);
  const value = values.get(/Name:\s*'([^']*)'/.exec(reason)?.[1] ?? '');
  const where = value === undefined ? '' : ` at "${value.name}" (${value.node.primitive})`;
  const cause = causes.find(({ pattern }) => pattern.test(reason));
  const told = cause === undefined ? '' : `${cause.what}; ${cause.advice}.\n`;
  return new EngineError(`the program failed${where}: ${told}${reason.trim()}`, { cause: error });
}
