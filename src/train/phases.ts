/** The phases of `palkit lm`: steps, checkpoints, and a measurement behind each. */
import { join } from 'node:path';
import type { LmExperiment } from '../config/lmSchema.ts';
import { type Engine, EngineError } from '../engine/engine.ts';
import { type FloatTensor, parameterHash } from '../llm/weights.ts';
import type { AudioLlm } from '../pal/audioLlm.ts';
import type { ParameterTensors } from '../tensor/parameters.ts';
import {
  type Checkpoint,
  noProgress,
  type ReadCheckpoint,
  saveCheckpoint,
  type TrainingProgress,
} from './checkpoint.ts';
import { answerBatch } from './loss.ts';
import type { ModelName } from './measurements.ts';
import { openMetrics, peakResidentMB, routingMetrics } from './metrics.ts';
import { dataOrder } from './order.ts';
import { type Sequences, textShape } from './perplexity.ts';
import { learningRateAt, type Schedule } from './schedule.ts';
import type { Watch } from './setup.ts';
import { pick } from './stage.ts';
import { NonFiniteError, type Objective } from './step.ts';
import { trainingState } from './trainingState.ts';

/** A part of the training, with a loss of its own. */
export interface Phase {
  readonly name: 'reconstructed' | 'trained';
  readonly objective: Objective;
  /** The parameters that train. */
  readonly names: ReadonlySet<string>;
  readonly schedule: Schedule;
}

/** Measures the model as it is now, and keeps what is found. */
export type Measure = (
  name: ModelName,
  own: { model: AudioLlm; parameters: ParameterTensors },
  feedForward?: Readonly<Record<string, number>>,
) => Promise<void>;

interface Work {
  readonly engine: Engine;
  readonly model: AudioLlm;
  /** Changed as training goes on. */
  readonly parameters: Map<string, FloatTensor>;
  readonly phases: readonly Phase[];
  readonly training: Sequences;
  readonly watch: Watch;
  /** Asked after every step; true saves and stops. */
  readonly interrupted?: (() => boolean) | undefined;
  readonly configHash: string;
  readonly checkpoint: ReadCheckpoint | undefined;
  readonly measure: Measure;
}

/**
 * Trains the phases one after the other, from the checkpoint where there is one, and measures the model behind each.
 * @returns false where it was interrupted; it is saved
 */
export async function runPhases(experiment: LmExperiment, work: Work): Promise<boolean> {
  const { parameters, phases, model, watch, configHash, checkpoint, measure } = work;
  const { dir } = experiment.run;
  const ever = new Set(phases.flatMap(({ names }) => [...names]));
  if (checkpoint !== undefined) {
    watch.note(`going on after step ${checkpoint.progress.step}`);
    for (const [name, tensor] of checkpoint.parameters) parameters.set(name, tensor);
  }
  let progress: TrainingProgress =
    checkpoint?.progress ??
    noProgress({
      seed: experiment.seed,
      configHash,
      frozenHash: parameterHash(new Map([...parameters].filter(([name]) => !ever.has(name)))),
    });
  let moments = checkpoint?.moments ?? new Map<string, FloatTensor>();
  const log = await openMetrics(join(dir, 'metrics.jsonl'), progress.step);
  const save = async (state: Omit<Checkpoint, 'parameters'>) => {
    await saveCheckpoint(join(dir, 'checkpoints'), { ...state, parameters: pick(parameters, ever) }, 1);
  };
  try {
    for (const [index, phase] of phases.entries()) {
      if (index < progress.stage) continue;
      const done = await runPhase(experiment, { ...work, phase, progress, moments, log, save });
      if (done === undefined) return false;
      await measure(phase.name, { model, parameters }, done.feedForward);
      progress = { ...done.progress, stage: index + 1, stageStep: 0, drawn: 0, updates: 0 };
      moments = new Map();
      await save({ progress, moments });
    }
  } finally {
    log.close();
  }
  return true;
}

