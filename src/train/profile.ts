/** Measures the real step of a stage, kernel by kernel. Nothing is trained and no run folder is touched. */
import type { Experiment } from '../config/schema.ts';
import { onnxEngine } from '../engine/onnx/engine.ts';
import type { Provider } from '../engine/onnx/lower.ts';
import type { KernelProfile, ProgramProfile } from '../engine/onnx/profile.ts';
import type { Program } from '../tensor/program.ts';
import { buildModel, readExamples } from './prepare.ts';
import { learningRateAt } from './schedule.ts';
import { checkPrecision, encodeClips, loadEncoders, onnxOptions, RunError, type Watch } from './setup.ts';
import { drawWindow, planStage, trainableByStage } from './stage.ts';
import { trainingState } from './trainingState.ts';

export interface ProfileOptions {
  readonly watch: Watch;
  /** A stage's name, or its number from 1; the first when left out. */
  readonly stage?: string | undefined;
  /** Steps before the measured ones. */
  readonly warmUps: number;
  readonly steps: number;
}

/** A kernel with its milliseconds in each measured step. */
export type StepKernel = Omit<KernelProfile, 'runsMs'> & { readonly stepsMs: readonly number[] };

export interface StepProgram {
  readonly program: Program;
  /** 1, or the micro-batches of a step. */
  readonly runsPerStep: number;
  readonly kernels: readonly StepKernel[];
  /** Wall milliseconds inside the engine, in each measured step. */
  readonly stepsMs: readonly number[];
}

export interface StepProfile {
  readonly experiment: string;
  readonly stage: string;
  /** `onnx (cpu, 2 threads)` */
  readonly engine: string;
  /** The one that was asked for. */
  readonly provider: Provider;
  readonly warmUps: number;
  /** Wall milliseconds of each measured step as training sees it. */
  readonly stepsMs: readonly number[];
  /** Of each measured step, the update where it is no part of the programs, else 0. */
  readonly updatesMs: readonly number[];
  /** The step's programs: one; on a device with accumulation one for the micro-batches and one for the update. */
  readonly programs: readonly StepProgram[];
}

/** The index of a stage. @throws RunError when there is no such stage */
export function findStage({ train }: Experiment, wanted: string | undefined): number {
  if (wanted === undefined) return 0;
  const byName = train.stages.findIndex(({ name }) => name === wanted);
  const index = byName >= 0 ? byName : /^\d+$/.test(wanted) ? Number(wanted) - 1 : -1;
  if (train.stages[index] !== undefined) return index;
  const names = train.stages.map(({ name }, at) => `${at + 1} or ${name}`).join(', ');
  throw new RunError(`--stage ${wanted}: there is no such stage; there are ${names}`);
}

/**
 * Runs some steps of a stage on real questions and measures them.
 * @throws RunError for a stage that is not there, and for an engine other than onnx; otherwise as training does
 */
export async function profileStep(experiment: Experiment, options: ProfileOptions): Promise<StepProfile> {
  const { watch, warmUps, steps } = options;
  const measured = onnxOptions(experiment);
  const index = findStage(experiment, options.stage);
  // One shape, the one that holds every batch: steps of several sizes have no common median.
  const train = { ...experiment.train, batchShapes: 1 };
  if (experiment.train.batchShapes > 1) {
    watch.note(
      `train.batchShapes: ${experiment.train.batchShapes}: measured is the largest shape, which holds every batch`,
    );
  }
  const { training } = await readExamples(experiment, watch);
  const encoders = await loadEncoders(experiment);
  const profiles: ProgramProfile[] = [];
  const engine = onnxEngine({ ...measured, onProfile: (profile) => profiles.push(profile) });
  try {
    // The trial's programs are not the step's.
    const trial = onnxEngine(measured);
    await checkPrecision(experiment, trial, watch.note).finally(() => trial.dispose());
    const { clips } = await encodeClips(experiment, encoders, training, watch);
    const { usable, format, model, parameters } = await buildModel(
      experiment,
      encoders,
      training,
      clips,
      watch,
    );
    const trainable = trainableByStage(experiment, parameters.keys())[index] as Set<string>;
    const { inPlace } = engine;
    const sources = {
      experiment: { ...experiment, train },
      model,
      format,
      examples: usable,
      clips,
      parameters,
      inPlace,
    };
    const plan = planStage(sources, index, trainable);
    const { stage, options: compiled } = plan;
    if (plan.recomputation !== undefined) watch.note(plan.recomputation.reason);
    const state = await trainingState({ engine, ...compiled });
    const wallMs: number[] = [];
    const updatesMs: number[] = [];
    const bar = watch.progress(`profiling "${stage.name}"`, warmUps + steps);
    try {
      for (let step = 0; step < warmUps + steps; step++) {
        const began = performance.now();
        const drawn = drawWindow(plan, model, step * train.accumulate, train.accumulate);
        const window = drawn.map(({ batch }) => batch);
        const { updateMs } = await state.step(window, learningRateAt(step, stage));
        wallMs.push(performance.now() - began);
        updatesMs.push(updateMs);
        bar.update(step + 1);
      }
    } finally {
      bar.stop();
      // The profiles come with the end of the programs.
      await state.dispose();
    }
    return {
      experiment: experiment.name,
      stage: stage.name,
      engine: engine.description,
      provider: measured.provider,
      warmUps,
      stepsMs: wallMs.slice(warmUps),
      updatesMs: updatesMs.slice(warmUps),
      // What runs once, before the steps, is none of theirs.
      programs: profiles
        .filter(({ runsMs }) => runsMs.length % (warmUps + steps) === 0)
        .map((profile) => stepProgram(profile, warmUps, steps)),
    };
  } finally {
    for (const encoder of encoders.values()) await encoder.dispose();
    await engine.dispose();
  }
}

/** From runs to steps: with accumulation a step runs a program several times. */
function stepProgram(profile: ProgramProfile, warmUps: number, steps: number): StepProgram {
  const runsPerStep = profile.runsMs.length / (warmUps + steps);
  const perStep = (runsMs: readonly number[]) =>
    Array.from({ length: steps }, (_, step) => {
      const first = (warmUps + step) * runsPerStep;
      return runsMs.slice(first, first + runsPerStep).reduce((total, ms) => total + ms, 0);
    });
  return {
    program: profile.program,
    runsPerStep,
    stepsMs: perStep(profile.runsMs),
    kernels: profile.kernels.map(({ runsMs, ...kernel }) => ({ ...kernel, stepsMs: perStep(runsMs) })),
  };
}
