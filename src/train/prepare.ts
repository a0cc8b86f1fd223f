/** What every run begins with: its examples, and the model with its initial parameters. */
import type { Encoder } from '../audio/encoderManifest.ts';
import type { Experiment } from '../config/schema.ts';
import { ensureDataset, readSplit } from '../data/dataset.ts';
import type { Example } from '../data/manifest.ts';
import type { FloatTensor, LlmFrame } from '../llm/weights.ts';
import type { AudioLlm } from '../pal/audioLlm.ts';
import type { ClipFeatures } from '../pal/batch.ts';
import type { PromptFormat } from '../pal/prompt.ts';
import { promptFormat } from '../pal/promptFormat.ts';
import {
  assemble,
  initialParameters,
  loadExperimentLlm,
  longestClips,
  RunError,
  type Watch,
} from './setup.ts';
import { tokenFrequencies } from './stage.ts';
import { fitting, type SkippedSample } from './textLength.ts';

export interface ExperimentExamples {
  readonly training: readonly Example[];
  readonly evaluation: readonly Example[];
}

/** Reads an experiment's examples; the embedded dataset is built where it is missing. */
export async function readExamples(
  { data, eval: { split } }: Experiment,
  watch: Watch,
): Promise<ExperimentExamples> {
  const building = watch.progress(`building ${data.dataset}`, 100);
  await ensureDataset(data.dataset, data.dir, (fraction) => building.update(Math.round(100 * fraction)));
  building.stop();
  return { training: await readSplit(data.dir, 'train'), evaluation: await readSplit(data.dir, split) };
}

export interface BuiltModel {
  /** The training examples whose clips could be read and whose text fits. */
  readonly usable: readonly Example[];
  /** Those whose clips could be read and whose text does not. */
  readonly tooLong: readonly SkippedSample[];
  readonly format: PromptFormat;
  /** Its parameters are among `parameters`, and nowhere else. */
  readonly llm: LlmFrame;
  readonly model: AudioLlm;
  readonly parameters: Map<string, FloatTensor>;
}

/**
 * The model of an experiment, with room for the longest of the clips.
 * @throws RunError when no training example could be read, or one is too long
 */
export async function buildModel(
  experiment: Experiment,
  encoders: ReadonlyMap<string, Encoder>,
  examples: readonly Example[],
  clips: ReadonlyMap<string, ClipFeatures>,
  watch: Watch,
): Promise<BuiltModel> {
  const heard = examples.filter(({ audio }) => clips.has(audio));
  if (heard.length === 0) throw new RunError(`${experiment.data.dir}: no training example could be read`);
  const { parameters: loaded, ...llm } = await loadExperimentLlm(experiment, watch);
  const model = assemble(experiment, llm, encoders, longestClips(experiment, clips.values()));
  const format = promptFormat(experiment.prompt, llm);
  const { fitting: usable, tooLong } = fitting(experiment, model, format, heard, 'training');
  if (usable.length === 0) throw new RunError(`${experiment.data.dir}: every training example is too long`);
  const frequencies = () => tokenFrequencies(experiment, format, usable);
  const parameters = initialParameters(model, loaded, experiment.seed, frequencies);
  return { usable, tooLong, format, llm, model, parameters };
}
