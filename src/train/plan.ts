/**
 * What training an experiment will take: parameters, memory, arithmetic and time, by stages. All of it is read off
 * configuration, manifests and tensor programs; nothing is encoded, run or trained.
 */
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { type EncoderShape, encoderShape } from '../audio/encoderShape.ts';
import { reasonToSkip } from '../audio/featureCache.ts';
import { readWaveform } from '../audio/waveform.ts';
import type { Experiment } from '../config/schema.ts';
import { readSplit } from '../data/dataset.ts';
import type { Example } from '../data/manifest.ts';
import { describeOnnx } from '../engine/onnx/engine.ts';
import { prepared } from '../engine/onnx/lower.ts';
import { tfjsArithmetic } from '../engine/tfjs/engine.ts';
import { type HeldByLayers, heldByLayers } from '../ffn/accounting.ts';
import type { BatchShape } from '../pal/batch.ts';
import { promptFormat } from '../pal/promptFormat.ts';
import { simplify } from '../tensor/passes.ts';
import type { Program } from '../tensor/program.ts';
import { schedule } from '../tensor/schedule.ts';
import { type Activations, activationsOf } from './activations.ts';
import { updateProgram } from './deviceState.ts';
import { maskBytes } from './dropout.ts';
import { constantCopiesBytes, ownConstantsBytes } from './frozenWeights.ts';
import { type MemoryTerm, memoryTerms } from './planMemory.ts';
import { estimateStepMs, type PartWork, type ProgramWork, partsOf, type Rates } from './planTime.ts';
import { findStage } from './profile.ts';
import { assemble, checkPrecision, initialParameters, loadExperimentLlm, RunError } from './setup.ts';
import {
  bytesOfAll,
  describeShapes,
  planStage,
  type StagePlan,
  tokenFrequencies,
  trainableByStage,
} from './stage.ts';
import type { Objective } from './step.ts';
import { fitting, type SkippedSample } from './textLength.ts';
import { stepProgram } from './trainingState.ts';
import { type StageTrains, whatTrains } from './trains.ts';

export interface PlannedStage {
  readonly stage: string;
  readonly steps: number;
  readonly questions: number;
  /** Of micro-batches: the first holds every one, and `share` of them take each. */
  readonly shapes: readonly (BatchShape & { readonly share: number })[];
  /** What the shapes save and hold, for people; null where there is to be one. */
  readonly batchShapes: string | null;
  readonly parameters: {
    readonly all: number;
    readonly trained: number;
    readonly trainedBytes: number;
    readonly frozenBytes: number;
    readonly gradientBytes: number;
    readonly optimizerBytes: number;
  };
  /** Of the program for the largest micro-batches. */
  readonly activations: Activations;
  /** Which layers compute their activations again, and why; null where none are asked for. */
  readonly recomputation: string | null;
  /** Work of one step by the parts of the model, most arithmetic first. */
  readonly parts: readonly PartWork[];
  readonly flops: number;
  /** What the process holds in this stage; empty for an engine whose memory was not measured. */
  readonly memory: readonly MemoryTerm[];
  /** Megabytes (10^6 bytes); null likewise. */
  readonly peakResidentMB: number | null;
  /** null where no rates are known. */
  readonly stepMs: number | null;
}

export interface ExperimentPlan {
  readonly experiment: string;
  readonly engine: string;
  readonly rates: Rates | null;
  /** What training would say about its precision. */
  readonly notes: readonly string[];
  /** Samples that training will leave out: too long, or with a clip that had to be opened and cannot be read. */
  readonly skipped: readonly SkippedSample[];
  /** Frames and width that each stream gets from its encoder. */
  readonly streams: readonly { readonly stream: string; readonly frames: number; readonly width: number }[];
  /** What feed-forward layers hold for the backward pass, as their papers count it; of blocks nothing is told. */
  readonly feedForward: readonly HeldByLayers[];
  readonly stages: readonly PlannedStage[];
  /** What the stages train, by groups of parameters. */
  readonly trains: readonly StageTrains[];
}

export interface PlanOptions {
  /** A stage's name, or its number from 1; all when left out. */
  readonly stage?: string | undefined;
  /** What the machine does; null leaves the time out. */
  readonly rates: Rates | null;
}

