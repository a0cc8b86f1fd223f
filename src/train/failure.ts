/** An engine that fails during training: what was saved, and how to go on. */
import { join } from 'node:path';
import { EngineError } from '../engine/engine.ts';
import { checkpointName, newestCheckpoint } from './checkpoint.ts';

/**
 * The error with which a run ends. To the engine's own it adds the newest whole checkpoint.
 * @param checkpoints their folder
 * @param resumes whether the same command continues from a checkpoint
 */
export async function withCheckpoint(
  error: unknown,
  checkpoints: string,
  resumes: boolean,
): Promise<unknown> {
  if (!(error instanceof EngineError)) return error;
  const newest = await newestCheckpoint(checkpoints, () => undefined).catch(() => undefined);
  const how = resumes ? 'run the same command' : 'run the same command with --resume auto';
  const rest =
    newest === undefined
      ? 'There is no checkpoint yet (train.checkpoint.everySteps): the same command starts over.'
      : `The newest whole checkpoint is ${join(checkpoints, checkpointName(newest.progress.step))}; ${how}: it resumes from there.`;
  return new EngineError(`${error.message}\n${rest}`, { cause: error });
}
