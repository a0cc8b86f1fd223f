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

export interface QuestionRows {
  readonly examples: readonly Example[];
  /** One an example. */
  readonly rows: readonly Row[];
  readonly leftOut: readonly SkippedSample[];
}

type Trained = Pick<Awaited<ReturnType<typeof readTrained>>, 'folder' | 'experiment' | 'model' | 'llm'>;

/**
 * Draws questions from the split that the experiment evaluates on.
 * @param limit questions at most
 * @param seed of the draw
 * @throws as `questionRows`
 */
export async function heldOutRows(
  trained: Trained,
  { limit, seed, watch }: { readonly limit: number; readonly seed: number; readonly watch: Watch },
): Promise<QuestionRows> {
  const { data, eval: evaluation } = trained.experiment;
  await ensureDataset(data.dataset, data.dir, () => undefined);
  const asked = someOf(await readSplit(data.dir, evaluation.split), limit, seed);
  return questionRows(trained, asked, watch);
}

/**
 * The questions as the model's rows, their clips encoded by its own encoders.
 * @throws RunError where it can take none of them, and as `encodeClips` and `fitting`
 */
export async function questionRows(
  { folder, experiment, model, llm }: Trained,
  asked: readonly Example[],
  watch: Watch,
): Promise<QuestionRows> {
  const { streams, train } = experiment;
  const encoders = new Map<string, Encoder>();
  try {
    for (const name of new Set(streams.map(({ encoder }) => encoder)))
      encoders.set(name, await loadEncoder(encoderOf(folder, experiment, name), { threads: train.threads }));
    const { clips, skipped } = await encodeClips(experiment, encoders, asked, watch);
    const format = promptFormat(experiment.prompt, llm);
    const heard = asked.filter(({ audio }) => clips.has(audio));
    const { fitting: examples, tooLong } = fitting(experiment, model, format, heard, 'training');
    if (examples.length === 0) throw new RunError(`${folder}: the model can take none of the questions`);
    const rows = examples.map((example) =>
      trainingRow(experiment, format, example, clips.get(example.audio)),
    );
    return { examples, rows, leftOut: [...skipped, ...tooLong] };
  } finally {
    for (const encoder of encoders.values()) await encoder.dispose();
  }
}
