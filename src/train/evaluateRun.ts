/** Evaluating a trained model on a split of its dataset. */
import { mkdir } from 'node:fs/promises';
import { join } from 'node:path';
import type { Encoder } from '../audio/encoderManifest.ts';
import { readWaveform } from '../audio/waveform.ts';
import { random } from '../config/random.ts';
import type { Experiment } from '../config/schema.ts';
import { writeFileAtomic } from '../config/writeFile.ts';
import { ensureDataset, readSplit } from '../data/dataset.ts';
import type { Example } from '../data/manifest.ts';
import type { Engine } from '../engine/engine.ts';
import { type EvaluationRecord, evaluate } from '../eval/evaluate.ts';
import type { Tokenizer } from '../llm/tokenizer.ts';
import type { AudioLlm } from '../pal/audioLlm.ts';
import type { ClipFeatures } from '../pal/batch.ts';
import type { PromptFormat } from '../pal/prompt.ts';
import { promptFormat } from '../pal/promptFormat.ts';
import type { ParameterTensors } from '../tensor/parameters.ts';
import { loadModel } from './modelFolder.ts';
import { assemble, type EncodedClips, encodeClips, loadEncoders, makeEngine, type Watch } from './setup.ts';
import { fitting } from './textLength.ts';

export interface ModelToEvaluate {
  readonly engine: Engine;
  readonly encoders: ReadonlyMap<string, Encoder>;
  readonly model: AudioLlm;
  readonly parameters: ParameterTensors;
  readonly tokenizer: Tokenizer;
  readonly format: PromptFormat;
  readonly examples: readonly Example[];
  readonly trainingExamples: readonly Example[];
  readonly encoded: EncodedClips;
  readonly watch: Watch;
}

/**
 * As many of the questions, drawn at random and in their order: those at the beginning of a dataset are often of one
 * kind. The draw does not depend on the run, so that all runs are asked the same.
 * @param seed of another draw
 */
export function someOf<T>(questions: readonly T[], limit: number, seed?: number): T[] {
  const draw = random('questions that are asked', ...(seed === undefined ? [] : [seed]));
  const order = draw.shuffle([...questions.keys()]);
  return order
    .slice(0, limit)
    .sort((a, b) => a - b)
    .map((at) => questions[at] as T);
}

/** Evaluates and writes eval/<dataset>.json and eval/<dataset>.jsonl into the run's folder. */
export async function evaluateModel(experiment: Experiment, of: ModelToEvaluate): Promise<EvaluationRecord> {
  const { split, limit, batchSize, controls, open } = experiment.eval;
  const readable = of.examples.filter(({ audio }) => of.encoded.clips.has(audio));
  const { fitting: usable, tooLong } = fitting(experiment, of.model, of.format, readable, 'evaluation');
  const ids = new Set(of.examples.map((example) => example.id));
  const bars = new Map<string, ReturnType<Watch['progress']>>();
  const { record, lines } = await evaluate({
    engine: of.engine,
    model: of.model,
    parameters: of.parameters,
    tokenizer: of.tokenizer,
    prompt: experiment.prompt,
    format: of.format,
    task: experiment.data.dataset,
    split,
    examples: limit === null ? usable : someOf(usable, limit),
    trainingExamples: of.trainingExamples,
    clips: of.encoded.clips,
    silence: silenceFor(experiment, of.encoders),
    skipped: [...of.encoded.skipped.filter(({ id }) => ids.has(id)), ...tooLong],
    controls,
    open,
    batchSize,
    seed: experiment.seed,
    onProgress: (condition, done, total) => {
      const bar = bars.get(condition) ?? of.watch.progress(`asking (${condition})`, total);
      bars.set(condition, bar);
      bar.update(done);
      if (done === total) bar.stop();
    },
  });
  const folder = join(experiment.run.dir, 'eval');
  await mkdir(folder, { recursive: true });
  await writeFileAtomic(
    join(folder, `${record.task}.jsonl`),
    lines.map((line) => `${JSON.stringify(line)}\n`).join(''),
  );
  await writeFileAtomic(join(folder, `${record.task}.json`), `${JSON.stringify(record, null, 2)}\n`);
  return record;
}

/** What the encoders make of silence as long as a clip; clips of one length share it. */
function silenceFor(
  { data, streams }: Experiment,
  encoders: ReadonlyMap<string, Encoder>,
): (audio: string) => Promise<ClipFeatures> {
  const byLength = new Map<string, Promise<ClipFeatures>>();
  const encode = async (length: number, sampleRate: number): Promise<ClipFeatures> => {
    const silence = { samples: new Float32Array(length), sampleRate };
    const names = [...new Set(streams.map((stream) => stream.encoder))];
    const features = await Promise.all(
      names.map(async (name) => (encoders.get(name) as Encoder).encode(silence)),
    );
    return new Map(
      names.map((name, index) => [name, features[index] as Awaited<ReturnType<Encoder['encode']>>]),
    );
  };
  return async (audio) => {
    const { samples, sampleRate } = await readWaveform(join(data.dir, audio));
    const key = `${samples.length}@${sampleRate}`;
    const known = byLength.get(key) ?? encode(samples.length, sampleRate);
    byLength.set(key, known);
    return known;
  };
}

/** Evaluates the trained model of a run. */
export async function runEvaluation(
  experiment: Experiment,
  { watch }: { readonly watch: Watch },
): Promise<EvaluationRecord> {
  await ensureDataset(experiment.data.dataset, experiment.data.dir, () => undefined);
  const engine = await makeEngine(experiment, watch.note);
  const encoders = await loadEncoders(experiment);
  try {
    const { model, llm, parameters } = await loadModel(join(experiment.run.dir, 'model'), (loaded, frames) =>
      assemble(experiment, loaded, encoders, frames),
    );
    const examples = await readSplit(experiment.data.dir, experiment.eval.split);
    return await evaluateModel(experiment, {
      engine,
      encoders,
      model,
      parameters,
      tokenizer: llm.tokenizer,
      format: promptFormat(experiment.prompt, llm),
      examples,
      trainingExamples: await readSplit(experiment.data.dir, 'train'),
      encoded: await encodeClips(experiment, encoders, examples, watch),
      watch,
    });
  } finally {
    for (const encoder of encoders.values()) await encoder.dispose();
    await engine.dispose();
  }
}
