/** Examples as training sees them: their tokens, where the audio stands, and what is learned. */
import { join } from 'node:path';
import { encoderShape } from '../audio/encoderShape.ts';
import { readWaveform } from '../audio/waveform.ts';
import { locate } from '../config/locate.ts';
import type { Experiment } from '../config/schema.ts';
import { ensureDataset, readSplit, type Split } from '../data/dataset.ts';
import type { Example } from '../data/manifest.ts';
import { loadPromptedLlm } from '../llm/weights.ts';
import { promptFormat } from '../pal/promptFormat.ts';
import { audioTokens, layersOf } from '../pal/streams.ts';
import type { Watch } from './setup.ts';
import { trainingRow } from './stage.ts';

export interface ShownToken {
  readonly id: number;
  /** U+FFFD stands for bytes that are no character without their neighbours. */
  readonly text: string;
  /** Whether it is in the loss. */
  readonly learned: boolean;
}

/** Audio tokens of a stream, for the clip of an example. */
export interface ShownAudio {
  readonly stream: string;
  readonly encoder: string;
  readonly connector: string;
  /** `prefix`: rows of the sequence. `attention-only`: keys and values alone. */
  readonly mode: string;
  readonly tokens: number;
  readonly layers: readonly number[];
}

export interface ShownExample {
  readonly id: string;
  readonly kind: string;
  readonly category: string;
  /** The clip, within the dataset's folder. */
  readonly clip: string;
  readonly tokens: readonly ShownToken[];
  /** The audio stands in front of this token. */
  readonly slot: number;
  readonly audio: readonly ShownAudio[];
  /** The same as text: runs of tokens that are learned or not; the audio stands between two of them. */
  readonly text: readonly ({ readonly text: string; readonly learned: boolean } | { readonly audio: true })[];
}

export interface ShownSplit {
  readonly experiment: string;
  readonly dataset: string;
  readonly split: Split;
  /** Questions of the split. */
  readonly questions: number;
  readonly examples: readonly ShownExample[];
}

/**
 * The first examples of a split. Nothing is encoded or run; an embedded dataset is built where it is missing.
 * @throws RunError, ManifestError or AudioError as training does
 */
export async function showExamples(
  experiment: Experiment,
  { split, count, watch }: { readonly split: Split; readonly count: number; readonly watch: Watch },
): Promise<ShownSplit> {
  const { data, prompt, streams } = experiment;
  const building = watch.progress(`building ${data.dataset}`, 100);
  await ensureDataset(data.dataset, data.dir, (fraction) => building.update(Math.round(100 * fraction)));
  building.stop();
  const examples = await readSplit(data.dir, split);
  const llm = await loadPromptedLlm(locate(experiment.llm.from));
  const format = promptFormat(prompt, llm);
  const { decode } = llm.tokenizer;
  const encoders = await Promise.all(streams.map(({ encoder }) => encoderShape(encoder)));

  async function audioOf({ audio }: Example): Promise<ShownAudio[]> {
    const varies = encoders.some(({ frames }) => frames === undefined);
    const clip = varies ? await readWaveform(join(data.dir, audio)) : undefined;
    const length = { samples: clip?.samples.length ?? 0, sampleRate: clip?.sampleRate ?? 1 };
    return streams.map((stream, at) => {
      const { width = 0, frames, framesOf } = encoders[at] ?? {};
      return {
        stream: stream.name,
        encoder: stream.encoder,
        connector: stream.connector.kind,
        mode: stream.integration.mode,
        tokens: audioTokens({ ...stream, width, frames: frames ?? framesOf?.(length) ?? 0 }),
        layers: layersOf(stream, llm.config.layers),
      };
    });
  }

  return {
    experiment: experiment.name,
    dataset: data.dataset,
    split,
    questions: examples.length,
    examples: await Promise.all(
      examples.slice(0, count).map(async (example) => {
        const { ids, targets } = trainingRow(experiment, format, example, undefined);
        const learned = new Set(targets.map(({ position }) => position + 1));
        const tokens = ids.map((id, at) => ({
          id,
          text: decode([id], { skipSpecial: false }),
          learned: learned.has(at),
        }));
        const slot = format.front.length;
        const { id, kind, category, audio: clip } = example;
        const textOf = (part: readonly ShownToken[]) =>
          runsOf(part).map((run) => ({
            text: decode(
              run.map((token) => token.id),
              { skipSpecial: false },
            ),
            learned: run[0]?.learned === true,
          }));
        const text = [
          ...textOf(tokens.slice(0, slot)),
          { audio: true as const },
          ...textOf(tokens.slice(slot)),
        ];
        return { id, kind, category, clip, tokens, slot, audio: await audioOf(example), text };
      }),
    ),
  };
}

/** Neighbours that are learned alike. */
function runsOf(tokens: readonly ShownToken[]): ShownToken[][] {
  const runs: ShownToken[][] = [];
  for (const token of tokens) {
    const last = runs.at(-1);
    if (last?.[0]?.learned === token.learned) last.push(token);
    else runs.push([token]);
  }
  return runs;
}