async function runPhase(
  { seed, train }: LmExperiment,
  {
    engine,
    model,
    parameters,
    phase,
    training,
    watch,
    interrupted = () => false,
    progress: start,
    moments,
    log,
    save,
  }: Work & {
    phase: Phase;
    progress: TrainingProgress;
    moments: ParameterTensors;
    log: Awaited<ReturnType<typeof openMetrics>>;
    save: (state: Omit<Checkpoint, 'parameters'>) => Promise<void>;
  },
): Promise<
  { progress: TrainingProgress; feedForward: Readonly<Record<string, number>> | undefined } | undefined
> {
  const shape = textShape(train.batchSize, train.sequenceLength);
  const order = dataOrder(seed, phase.name, training.count, train.batchSize);
  const state = await trainingState(
    {
      engine,
      objective: phase.objective,
      trainable: pick(parameters, phase.names),
      frozen: new Map([...parameters].filter(([name]) => !phase.names.has(name))),
      optimizer: train.optimizer,
      clipNorm: train.clipNorm,
      accumulate: 1,
    },
    moments.size === 0 ? undefined : { updates: start.updates, moments },
  ).catch((error: unknown) => {
    throw located(error, `the step of ${phase.name === 'trained' ? 'training' : 'reconstruction'}`);
  });
  const bar = watch.progress(phase.name === 'trained' ? 'training' : 'reconstructing', phase.schedule.steps);
  let progress = start;
  let feedForward: Readonly<Record<string, number>> | undefined;
  const takeOver = async () => {
    for (const [name, { dtype, shape: own, data }] of await state.parameters())
      parameters.set(name, { dtype, shape: own, data: data.slice() });
  };
  try {
    while (progress.stageStep < phase.schedule.steps) {
      const began = performance.now();
      const rows = order.batch(progress.drawn).map((at) => training.row(at));
      const batch = answerBatch(model, shape, rows);
      const learningRate = learningRateAt(progress.stageStep, phase.schedule);
      const { loss, gradientNorm, statistics } = await state
        .step([batch], learningRate)
        .catch((error: unknown) => {
          const read = rows.map(({ id }) => id).join(', ');
          throw located(error, `step ${progress.step + 1} (${phase.name}; ${read})`);
        });
      const stepMs = performance.now() - began;
      progress = {
        ...progress,
        step: progress.step + 1,
        stageStep: progress.stageStep + 1,
        drawn: progress.drawn + 1,
        updates: progress.updates + 1,
        tokensSeen: progress.tokensSeen + batch.tokens,
      };
      const tokensPerSecond = Math.round((1000 * batch.tokens) / stepMs);
      const routing = routingMetrics(statistics);
      feedForward = routing.feedForward ?? feedForward;
      log.append({
        step: progress.step,
        stage: phase.name,
        loss,
        learningRate,
        gradientNorm,
        ...routing,
        tokens: batch.tokens,
        tokensPerSecond,
        stepMs,
        peakResidentMB: peakResidentMB(),
      });
      bar.update(progress.stageStep, { loss: loss.toFixed(3), 'tokens/s': String(tokensPerSecond) });
      const ends = progress.stageStep === phase.schedule.steps;
      const stopped = !ends && interrupted();
      if (stopped || (!ends && progress.step % train.checkpointEvery === 0)) {
        await takeOver();
        await save({ progress, moments: (await state.optimizer()).moments });
      }
      if (stopped) return undefined;
    }
    await takeOver();
    return { progress, feedForward };
  } finally {
    bar.stop();
    await state.dispose();
  }
}

/** The error with its place; what an engine says stays an engine's error. */
export function located(error: unknown, where: string): unknown {
  if (!(error instanceof Error)) return error;
  const message = `${where}: ${error.message}`;
  if (error instanceof EngineError) return new EngineError(message, { cause: error });
  return error instanceof NonFiniteError ? new NonFiniteError(message, { cause: error }) : error;
}
