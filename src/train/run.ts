/** A whole run: data, encoders, curriculum, evaluation, and the folder that keeps all of it. */
import { execFileSync } from 'node:child_process';
import { mkdir } from 'node:fs/promises';
import { createRequire } from 'node:module';
import { cpus, platform, totalmem } from 'node:os';
import { join } from 'node:path';
import { formatExperiment } from '../config/load.ts';
import type { Experiment } from '../config/schema.ts';
import { writeFileAtomic } from '../config/writeFile.ts';
import type { Engine } from '../engine/engine.ts';
import type { EvaluationRecord } from '../eval/evaluate.ts';
import { describeHeld, heldByLayers } from '../ffn/accounting.ts';
import { checkKeys } from '../llm/weights.ts';
import { type Checkpoint, CheckpointError, newestCheckpoint, saveCheckpoint } from './checkpoint.ts';
import { runCurriculum } from './curriculum.ts';
import { evaluateModel } from './evaluateRun.ts';
import { withCheckpoint } from './failure.ts';
import { markRunning } from './lastRun.ts';
import { openMetrics, peakResidentMB } from './metrics.ts';
import { saveModel, saveResults } from './modelFolder.ts';
import { buildModel, readExamples } from './prepare.ts';
import { checkPrecision, configHash, encodeClips, loadEncoders, makeEngine, type Watch } from './setup.ts';
import { trainableByStage } from './stage.ts';
import { fitting } from './textLength.ts';
import { type StageTrains, whatTrains } from './trains.ts';

export interface RunOptions {
  readonly watch: Watch;
  /** Continue from the newest checkpoint in the run's folder, where there is one. */
  readonly resume: boolean;
  readonly evaluate: boolean;
  /** Told what every stage trains, before anything does. */
  readonly announce?: (stages: readonly StageTrains[]) => void;
  /** Asked after every step; true saves and stops. */
  readonly interrupted?: () => boolean;
  /** The one that the configuration names when left out. Whoever gives one ends it. */
  readonly engine?: Engine;
}

export interface RunResult {
  /** null when evaluation was not asked for, or training was interrupted. */
  readonly record: EvaluationRecord | null;
  readonly finished: boolean;
  readonly steps: number;
}

/**
 * Trains an experiment and evaluates it.
 * @throws the errors of every part, each naming what is wrong, where, and what to do
 */
export async function runTraining(experiment: Experiment, options: RunOptions): Promise<RunResult> {
  const { dir } = experiment.run;
  await mkdir(join(dir, 'checkpoints'), { recursive: true });
  const unmark = await markRunning(dir, options.watch.note);
  try {
    return await trainAndEvaluate(experiment, options);
  } finally {
    unmark();
  }
}

