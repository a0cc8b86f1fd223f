/** The staged curriculum: what trains when, on what, how fast; interruptible at any step. */
import type { Experiment } from '../config/schema.ts';
import type { Example } from '../data/manifest.ts';
import { type Engine, EngineError } from '../engine/engine.ts';
import { type FloatTensor, parameterHash } from '../llm/weights.ts';
import type { AudioLlm } from '../pal/audioLlm.ts';
import type { ClipFeatures } from '../pal/batch.ts';
import type { PromptFormat } from '../pal/prompt.ts';
import type { ParameterTensors } from '../tensor/parameters.ts';
import { float32 } from '../tensor/tensor.ts';
import { type Checkpoint, noProgress, type ReadCheckpoint, type TrainingProgress } from './checkpoint.ts';
import { collectGarbage } from './collectGarbage.ts';
import { peakResidentMB, routingMetrics, type StepMetrics } from './metrics.ts';
import { learningRateAt } from './schedule.ts';
import { configHash, type Watch } from './setup.ts';
import { describeShapes, drawWindow, pick, planStage, trainableByStage } from './stage.ts';
import { NonFiniteError, type OptimizerState } from './step.ts';
import { trainingState } from './trainingState.ts';

type Parameters = Map<string, FloatTensor>;

export interface Curriculum {
  readonly experiment: Experiment;
  readonly engine: Engine;
  readonly model: AudioLlm;
  readonly format: PromptFormat;
  /** Taken over: what a stage trains is not in it meanwhile. */
  readonly parameters: Parameters;
  readonly examples: readonly Example[];
  readonly clips: ReadonlyMap<string, ClipFeatures>;
  /** Continue from here. Taken over: it is emptied once its tensors are where they train. */
  readonly checkpoint: ReadCheckpoint | undefined;
  readonly save: (checkpoint: Checkpoint) => Promise<void>;
  readonly log: (metrics: StepMetrics) => void;
  readonly watch: Watch;
  /** Asked after every step; true saves and stops. */
  readonly interrupted: () => boolean;
}

export interface CurriculumResult {
  readonly parameters: ParameterTensors;
  readonly steps: number;
  readonly finished: boolean;
}

/** Runs the curriculum, from the beginning or from a checkpoint. */
export async function runCurriculum(curriculum: Curriculum): Promise<CurriculumResult> {
  const { experiment, parameters, checkpoint } = curriculum;
  const { train, seed } = experiment;
  const trainable = trainableByStage(experiment, parameters.keys());
  const ever = new Set(trainable.flatMap((names) => [...names]));
  const never = new Map([...parameters].filter(([name]) => !ever.has(name)));
  const identity = { seed, configHash: configHash(experiment), frozenHash: parameterHash(never) };
  for (const [name, tensor] of checkpoint?.parameters ?? []) parameters.set(name, tensor);
  checkpoint?.parameters.clear();
  let progress: TrainingProgress = checkpoint?.progress ?? noProgress(identity);
  let moments: Parameters = checkpoint?.moments ?? new Map();
  const limit = train.maxSteps ?? Number.POSITIVE_INFINITY;

  for (let index = progress.stage; index < train.stages.length && progress.step < limit; index++) {
    const result = await runStage(
      curriculum,
      index,
      trainable[index] as Set<string>,
      parameters,
      progress,
      moments,
      ever,
    );
    progress = result.progress;
    // Inside a stage the checkpoint is written already.
    if (result.interrupted) return { parameters, steps: progress.step, finished: false };
    if (progress.stageStep === train.stages[index]?.steps) {
      // The next stage starts with a fresh optimizer: other parameters train, at another rate.
      progress = { ...progress, stage: index + 1, stageStep: 0, drawn: 0, updates: 0, lossScale: undefined };
    }
    moments = result.moments;
    await curriculum.save({ progress, parameters: pick(parameters, ever), moments });
    if (curriculum.interrupted()) return { parameters, steps: progress.step, finished: false };
  }
  return { parameters, steps: progress.step, finished: true };
}

/**
 * Plans a stage and brings its state to where it trains. A function of its own: what the state has copied must not
 * live on in the closures of the loop.
 */
async function beginStage(
  { experiment, engine, model, format, examples, clips, watch }: Curriculum,
  index: number,
  names: ReadonlySet<string>,
  parameters: Parameters,
  start: OptimizerState | undefined,
) {
  const { train } = experiment;
  const { inPlace } = engine;
  const sources = { experiment, model, format, examples, clips, parameters, inPlace };
  const { options, recomputation, ...plan } = planStage(sources, index, names);
  const { stage, rows, batches } = plan;
  const { trainable, frozen } = options;
  const count = [...trainable.values()].reduce((total, { data }) => total + data.length, 0);
  watch.note(
    `stage ${index + 1}/${train.stages.length} "${stage.name}": ${rows.length} questions, ${stage.steps} steps, ` +
      `${formatCount(count)} parameters in ${trainable.size} tensors train (${stage.trainable.join(', ')})`,
  );
  if (recomputation !== undefined) watch.note(recomputation.reason);
  if (train.batchShapes > 1) watch.note(describeShapes(batches, frozen, train.batchShapes));
  const state = await trainingState({ engine, ...options }, start);
  if (inPlace) for (const name of names) parameters.delete(name);
  return { plan, state };
}