/**
 * Plans an experiment.
 * @throws RunError saying what is missing, and how to get it; EngineError for a precision that the engine is known not
 *   to have; the reading error of a bad sample, unless the policy is to skip
 */
export async function planExperiment(
  experiment: Experiment,
  { stage: wanted, rates }: PlanOptions,
): Promise<ExperimentPlan> {
  const { engine, train } = experiment;
  const only = wanted === undefined ? undefined : findStage(experiment, wanted);
  const notes: string[] = [];
  await checkKnownPrecision(experiment, (text) => notes.push(text));
  const examples = await examplesOf(experiment);
  const heard = await hear(experiment, [...examples.training, ...examples.evaluation]);
  const audible = examples.training.filter(({ audio }) => !heard.bad.has(audio));
  if (audible.length === 0) throw new RunError(`${experiment.data.dir}: no training example could be read`);
  const { parameters: loaded, ...llm } = await loadExperimentLlm(experiment);
  const model = assemble(experiment, llm, heard.shapes, heard.frames);
  const format = promptFormat(experiment.prompt, llm);
  const { fitting: usable, tooLong } = fitting(experiment, model, format, audible, 'training');
  if (usable.length === 0) throw new RunError(`${experiment.data.dir}: every training example is too long`);
  const frequencies = () => tokenFrequencies(experiment, format, usable);
  const parameters = initialParameters(model, loaded, experiment.seed, frequencies);
  const inPlace = engine.kind === 'onnx' && engine.provider === 'cpu';
  const sources = {
    experiment,
    model,
    format,
    examples: usable,
    clips: new Map(),
    parameters,
    inPlace,
  };
  const trainable = trainableByStage(experiment, parameters.keys());
  const trains = whatTrains(experiment, parameters);
  const stages = train.stages.flatMap((_, index): PlannedStage[] => {
    if (only !== undefined && index !== only) return [];
    const plan = planStage(sources, index, trainable[index] as Set<string>);
    const { stage, rows, batches, options, recomputation } = plan;
    const { sizes, update } = stepPrograms(experiment, plan, inPlace);
    const activations = sizes.map(({ program }) => activationsOf(program));
    const trainedBytes = bytesOfAll(options.trainable);
    const frozenBytes = bytesOfAll(options.frozen);
    const parts = partsOf([...sizes, ...update], inPlace ? trainedBytes : 0);
    const memory = inPlace
      ? memoryTerms({
          encoders: heard.shapes.size,
          featureBytes: heard.featureBytes,
          trainedBytes,
          frozenBytes,
          programs: sizes.map(({ program }, at) => ({
            nodes: program.nodes.length,
            copiesBytes: constantCopiesBytes(program),
            ownConstantsBytes: ownConstantsBytes(program, options.frozen.values()),
            activationBytes: activations[at]?.peakBytes ?? 0,
            maskBytes: maskBytes(program),
          })),
        })
      : [];
    return [
      {
        stage: stage.name,
        steps: stage.steps,
        questions: rows.length,
        shapes: batches.shapes.map((shape, at) => ({ ...shape, share: batches.shares[at] ?? 0 })),
        batchShapes:
          train.batchShapes > 1 ? describeShapes(batches, options.frozen, train.batchShapes) : null,
        parameters: {
          all: trains[index]?.all.parameters ?? 0,
          trained: trainedBytes / 4,
          trainedBytes,
          frozenBytes,
          gradientBytes: trainedBytes,
          optimizerBytes: 2 * trainedBytes,
        },
        activations: activations[0] as Activations,
        recomputation: recomputation?.reason ?? null,
        parts,
        flops: parts.reduce(
          (total, part) => total + part.flops.forward + part.flops.backward + part.flops.update,
          0,
        ),
        memory,
        peakResidentMB: inPlace
          ? Math.round(memory.reduce((total, { bytes }) => total + bytes, 0) / 1e6)
          : null,
        stepMs: rates === null ? null : estimateStepMs(parts, rates, train.threads),
      },
    ];
  });
  return {
    experiment: experiment.name,
    engine: describeEngine(experiment),
    rates,
    notes,
    skipped: [
      ...[...examples.training, ...examples.evaluation].flatMap(({ id, audio }) => {
        const reason = heard.bad.get(audio);
        return reason === undefined ? [] : [{ id, reason }];
      }),
      ...tooLong,
    ],
    streams: model.streams.map(({ name, frames, width }) => ({ stream: name, frames, width })),
    feedForward: heldByLayers(model.ffn ?? [], model.llm),
    stages,
    trains: trains.filter((_, index) => only === undefined || index === only),
  };
}

