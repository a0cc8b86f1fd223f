/** Questions of a split, as a trained model is to read them: each with its clip, and its right answer behind it. */
import { loadEncoder } from '../audio/encoder.ts';
import type { Encoder } from '../audio/encoderManifest.ts';
import { ensureDataset, readSplit } from '../data/dataset.ts';
import type { Example } from '../data/manifest.ts';
import type { Row } from '../pal/batch.ts';
import { promptFormat } from '../pal/promptFormat.ts';
import { someOf } from './evaluateRun.ts';
import type { readTrained } from './export.ts';
import { encoderOf } from './modelFolder.ts';
import { encodeClips, RunError, type Watch } from './setup.ts';
import { trainingRow } from './stage.ts';
import { fitting, type SkippedSample } from './textLength.ts';

export interface HeldOutRows {
  readonly examples: readonly Example[];
  /** One an example. */
  readonly rows: readonly Row[];
  readonly leftOut: readonly SkippedSample[];
}

/**
 * Draws questions from the split that the experiment evaluates on, and encodes their clips.
 * @param limit questions at most
 * @param seed of the draw
 * @throws RunError where none can be taken, and as `encodeClips` and `fitting`
 */
export async function heldOutRows(
  { folder, experiment, model, llm }: Awaited<ReturnType<typeof readTrained>>,
  { limit, seed, watch }: { readonly limit: number; readonly seed: number; readonly watch: Watch },
): Promise<HeldOutRows> {
  const { data, streams, train, eval: evaluation } = experiment;
  await ensureDataset(data.dataset, data.dir, () => undefined);
  const asked = someOf(await readSplit(data.dir, evaluation.split), limit, seed);
  const encoders = new Map<string, Encoder>();
  try {
    for (const name of new Set(streams.map(({ encoder }) => encoder)))
      encoders.set(name, await loadEncoder(encoderOf(folder, experiment, name), { threads: train.threads }));
    const { clips, skipped } = await encodeClips(experiment, encoders, asked, watch);
    const format = promptFormat(experiment.prompt, llm);
    const heard = asked.filter(({ audio }) => clips.has(audio));
    const { fitting: examples, tooLong } = fitting(experiment, model, format, heard, 'training');
    if (examples.length === 0)
      throw new RunError(`${data.dir}: the model can take none of the ${evaluation.split} questions`);
    const rows = examples.map((example) =>
      trainingRow(experiment, format, example, clips.get(example.audio)),
    );
    return { examples, rows, leftOut: [...skipped, ...tooLong] };
  } finally {
    for (const encoder of encoders.values()) await encoder.dispose();
  }
}