async function runStage(
  curriculum: Curriculum,
  index: number,
  names: ReadonlySet<string>,
  parameters: Parameters,
  start: TrainingProgress,
  startMoments: Parameters,
  ever: ReadonlySet<string>,
): Promise<{
  moments: Parameters;
  progress: TrainingProgress;
  interrupted: boolean;
}> {
  const { experiment, model, save, log, watch, interrupted } = curriculum;
  const { train } = experiment;
  const moments =
    startMoments.size === 0
      ? undefined
      : { updates: start.updates, moments: startMoments, lossScale: start.lossScale };
  const sequence = [...parameters.keys()];
  collectGarbage();
  const { plan, state } = await beginStage(curriculum, index, names, parameters, moments).catch(
    (error: unknown) => {
      throw located(error, `stage "${train.stages[index]?.name}"`);
    },
  );
  // The state has copies; a run that goes on must not hold a checkpoint to its end.
  if (curriculum.engine.inPlace) startMoments.clear();
  const { stage } = plan;
  collectGarbage();
  const bar = watch.progress(`training "${stage.name}"`, stage.steps);
  let progress = start;
  let stopped = false;
  // The step at work: its checkpoint's reading can fail too.
  let where = `stage "${stage.name}"`;
  try {
    while (progress.stageStep < stage.steps && progress.step < (train.maxSteps ?? Number.POSITIVE_INFINITY)) {
      const began = performance.now();
      where = `step ${progress.step + 1}, stage "${stage.name}"`;
      const drawn = drawWindow(plan, model, progress.drawn, train.accumulate);
      const window = drawn.map(({ batch }) => batch);
      const learningRate = learningRateAt(progress.stageStep, stage);
      const { loss, gradientNorm, scaling, statistics } = await state
        .step(window, learningRate)
        .catch((error: unknown) => {
          if (!(error instanceof NonFiniteError)) throw error;
          const ids = drawn.flatMap(({ rows }) => rows.map((row) => row.id));
          throw new NonFiniteError(`${where}: ${error.message}. Samples: ${ids.join(', ')}`);
        });
      const tokens = window.reduce((total, batch) => total + batch.tokens, 0);
      const stepMs = performance.now() - began;
      progress = {
        ...progress,
        step: progress.step + 1,
        stage: index,
        stageStep: progress.stageStep + 1,
        drawn: progress.drawn + train.accumulate,
        updates: progress.updates + (scaling?.skipped === true ? 0 : 1),
        tokensSeen: progress.tokensSeen + tokens,
      };
      const tokensPerSecond = Math.round((1000 * tokens) / stepMs);
      log({
        step: progress.step,
        stage: stage.name,
        loss,
        learningRate,
        gradientNorm,
        ...scaling,
        ...routingMetrics(statistics),
        tokens,
        tokensPerSecond,
        stepMs,
        peakResidentMB: peakResidentMB(),
      });
      if (scaling?.skipped === true) {
        watch.note(
          `step ${progress.step}: gradients overflowed float16 at a loss scale of ${scaling.lossScale}; ` +
            'the step was skipped, the scale is halved',
        );
      }
      bar.update(progress.stageStep, { loss: loss.toFixed(3), 'tokens/s': String(tokensPerSecond) });
      // At the stage's end whoever runs the stages saves, and asks.
      const ends = progress.stageStep === stage.steps || progress.step === train.maxSteps;
      stopped = !ends && interrupted();
      if (!ends && (stopped || progress.step % train.checkpoint.everySteps === 0)) {
        const now = await state.parameters();
        const { moments, lossScale } = await state.optimizer();
        const saved = { ...progress, lossScale };
        await save({ progress: saved, parameters: pick(new Map([...parameters, ...now]), ever), moments });
      }
      if (stopped) break;
    }
    const { moments, lossScale } = await state.optimizer();
    if (lossScale !== undefined && lossScale.skipped > 0)
      watch.note(`stage "${stage.name}": ${lossScale.skipped} of ${progress.stageStep} steps were skipped`);
    takeBack(parameters, copied(await state.parameters()), sequence);
    await state.dispose();
    return {
      // The next stage starts with fresh moments; handing these on would keep all of this stage's memory.
      moments: new Map(progress.stageStep === stage.steps ? [] : moments),
      progress: { ...progress, lossScale },
      interrupted: stopped,
    };
  } catch (error) {
    // On a device that was lost nothing can be freed either; what failed first is what counts.
    await state.dispose().catch(() => undefined);
    throw located(error, where);
  } finally {
    bar.stop();
  }
}

/** The error, saying where it happened if it is the engine's. */
function located(error: unknown, where: string): unknown {
  return error instanceof EngineError
    ? new EngineError(`${where}: ${error.message}`, { cause: error })
    : error;
}

/**
 * Puts in place what a stage has trained.
 * @param sequence all names: sums over the parameters go in their order, which must not depend on the stages before
 */
function takeBack(parameters: Parameters, trained: Parameters, sequence: readonly string[]): void {
  const all = new Map([...parameters, ...trained]);
  parameters.clear();
  for (const name of sequence) parameters.set(name, all.get(name) as FloatTensor);
}

/** Parameters of their own: what a state gives may lie in the memory that also holds gradients and moments. */
function copied(parameters: Parameters): Parameters {
  return new Map([...parameters].map(([name, { shape, data }]) => [name, float32(shape, data.slice())]));
}

/** 3231936 -> "3.23 M" */
export function formatCount(count: number): string {
  if (count >= 1e9) return `${(count / 1e9).toFixed(2)} G`;
  if (count >= 1e6) return `${(count / 1e6).toFixed(2)} M`;
  return count >= 1e3 ? `${(count / 1e3).toFixed(1)} k` : String(count);
}