function describeEngine({ engine, train }: Experiment): string {
  if (engine.kind === 'tfjs') return `tfjs (${engine.backend})`;
  return describeOnnx(engine.provider, train.threads);
}

/** Says of the precision what training will, where no device need be asked. */
async function checkKnownPrecision(experiment: Experiment, note: (text: string) => void): Promise<void> {
  const { engine } = experiment;
  const description = describeEngine(experiment);
  if (engine.kind === 'tfjs')
    await checkPrecision(experiment, { description, arithmetic: tfjsArithmetic }, note);
  else if (engine.provider === 'cpu')
    await checkPrecision(experiment, { description, arithmetic: async () => 'emulated' }, note);
}

/** The programs of a step as the engine runs them: one for each size of micro-batches, and the update where it is one. */
function stepPrograms(
  { engine, train }: Experiment,
  { batches, options }: StagePlan,
  inPlace: boolean,
): { sizes: ProgramWork[]; update: ProgramWork[] } {
  const compiled = (program: Program) =>
    schedule(engine.kind === 'onnx' ? prepared(program, engine.provider) : simplify(program));
  const objectives: Objective[] = [options.objective, ...(options.otherSizes ?? [])];
  const sizes = objectives.map((objective, at) => ({
    program: compiled(stepProgram({ ...options, objective }, inPlace)),
    runs: train.accumulate * (batches.shares[at] ?? 0),
  }));
  const update =
    inPlace || train.accumulate === 1 ? [] : [{ program: compiled(updateProgram(options)), runs: 1 }];
  return { sizes, update };
}

async function examplesOf({ data, eval: { split } }: Experiment) {
  if (!existsSync(join(data.dir, 'dataset.json'))) {
    throw new RunError(
      `data.dir: ${data.dir} holds no dataset, and the lengths of questions and clips come from there; build it: ` +
        `palkit data build ${data.dataset} --dir ${data.dir}`,
    );
  }
  return { training: await readSplit(data.dir, 'train'), evaluation: await readSplit(data.dir, split) };
}

interface Heard {
  /** By the encoder's name. */
  readonly shapes: ReadonlyMap<string, EncoderShape>;
  /** Frames of the longest clip, by stream. */
  readonly frames: ReadonlyMap<string, number>;
  /** Of the features of all clips, which a run holds. */
  readonly featureBytes: number;
  /** Clips that are left out, and why. */
  readonly bad: ReadonlyMap<string, string>;
}

/** What the encoders will make of the clips. The clips are only opened where their lengths decide. */
async function hear({ streams, data }: Experiment, examples: readonly Example[]): Promise<Heard> {
  const shapes = new Map<string, EncoderShape>();
  for (const { encoder } of streams) shapes.set(encoder, await encoderShape(encoder));
  const clips = new Map<string, string>();
  for (const { id, audio } of examples) if (!clips.has(audio)) clips.set(audio, id);
  const varying = [...shapes.values()].filter(({ frames }) => frames === undefined);
  const lengths: { samples: number; sampleRate: number }[] = [];
  const bad = new Map<string, string>();
  for (const [clip, id] of varying.length === 0 ? [] : clips) {
    try {
      const { samples, sampleRate } = await readWaveform(join(data.dir, clip));
      const length = { samples: samples.length, sampleRate };
      for (const { framesOf } of varying) framesOf(length);
      lengths.push(length);
    } catch (error) {
      bad.set(clip, reasonToSkip(error, id, data.onBadSample));
    }
  }
  const count = clips.size - bad.size;
  let featureBytes = 0;
  const longest = new Map<string, number>();
  for (const [encoder, { width, frames, framesOf }] of shapes) {
    const counts = frames === undefined ? lengths.map(framesOf) : [frames];
    const total = frames === undefined ? counts.reduce((sum, own) => sum + own, 0) : frames * count;
    featureBytes += 4 * width * total;
    longest.set(
      encoder,
      counts.reduce((most, own) => Math.max(most, own), 1),
    );
  }
  const frames = new Map(streams.map(({ name, encoder }) => [name, longest.get(encoder) ?? 1]));
  return { shapes, frames, featureBytes, bad };
}
