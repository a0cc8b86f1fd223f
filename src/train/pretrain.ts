/**
 * `palkit lm`: a language model learns from text, and how well it predicts text that was held out is measured before and
 * after. A pretrained model may get other feed-forward layers first; then the loss is told before, after, and once they
 * have learned.
 */
import { createHash } from 'node:crypto';
import { mkdir, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { ConfigError } from '../config/configError.ts';
import type { LmExperiment } from '../config/lmSchema.ts';
import { formatExperiment } from '../config/load.ts';
import { selectNames } from '../config/patterns.ts';
import { writeFileAtomic, writeFolderAtomic } from '../config/writeFile.ts';
import { describeHeld, type HeldByLayers, heldByLayers } from '../ffn/accounting.ts';
import type { FeedForwardLayer } from '../ffn/config.ts';
import { isHashTable } from '../ffn/parameters.ts';
import { writeSafetensors } from '../llm/safetensors.ts';
import { parameterHash, saveLlm, saveTokenizer } from '../llm/weights.ts';
import type { AudioLlm } from '../pal/audioLlm.ts';
import type { ParameterTensors } from '../tensor/parameters.ts';
import { simplify } from '../tensor/passes.ts';
import { countFlops } from '../tensor/print.ts';
import { CheckpointError, newestCheckpoint } from './checkpoint.ts';
import { withCheckpoint } from './failure.ts';
import { markRunning } from './lastRun.ts';
import { answerObjective } from './loss.ts';
import { type Findings, type ModelName, readFindings, writeFindings } from './measurements.ts';
import { lossProgram, type Perplexity, perplexityOf, sequencesOf, textShape } from './perplexity.ts';
import { located, type Measure, type Phase, runPhases } from './phases.ts';
import { reconstructed, reconstructionObjective } from './reconstruction.ts';
import { makeEngine, type Watch } from './setup.ts';
import { pick } from './stage.ts';
import { gradientProgram } from './step.ts';
import { type Pretrained, pretrained, type TextFacts, textModel, tokenizedText } from './textModel.ts';

/** A measurement of the model on held-out text. */
export interface Measured extends Perplexity {
  readonly model: ModelName;
  /** nll in bits, by the bytes of the held-out text: comparable between tokenizers. */
  readonly bitsPerByte: number;
}

export interface LmResult {
  readonly name: string;
  readonly seed: number;
  readonly measured: readonly Measured[];
  readonly parameters: number;
  /** Parameters without the cells that a token does not use. */
  readonly activeParameters: number;
  /** Of the programs that run: forward, and forward and backward without the update. */
  readonly flopsPerToken: { readonly forward: number; readonly training: number };
  /** Of the training, without those of reconstruction. */
  readonly steps: number;
  /** Tokens trained on. */
  readonly tokens: number;
  /** Of the training, without reconstruction. */
  readonly flops: number;
  /** Of the process that ended the run. */
  readonly seconds: number;
  /** How tokens chose in the last step; of layers that choose alone. */
  readonly feedForward?: Readonly<Record<string, number>>;
  /** What feed-forward layers hold for the backward pass, in elements a token. */
  readonly held: readonly HeldByLayers[];
  readonly text: Omit<TextFacts, 'skipped'> & { readonly skipped: number };
}

export interface LmOptions {
  readonly watch: Watch;
  /** Go on from the newest checkpoint. */
  readonly resume: boolean;
  readonly interrupted?: () => boolean;
}

/**
 * @returns undefined where the run was interrupted; it is saved
 * @throws the errors of every part, each naming what is wrong, where, and what to do
 */
export async function runLm(experiment: LmExperiment, options: LmOptions): Promise<LmResult | undefined> {
  const { dir } = experiment.run;
  await mkdir(dir, { recursive: true });
  const unmark = await markRunning(dir, options.watch.note);
  try {
    return await trainAndMeasure(experiment, options);
  } finally {
    unmark();
  }
}

async function trainAndMeasure(experiment: LmExperiment, options: LmOptions): Promise<LmResult | undefined> {
  const { watch } = options;
  const { run, train, evaluate } = experiment;
  const given = await pretrained(experiment);
  const text = await tokenizedText(experiment, given?.tokenizer, watch);
  const { facts, tokenizer } = text;
  await writeFileAtomic(join(run.dir, 'skipped.json'), `${JSON.stringify(facts.skipped, null, 2)}\n`);
  watch.note(
    `text: ${facts.files.training} files, ${millions(facts.characters.training)} M characters, ${millions(text.training.length)} M tokens to train on; ` +
      `${facts.files.heldOut} files, ${millions(facts.characters.heldOut)} M characters held out. Left out: ${facts.copies} copies, ` +
      `${millions(facts.repeatedCharacters)} M characters of paragraphs that had occurred, ${facts.beyond} files beyond corpus.mostMB, ` +
      `${facts.skipped.length} that are no text (skipped.json)`,
  );
  const { model, parameters, dense } = textModel(experiment, text, given);
  const length = train.sequenceLength;
  if (length > model.llm.maxPositions)
    throw new ConfigError(
      `train.sequenceLength: ${length}, and the model has ${model.llm.maxPositions} positions`,
    );
  const training = sequencesOf(text.training, length);
  const heldOut = sequencesOf(text.heldOut, length);
  for (const [side, { count }] of [
    ['trained on', training],
    ['held out', heldOut],
  ] as const)
    if (count === 0)
      throw new ConfigError(
        `train.sequenceLength: ${length}: the text that is ${side} is shorter than one sequence`,
      );
  for (const line of describeHeld(heldByLayers(model.ffn ?? [], model.llm))) watch.note(line);
  const trainable = trained(experiment, parameters);
  const checkpoints = join(run.dir, 'checkpoints');
  const configHash = hashOf(experiment, text.hash, given);
  const checkpoint = options.resume ? await newestCheckpoint(checkpoints, watch.note) : undefined;
  if (checkpoint !== undefined && checkpoint.progress.configHash !== configHash)
    throw new CheckpointError(
      `${checkpoints}: the checkpoint is of another configuration, text or pretrained model: set run.dir to another folder, or start over with --resume never`,
    );
  let findings: Findings =
    checkpoint === undefined ? { configHash, measured: [] } : await readFindings(run.dir, configHash);
  // What a run before left would be taken for this one's.
  if (!options.resume) await rm(checkpoints, { recursive: true, force: true });
  if (checkpoint === undefined) await rm(join(run.dir, 'result.json'), { force: true });
  await writeFileAtomic(join(run.dir, 'config.yaml'), formatExperiment(experiment));

  const engine = await makeEngine(experiment);
  const began = performance.now();
  try {
    const bitsPerToken = text.heldOut.length / text.heldOutBytes / Math.LN2;
    const measure: Measure = async (name, own, feedForward) => {
      const bar = watch.progress(
        `measuring (${name})`,
        Math.min(heldOut.count, Math.ceil(evaluate.tokens / length)),
      );
      const { nll, tokens } = await perplexityOf(
        { engine, ...own },
        heldOut,
        { batchSize: train.batchSize, length, mostTokens: evaluate.tokens },
        (done) => bar.update(done),
      )
        .catch((error: unknown) => {
          throw located(error, `measuring the ${name} model`);
        })
        .finally(() => bar.stop());
      const others = findings.measured.filter(({ model: other }) => other !== name);
      const measured = [...others, { model: name, nll, tokens, bitsPerByte: nll * bitsPerToken }];
      findings = { ...findings, measured, ...(feedForward && { feedForward }) };
      await writeFindings(run.dir, findings);
    };
    const measureOnce: Measure = async (name, own) => {
      if (findings.measured.every(({ model: other }) => other !== name)) await measure(name, own);
    };
    const shape = textShape(train.batchSize, length);
    const flops = flopsOf(model, parameters, trainable, shape);
    const steps = train.steps ?? Math.floor((train.flops ?? 0) / flops.training);
    if (train.steps === null && steps === 0)
      throw new ConfigError(`train.flops: ${train.flops}: one step takes ${flops.training}`);
    if (train.steps === null && train.warmupSteps > steps)
      throw new ConfigError(
        `train.warmupSteps: ${train.warmupSteps} steps of warm-up do not fit into the ${steps} steps that train.flops pays for`,
      );
    const phases: Phase[] = [];
    if (experiment.reconstruct !== null && dense !== undefined)
      phases.push({
        name: 'reconstructed',
        objective: reconstructionObjective(model, dense.parameters, shape),
        names: reconstructed(model, parameters),
        schedule: { ...experiment.reconstruct, finalLearningRate: 0 },
      });
    if (steps > 0)
      phases.push({
        name: 'trained',
        objective: answerObjective(model, shape),
        names: trainable,
        schedule: { ...train, steps },
      });
    watch.note(
      `${millions(countOf(parameters))} M parameters; ${(flops.forward / shape.targets / 1e6).toFixed(2)} MFLOP a token forward, ` +
        `${(flops.training / shape.targets / 1e6).toFixed(2)} in training; ${steps} steps, ${millions(steps * shape.targets)} M tokens, ${((steps * flops.training) / 1e12).toFixed(2)} TFLOP`,
    );
    if (dense !== undefined) await measureOnce('dense', dense);
    const begun = given === undefined ? 'initial' : dense === undefined ? 'dense' : 'converted';
    await measureOnce(begun, { model, parameters });
    const work = { engine, model, parameters, phases, training, configHash, checkpoint, measure, watch };
    if (!(await runPhases(experiment, { ...work, interrupted: options.interrupted }))) return undefined;
    const { feedForward } = findings;
    const result: LmResult = {
      name: experiment.name,
      seed: experiment.seed,
      measured: findings.measured.map((own) => ({ ...own, perplexity: Math.exp(own.nll) })),
      parameters: countOf(parameters),
      activeParameters: countOf(parameters) - unused(model.ffn ?? [], model.llm.hiddenSize),
      flopsPerToken: { forward: flops.forward / shape.targets, training: flops.training / shape.targets },
      steps,
      tokens: steps * shape.targets,
      flops: steps * flops.training,
      seconds: (performance.now() - began) / 1000,
      ...(feedForward && { feedForward }),
      held: heldByLayers(model.ffn ?? [], model.llm),
      text: { ...facts, skipped: facts.skipped.length },
    };
    const chatTemplate = given?.chatTemplate ?? null;
    await saveTextModel(join(run.dir, 'model'), experiment, model, { parameters, tokenizer, chatTemplate });
    await writeFileAtomic(join(run.dir, 'result.json'), `${JSON.stringify(result, null, 2)}\n`);
    return result;
  } catch (error) {
    throw await withCheckpoint(error, checkpoints, true, fieldNames);
  } finally {
    await engine.dispose();
  }
}

const fieldNames = {
  smaller: 'train.batchSize or train.sequenceLength',
  checkpoints: 'train.checkpointEvery',
};

const millions = (count: number) => (count / 1e6).toFixed(count < 1e5 ? 3 : 2);

function trained({ train }: LmExperiment, parameters: ParameterTensors): Set<string> {
  const names = [...parameters.keys()].filter((name) => !isHashTable(name));
  return selectNames(train.trainable, names, { where: 'train.trainable', what: 'parameter' });
}

function countOf(parameters: ParameterTensors): number {
  return [...parameters].reduce(
    (total, [name, { data }]) => total + (isHashTable(name) ? 0 : data.length),
    0,
  );
}

/** Weights of cells that a token does not use. */
function unused(layers: readonly FeedForwardLayer[], hiddenSize: number): number {
  return layers.reduce((total, layer) => {
    if (layer.kind === 'sparse')
      return total + 3 * hiddenSize * (layer.memory - layer.active * layer.blockSize);
    return layer.kind === 'moc' ? total + 2 * hiddenSize * (layer.channels - layer.active) : total;
  }, 0);
}

/** Of one batch. */
function flopsOf(
  model: AudioLlm,
  parameters: ParameterTensors,
  trainable: ReadonlySet<string>,
  shape: ReturnType<typeof textShape>,
): { forward: number; training: number } {
  const own = pick(parameters, trainable);
  const fixed = new Map([...parameters].filter(([name]) => !trainable.has(name)));
  const training = gradientProgram({
    objective: answerObjective(model, shape),
    trainable: own,
    frozen: fixed,
  });
  return {
    forward: countFlops(simplify(lossProgram(model, parameters, shape))),
    training: countFlops(simplify(training)),
  };
}

/** What decides the numbers: the configuration, the text in its tokens, and the model that a run begins with. */
function hashOf(
  { run: _, name: __, train, corpus: { cache: ___, ...corpus }, ...rest }: LmExperiment,
  text: string,
  given: Pretrained | undefined,
): string {
  const { checkpointEvery: ____, threads: _____, ...training } = train;
  const model = given && [given.config, parameterHash(given.parameters)];
  return createHash('sha256')
    .update(JSON.stringify({ ...rest, corpus, train: training, text, model }))
    .digest('hex');
}

/**
 * A folder that transformers loads where every layer is dense; else the weights under their names, the tokenizer and the
 * configuration, which palkit alone reads.
 */
async function saveTextModel(
  folder: string,
  experiment: LmExperiment,
  model: AudioLlm,
  { parameters, tokenizer, chatTemplate }: Omit<Pretrained, 'config'>,
): Promise<void> {
  const isDense = (model.ffn ?? []).every(({ kind }) => kind === 'dense');
  await writeFolderAtomic(folder, async (aside) => {
    if (isDense) return saveLlm(aside, { config: model.llm, parameters, tokenizer, chatTemplate });
    await saveTokenizer(aside, tokenizer);
    await writeSafetensors(join(aside, 'weights.safetensors'), parameters, { format: 'pt' });
    await writeFileAtomic(join(aside, 'lm.yaml'), formatExperiment(experiment));
  });
}
