/**
 * What training an experiment will take: parameters, memory, arithmetic and time, by stages. All of it is read off
 * configuration, manifests and tensor programs; nothing is encoded, run or trained.
 */
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { type EncoderShape, encoderShape } from '../audio/encoderShape.ts';
import { readWaveform } from '../audio/waveform.ts';
import type { Experiment } from '../config/schema.ts';
import { readSplit } from '../data/dataset.ts';
import type { Example } from '../data/manifest.ts';
import type { BatchShape } from '../pal/batch.ts';
import type { ParameterTensors } from '../tensor/parameters.ts';
import { simplify } from '../tensor/passes.ts';
import { schedule } from '../tensor/schedule.ts';
import { type Activations, activationsOf } from './activations.ts';
import { type MemoryTerm, memoryTerms } from './planMemory.ts';
import { estimateStepMs, type PartWork, partsOf, type Rates } from './planTime.ts';
import { findStage } from './profile.ts';
import { assemble, initialParameters, loadExperimentLlm, RunError } from './setup.ts';
import { planStage, trainableByStage } from './stage.ts';
import { stepProgram } from './trainingState.ts';

export interface PlannedStage {
  readonly stage: string;
  readonly steps: number;
  readonly questions: number;
  /** Of a micro-batch. */
  readonly shape: { readonly rows: number; readonly textRows: number; readonly targets: number };
  readonly parameters: {
    readonly all: number;
    readonly trained: number;
    readonly trainedBytes: number;
    readonly frozenBytes: number;
    readonly gradientBytes: number;
    readonly optimizerBytes: number;
  };
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
  /** Frames and width that each stream gets from its encoder. */
  readonly streams: readonly { readonly stream: string; readonly frames: number; readonly width: number }[];
  readonly stages: readonly PlannedStage[];
}

export interface PlanOptions {
  /** A stage's name, or its number from 1; all when left out. */
  readonly stage?: string | undefined;
  /** What the machine does; null leaves the time out. */
  readonly rates: Rates | null;
}

/**
 * Plans an experiment.
 * @throws RunError saying what is missing, and how to get it
 */
export async function planExperiment(
  experiment: Experiment,
  { stage: wanted, rates }: PlanOptions,
): Promise<ExperimentPlan> {
  const { engine, train } = experiment;
  const only = wanted === undefined ? undefined : findStage(experiment, wanted);
  const examples = await examplesOf(experiment);
  const heard = await hear(experiment, [...examples.training, ...examples.evaluation]);
  const { parameters: loaded, ...llm } = await loadExperimentLlm(experiment);
  const model = assemble(experiment, llm, heard.shapes, heard.frames);
  const parameters = initialParameters(model, loaded, experiment.seed);
  const inPlace = engine.kind === 'onnx' && engine.provider === 'cpu';
  const sources = {
    experiment,
    model,
    tokenizer: llm.tokenizer,
    examples: examples.training,
    clips: new Map(),
    parameters,
    inPlace,
  };
  const trainable = trainableByStage(experiment, parameters.keys());
  const stages = train.stages.flatMap((_, index): PlannedStage[] => {
    if (only !== undefined && index !== only) return [];
    const { stage, rows, batches, options, recomputation } = planStage(
      sources,
      index,
      trainable[index] as Set<string>,
    );
    const program = schedule(simplify(stepProgram(options, inPlace)));
    const activations = activationsOf(program);
    const trainedBytes = bytesOfAll(options.trainable);
    const frozenBytes = bytesOfAll(options.frozen);
    const parts = partsOf(program, { runs: train.accumulate, updatedBytes: inPlace ? trainedBytes : 0 });
    const memory = inPlace
      ? memoryTerms({
          encoders: heard.shapes.size,
          featureBytes: heard.featureBytes,
          trainedBytes,
          frozenBytes,
          activationBytes: activations.peakBytes,
          nodes: program.nodes.length,
        })
      : [];
    return [
      {
        stage: stage.name,
        steps: stage.steps,
        questions: rows.length,
        shape: batches.shapes[0] as BatchShape,
        parameters: {
          all: (trainedBytes + frozenBytes) / 4,
          trained: trainedBytes / 4,
          trainedBytes,
          frozenBytes,
          gradientBytes: trainedBytes,
          optimizerBytes: 2 * trainedBytes,
        },
        activations,
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
    engine:
      engine.kind === 'onnx'
        ? `onnx (${engine.provider}, ${train.threads} threads)`
        : `tfjs (${engine.backend})`,
    rates,
    streams: model.streams.map(({ name, frames, width }) => ({ stream: name, frames, width })),
    stages,
  };
}

function bytesOfAll(parameters: ParameterTensors): number {
  return [...parameters.values()].reduce((total, { data }) => total + data.byteLength, 0);
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
}

/** What the encoders will make of the clips. The clips are only opened where their lengths decide. */
async function hear({ streams, data }: Experiment, examples: readonly Example[]): Promise<Heard> {
  const shapes = new Map<string, EncoderShape>();
  for (const { encoder } of streams) shapes.set(encoder, await encoderShape(encoder));
  const clips = [...new Set(examples.map(({ audio }) => audio))];
  const lengths: { samples: number; sampleRate: number }[] = [];
  if ([...shapes.values()].some(({ frames }) => frames === undefined)) {
    for (const clip of clips) {
      const { samples, sampleRate } = await readWaveform(join(data.dir, clip));
      lengths.push({ samples: samples.length, sampleRate });
    }
  }
  let featureBytes = 0;
  const longest = new Map<string, number>();
  for (const [encoder, { width, frames, framesOf }] of shapes) {
    const counts = frames === undefined ? lengths.map(framesOf) : [frames];
    const total =
      frames === undefined ? counts.reduce((sum, count) => sum + count, 0) : frames * clips.length;
    featureBytes += 4 * width * total;
    longest.set(
      encoder,
      counts.reduce((most, count) => Math.max(most, count), 1),
    );
  }
  const frames = new Map(streams.map(({ name, encoder }) => [name, longest.get(encoder) ?? 1]));
  return { shapes, frames, featureBytes };
}
