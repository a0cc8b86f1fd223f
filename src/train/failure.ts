/** An engine that fails during training: what was saved, and how to go on. */
import { join } from 'node:path';
import { EngineError } from '../engine/engine.ts';
import { checkpointName, listCheckpoints, newestCheckpoint } from './checkpoint.ts';

/** The words of V8 for memory that the system does not give. */
const noMemory = /Array buffer allocation failed|could not allocate memory|Out of memory/i;

/** The fields of a configuration that advice names. */
interface FieldNames {
  /** What takes less memory where it is lower. */
  readonly smaller: string;
  readonly checkpoints: string;
}

const ofExperiments: FieldNames = {
  smaller: 'train.batchSize (train.accumulate makes up for it)',
  checkpoints: 'train.checkpoint.everySteps',
};

/** The error of an engine, or of the host's memory that is full; undefined for any other. */
function failureOf(error: unknown, { smaller }: FieldNames): EngineError | undefined {
  if (error instanceof EngineError) return error;
  if (!(error instanceof RangeError) || !noMemory.test(error.message)) return undefined;
  return new EngineError(`out of memory; lower ${smaller}, or give the process more.\n${error.message}`, {
    cause: error,
  });
}

/**
 * The error with which a run ends. To the engine's own, and to that of full memory, it adds the newest whole checkpoint.
 * @param checkpoints their folder
 * @param resumes whether the same command continues from a checkpoint
 */
export async function withCheckpoint(
  error: unknown,
  checkpoints: string,
  resumes: boolean,
  fields: FieldNames = ofExperiments,
): Promise<unknown> {
  const failure = failureOf(error, fields);
  if (failure === undefined) return error;
  const newest = await newestCheckpoint(checkpoints, () => undefined).catch(() => undefined);
  // Where memory is full, a whole checkpoint cannot be read either.
  const listed = (await listCheckpoints(checkpoints)).at(-1);
  const how = resumes ? 'run the same command' : 'run the same command with --resume auto';
  let rest = `There is no checkpoint yet (${fields.checkpoints}): the same command starts over.`;
  if (newest !== undefined) {
    const path = join(checkpoints, checkpointName(newest.progress.step));
    rest = `The newest whole checkpoint is ${path}; ${how}: it resumes from there.`;
  } else if (listed !== undefined) {
    rest = `The newest checkpoint is ${join(checkpoints, listed)}, which could not be read now; ${how}: it resumes from the newest that is whole.`;
  }
  return new EngineError(`${failure.message}\n${rest}`, { cause: error });
}
