/** What a stage of the curriculum trains: on which questions, in which shapes, which parameters. */

import { ConfigError } from '../config/configError.ts';
import { selectNames } from '../config/patterns.ts';
import { type Random, random } from '../config/random.ts';
import type { Experiment } from '../config/schema.ts';
import type { Example } from '../data/manifest.ts';
import { isFeedForward, isHashTable } from '../ffn/parameters.ts';
import { isShared } from '../ffn/wide.ts';
import { isAdapter } from '../llm/lora.ts';
import type { AudioLlm } from '../pal/audioLlm.ts';
import { type BatchShape, bucket, type ClipFeatures, type Row } from '../pal/batch.ts';
import type { PromptFormat } from '../pal/prompt.ts';
import type { ParameterTensors } from '../tensor/parameters.ts';
import { adapterScale } from '../tensor/projection.ts';
import {
  affordableShapes,
  type BatchShapes,
  chooseShapes,
  copiesBudgetBytes,
  needOf,
  paddingCost,
  shapeFor,
} from './batchShapes.ts';
import { copiesPerProgram } from './frozenWeights.ts';
import { answerBatch, answerObjective } from './loss.ts';
import { type DataOrder, dataOrder } from './order.ts';
import { chooseRecomputation, type Recomputation } from './recomputation.ts';
import { RunError } from './setup.ts';
import type { Batch, Objective, StepOptions } from './step.ts';
import { stepProgram } from './trainingState.ts';

export type Stage = Experiment['train']['stages'][number];

/** The examples that a stage trains on. @throws RunError when its filter leaves none */
export function stageExamples(stage: Stage, examples: readonly Example[]): Example[] {
  const { categories, kinds } = stage.data;
  const known = new Set(examples.map((example) => example.category));
  const unknown = categories?.find((category) => !known.has(category));
  if (unknown !== undefined) {
    throw new RunError(
      `train.stages "${stage.name}": no category "${unknown}"; there are ${[...known].sort().join(', ')}`,
    );
  }
  const chosen = examples.filter(
    ({ category, kind }) => (categories?.includes(category) ?? true) && (kinds?.includes(kind) ?? true),
  );
  if (chosen.length === 0)
    throw new RunError(`train.stages "${stage.name}": its data filter leaves no example`);
  return chosen;
}

/** How often each token occurs in the questions that are trained on, and in their answers. */
export function tokenFrequencies(
  experiment: Experiment,
  format: PromptFormat,
  examples: readonly Example[],
): Map<number, number> {
  const counts = new Map<number, number>();
  for (const example of examples) {
    for (const id of trainingRow(experiment, format, example, undefined).ids)
      counts.set(id, (counts.get(id) ?? 0) + 1);
  }
  return counts;
}

/** A question with its answer as one sequence; the targets are what is learned. */
export function trainingRow(
  { train }: Experiment,
  format: PromptFormat,
  example: Example,
  clip: ClipFeatures | undefined,
): Row {
  const prompt = format.promptIds(example);
  const ids = [...prompt, ...format.answerIds(example.answer), format.endId];
  const first = train.lossOn === 'answer' ? prompt.length : 1;
  const targets = ids.slice(first).map((id, index) => ({ position: first + index - 1, id }));
  return { id: example.id, ids, clip, targets };
}

/**
 * Every parameter that some stage trains, by stage.
 * @throws ConfigError for a pattern that matches nothing, and for adapters that never learn
 */
export function trainableByStage({ train, llm }: Experiment, names: Iterable<string>): Set<string>[] {
  const all = [...names].filter((name) => name !== adapterScale && !isHashTable(name));
  const stages = train.stages.map(({ name, trainable }) =>
    selectNames(trainable, all, { where: `train.stages "${name}".trainable`, what: 'parameter' }),
  );
  if (all.some(isAdapter) && !stages.some((chosen) => [...chosen].some(isAdapter)))
    throw new ConfigError('llm.lora has no effect: no stage trains "lora.*", and adapters begin as nothing');
  const isBegun = [llm.ffn].flat().every((entry) => entry.kind !== 'wide' || entry.from !== null);
  const isRandom = (name: string) => isFeedForward(name) && !(isBegun && isShared(name));
  if (all.some(isRandom) && !stages.some((chosen) => [...chosen].some(isRandom)))
    throw new ConfigError('llm.ffn: no stage trains "ffn.*", and what it adds begins as random numbers');
  return stages;
}

/** What a stage is planned from. */
export interface StageSources {
  readonly experiment: Experiment;
  readonly model: AudioLlm;
  readonly format: PromptFormat;
  readonly examples: readonly Example[];
  readonly clips: ReadonlyMap<string, ClipFeatures>;
  /** All of the model's, as they are when the stage begins. */
  readonly parameters: ParameterTensors;
  /** As the engine's: it decides what is in the step's program. */
  readonly inPlace: boolean;
}

export interface StagePlan {
  readonly stage: Stage;
  /** One row a question. */
  readonly rows: readonly Row[];
  readonly order: DataOrder;
  /** What micro-batches are padded to. */
  readonly batches: BatchShapes;
  /** Random numbers of a micro-batch, counted from the stage's beginning, by what they are for. */
  readonly randomOf: (number: number) => (name: string) => Random;
  /** What the stage's step is compiled from. */
  readonly options: Omit<StepOptions, 'engine'>;
  /** Which layers compute their activations again, where some are asked for. */
  readonly recomputation: Recomputation | undefined;
}