async function trainAndEvaluate(experiment: Experiment, options: RunOptions): Promise<RunResult> {
  const { watch, resume, interrupted = () => false } = options;
  const { dir } = experiment.run;
  const checkpoints = join(dir, 'checkpoints');
  await writeFileAtomic(join(dir, 'config.yaml'), formatExperiment(experiment));
  await writeFileAtomic(
    join(dir, 'environment.json'),
    `${JSON.stringify(environment(experiment), null, 2)}\n`,
  );

  const { training: trainingExamples, evaluation: evaluationExamples } = await readExamples(
    experiment,
    watch,
  );

  const engine = options.engine ?? (await makeEngine(experiment, watch.note));
  const encoders = await loadEncoders(experiment);
  try {
    await checkPrecision(experiment, engine, watch.note);
    const { clips, skipped } = await encodeClips(
      experiment,
      encoders,
      options.evaluate ? [...trainingExamples, ...evaluationExamples] : trainingExamples,
      watch,
    );
    const { usable, tooLong, format, llm, model, parameters } = await buildModel(
      experiment,
      encoders,
      trainingExamples,
      clips,
      watch,
    );
    // What evaluation would stop at is told before anything is trained.
    const asked = options.evaluate ? evaluationExamples.filter(({ audio }) => clips.has(audio)) : [];
    const { tooLong: notAsked } = fitting(experiment, model, format, asked, 'evaluation');
    const leftOut = [...skipped, ...tooLong, ...notAsked];
    for (const { id, reason } of leftOut) watch.note(`left out "${id}": ${reason}`);
    if (leftOut.length > 0) watch.note(`${leftOut.length} questions are left out; skipped.json lists them`);
    await writeFileAtomic(join(dir, 'skipped.json'), `${JSON.stringify(leftOut, null, 2)}\n`);
    options.announce?.(whatTrains(experiment, parameters));
    for (const line of describeHeld(heldByLayers(model.ffn ?? [], model.llm))) watch.note(line);

    const checkpoint = resume ? await newestCheckpoint(checkpoints, watch.note) : undefined;
    if (checkpoint !== undefined) {
      mustFit(checkpoint, experiment, parameters, checkpoints);
      watch.note(`resuming after step ${checkpoint.progress.step}`);
    }
    const rethrow = async (error: unknown) => {
      throw await withCheckpoint(error, checkpoints, resume);
    };
    const metrics = await openMetrics(join(dir, 'metrics.jsonl'), checkpoint?.progress.step ?? 0);
    const result = await runCurriculum({
      experiment,
      engine,
      model,
      format,
      parameters,
      examples: usable,
      clips,
      checkpoint,
      save: async (state) => {
        await saveCheckpoint(checkpoints, state, experiment.train.checkpoint.keep);
      },
      log: metrics.append,
      watch,
      interrupted,
    })
      .catch(rethrow)
      .finally(metrics.close);
    watch.note(`training has held ${peakResidentMB()} MB at most`);
    if (!result.finished) return { record: null, finished: false, steps: result.steps };
    const trained = { experiment, model, llm, parameters: result.parameters };
    await saveModel(join(dir, 'model'), trained);
    if (!options.evaluate) return { record: null, finished: true, steps: result.steps };
    const record = await evaluateModel(experiment, {
      engine,
      encoders,
      model,
      parameters: result.parameters,
      tokenizer: llm.tokenizer,
      format,
      examples: evaluationExamples,
      trainingExamples,
      encoded: { clips, skipped },
      watch,
    }).catch(rethrow);
    await saveResults(join(dir, 'model'), { ...trained, results: record });
    return { record, finished: true, steps: result.steps };
  } finally {
    for (const encoder of encoders.values()) await encoder.dispose();
    if (options.engine === undefined) await engine.dispose();
  }
}

/** @throws CheckpointError when a checkpoint is of another configuration or architecture */
function mustFit(
  { progress, parameters }: Checkpoint,
  experiment: Experiment,
  initial: ReadonlyMap<string, { shape: readonly number[] }>,
  folder: string,
): void {
  const ever = new Set(trainableByStage(experiment, initial.keys()).flatMap((names) => [...names]));
  const expected = new Map(
    [...initial].filter(([name]) => ever.has(name)).map(([name, { shape }]) => [name, shape]),
  );
  try {
    checkKeys(parameters, expected, folder);
  } catch (error) {
    throw new CheckpointError(
      `${error instanceof Error ? error.message : error}\n` +
        'The checkpoint is of another architecture: set run.dir to another folder, or start over with --resume never.',
    );
  }
  if (progress.configHash !== configHash(experiment)) {
    throw new CheckpointError(
      `${folder}: the checkpoint is of another configuration (config.yaml beside it was different when it was ` +
        'written): set run.dir to another folder, or start over with --resume never.',
    );
  }
}

/** Where and with what a run was made. */
function environment({ engine, seed }: Experiment): Record<string, unknown> {
  const require = createRequire(import.meta.url);
  const { version } = require('../../package.json') as { version: string };
  const onnxruntime = (require('onnxruntime-node/package.json') as { version: string }).version;
  let commit: string | null = null;
  try {
    commit = execFileSync('git', ['rev-parse', 'HEAD'], {
      encoding: 'utf8',
      stdio: ['ignore', 'pipe', 'ignore'],
    }).trim();
  } catch {
    // Not run from a repository.
  }
  return {
    palkit: version,
    node: process.version,
    onnxruntime,
    ...(engine.kind === 'tfjs' && { tfjs: tfjsVersion(require) }),
    platform: `${platform()} ${process.arch}`,
    cpu: cpus()[0]?.model ?? 'unknown',
    cores: cpus().length,
    memoryGiB: Math.round(totalmem() / 2 ** 30),
    commit,
    seed,
    started: new Date().toISOString(),
  };
}

/** The version of TensorFlow.js; null where it is not installed, which its engine says. */
function tfjsVersion(require: NodeJS.Require): string | null {
  try {
    return (require('@tensorflow/tfjs-core/package.json') as { version: string }).version;
  } catch {
    return null;
  }
}