/**
 * Plans stage number `index`.
 * @param names the parameters that it trains
 * @throws RunError when its filter leaves no example, or `train.recompute` asks for what cannot be
 */
export function planStage(sources: StageSources, index: number, names: ReadonlySet<string>): StagePlan {
  const { experiment, model, format, examples, clips, parameters } = sources;
  const { train, seed } = experiment;
  const stage = train.stages[index] as Stage;
  const rows = stageExamples(stage, examples).map((example) =>
    trainingRow(experiment, format, example, clips.get(example.audio)),
  );
  const order = dataOrder(seed, stage.name, rows.length, train.batchSize);
  const frozen = new Map([...parameters].filter(([name]) => !names.has(name)));
  const whole = {
    rows: train.batchSize,
    textRows: bucket(rows.reduce((most, { ids }) => Math.max(most, ids.length), 0)),
    targets: train.batchSize * rows.reduce((most, { targets }) => Math.max(most, targets.length), 0),
  };
  const seen = Math.min(stage.steps * train.accumulate, sampledBatches);
  const needs = Array.from({ length: train.batchShapes === 1 ? 0 : seen }, (_, number) =>
    needOf(order.batch(number).map((at) => rows[at] as Row)),
  );
  const batches = chooseShapes(
    whole,
    needs,
    paddingCost(model.llm),
    affordableShapes(train.batchShapes, bytesOfAll(frozen)),
  );
  // An adapter that does not learn here needs no noise.
  const adapts = [...names].some(isAdapter);
  const [objective, ...otherSizes] = batches.shapes.map((shape) => answerObjective(model, shape));
  const options = {
    objective: objective as Objective,
    otherSizes,
    trainable: pick(parameters, names),
    frozen,
    optimizer: train.optimizer,
    clipNorm: train.clipNorm,
    precision: train.precision,
    dropout: adapts ? (model.lora?.dropout ?? 0) : 0,
    accumulate: train.accumulate,
  };
  // By the largest of the shapes, which takes most memory.
  const recomputation =
    train.recompute.kind === 'none'
      ? undefined
      : chooseRecomputation(train.recompute, stepProgram(options, sources.inPlace), model.llm.layers);
  return {
    stage,
    rows,
    order,
    batches,
    randomOf: (number) => (name) => random(seed, 'dropout', stage.name, number, name),
    options: { ...options, recompute: recomputation?.layers ?? [] },
    recomputation,
  };
}

/** Micro-batches by which shapes are chosen: the first of the stage, whatever step a run goes on from. */
const sampledBatches = 512;

export function bytesOfAll(parameters: ParameterTensors): number {
  return [...parameters.values()].reduce((total, { data }) => total + data.byteLength, 0);
}

/**
 * For people: the shapes of a stage's micro-batches, what they save, and what held their number down.
 * @param most shapes, as configured
 */
export function describeShapes(
  { shapes, saved }: BatchShapes,
  frozen: ParameterTensors,
  most: number,
): string {
  const sizes = shapes.map(
    ({ rows, textRows, targets }) => `${rows} x ${textRows} tokens, ${targets} targets`,
  );
  const frozenBytes = bytesOfAll(frozen);
  const copiesMB = Math.round((copiesPerProgram * frozenBytes) / 1e6);
  const affordable = affordableShapes(most, frozenBytes);
  const reason =
    affordable < most
      ? `no more than ${affordable}, because each is a program with copies of the frozen weights, ${copiesMB} MB, and those of the smaller shapes may take ${copiesBudgetBytes / 1e6} MB together`
      : `each is a program with copies of the frozen weights, ${copiesMB} MB`;
  return `micro-batches in ${shapes.length} of ${most} shapes (${sizes.join('; ')}): ${(100 * saved).toFixed(1)} % of the text's arithmetic saved; ${reason}`;
}

/** A micro-batch of a stage: its rows, and what its step is fed. */
export interface DrawnBatch {
  readonly rows: readonly Row[];
  readonly batch: Batch;
}

/**
 * The micro-batches of an optimizer step, each in the cheapest of the stage's shapes.
 * @param first how many micro-batches were drawn before
 */
export function drawWindow(
  { rows: all, order, batches, randomOf }: Pick<StagePlan, 'rows' | 'order' | 'batches' | 'randomOf'>,
  model: AudioLlm,
  first: number,
  accumulate: number,
): DrawnBatch[] {
  return Array.from({ length: accumulate }, (_, micro) => {
    const rows = order.batch(first + micro).map((at) => all[at] as Row);
    const size = shapeFor(batches, rows, paddingCost(model.llm));
    const batch = answerBatch(model, batches.shapes[size] as BatchShape, rows, size);
    return { rows, batch: { ...batch, random: randomOf(first + micro) } };
  });
}

/** The parameters with these names. */
export function pick(parameters: ParameterTensors, names: ReadonlySet<string>): ParameterTensors {
  return new Map([...parameters].filter(([name]) => names.has(name)));
}
