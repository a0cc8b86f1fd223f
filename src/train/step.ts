/** The training step: its contract, and the tensor program of the loss and its gradients. */
import type { Random } from '../config/random.ts';
import { type Engine, type Feed, plain } from '../engine/engine.ts';
import { gradients } from '../tensor/gradients.ts';
import { add, divide } from '../tensor/operations.ts';
import { frozen, type Parameters, type ParameterTensors, parameterInputs } from '../tensor/parameters.ts';
import type { Precision } from '../tensor/precision.ts';
import type { Program, Value, ValueType } from '../tensor/program.ts';
import { recomputableRegions, recompute } from '../tensor/recompute.ts';
import type { Tensor } from '../tensor/tensor.ts';
import { scope, trace, withDropout, withPrecision } from '../tensor/trace.ts';
import { type LossScale, needsLossScale, smallestLossScale } from './lossScale.ts';
import type { AdamWConfig } from './optimizer.ts';

/** One micro-batch, ready to be fed. */
export interface Batch {
  readonly feeds: Readonly<Record<string, Tensor>>;
  /** Tokens with a loss. */
  readonly supervisedTokens: number;
  /** Real text tokens and audio tokens that the LLM takes in. */
  readonly tokens: number;
  /** Random numbers of this micro-batch by what they are for; needed where the step has dropout. */
  readonly random?: ((name: string) => Random) | undefined;
  /** The size that it has: 0 or left out for the step's objective, from 1 for its `otherSizes`. */
  readonly size?: number;
}

/** What is trained: a loss over named inputs. */
export interface Objective {
  readonly inputs: Readonly<Record<string, ValueType>>;
  /** @param scale a float32 scalar that losses are multiplied by, where one is given */
  readonly summedLoss: (
    parameters: Parameters,
    inputs: Readonly<Record<string, Value>>,
    scale?: Value,
  ) => SummedLoss;
}

export interface SummedLoss {
  /** Summed over the supervised tokens. */
  readonly loss: Value;
  /** What is minimised beside it, as a sum over as many tokens. */
  readonly auxiliaryLoss?: Value | undefined;
  /** Scalars worth logging, by name. */
  readonly statistics?: Readonly<Record<string, Value>>;
}

export interface StepOptions {
  readonly engine: Engine;
  readonly objective: Objective;
  /** The same loss over batches of other sizes; each is a compiled program, with frozen weights of its own. */
  readonly otherSizes?: readonly Objective[];
  readonly trainable: ParameterTensors;
  readonly frozen: ParameterTensors;
  readonly optimizer: AdamWConfig;
  readonly clipNorm: number | null;
  /** Of matrix products, forward and backward; float32 when left out. Parameters, moments and loss are float32. */
  readonly precision?: Precision;
  /** Probability with which adapters drop elements of their input; none when left out. */
  readonly dropout?: number;
  /** Micro-batches per step. */
  readonly accumulate: number;
  /** Layers whose activations the backward pass computes again; none when left out. */
  readonly recompute?: readonly number[];
}

/** Makes something for each size of batch, one after the other. */
export async function forEachSize<T>(
  { objective, otherSizes = [] }: Pick<StepOptions, 'objective' | 'otherSizes'>,
  make: (objective: Objective) => Promise<T>,
): Promise<T[]> {
  const made: T[] = [];
  for (const own of [objective, ...otherSizes]) made.push(await make(own));
  return made;
}

/** What was made for a batch's size. @throws RangeError when the step has no such size */
export function ofSize<T>(made: readonly T[], { size = 0 }: Pick<Batch, 'size'>): T {
  const own = made[size];
  if (own === undefined)
    throw new RangeError(`the batch has size number ${size}, the step has ${made.length} sizes`);
  return own;
}

/** What a loss is differentiated for. */
export type Differentiated = Pick<
  StepOptions,
  'objective' | 'trainable' | 'frozen' | 'precision' | 'dropout' | 'recompute'
>;

/** What the loss is multiplied by before it is differentiated; fed where the precision takes a loss scale. */
export const lossScaleInput = 'loss.scale';

/** The inputs that a precision adds. */
export function precisionInputs({ precision = 'float32' }: Pick<StepOptions, 'precision'>): {
  [name: string]: ValueType;
} {
  return needsLossScale(precision) ? { [lossScaleInput]: { dtype: 'float32', shape: [] } } : {};
}

/**
 * Loss and gradients of one micro-batch: outputs `loss` and `gradient.<name>`, both sums over tokens, the gradients
 * times `loss.scale` where the precision has that input; and `statistic.<name>`. What is minimised beside the loss is
 * in the gradients alone.
 * @param accumulates whether the gradients are added to inputs `sum.<name>`
 */
export function gradientProgram(
  options: Differentiated,
  { accumulates = false }: { accumulates?: boolean } = {},
): Program {
  const own = parameterInputs(options.trainable);
  const sums = accumulates ? prefixed('sum.', own) : {};
  const types = { ...own, ...sums, ...precisionInputs(options), ...options.objective.inputs };
  const program = trace<string>(types, (inputs) => {
    const { loss, gradients: parts, statistics } = lossAndGradients(options, inputs);
    const outputs = [...parts].map(([name, part]) => [
      `gradient.${name}`,
      accumulates ? add(inputs[`sum.${name}`] as Value, part) : part,
    ]);
    return { loss, ...statisticOutputs(statistics), ...Object.fromEntries(outputs) };
  });
  return recomputeLayers(program, options.recompute ?? []);
}

/** What the outputs are called that are only there to be logged. */
const statisticPrefix = 'statistic.';

export function statisticOutputs(statistics: Readonly<Record<string, Value>>): Record<string, Value> {
  return Object.fromEntries(
    Object.entries(statistics).map(([name, value]) => [`${statisticPrefix}${name}`, value]),
  );
}

/** The statistics among the outputs of each micro-batch, averaged. */
export function meanStatistics(runs: readonly Readonly<Record<string, Feed>>[]): Record<string, number> {
  const [first = {}] = runs;
  const names = Object.keys(first).filter((name) => name.startsWith(statisticPrefix));
  const mean = (name: string) =>
    runs.reduce((total, outputs) => total + Number(plain(outputs, name).data[0]), 0) / runs.length;
  return Object.fromEntries(names.map((name) => [name.slice(statisticPrefix.length), mean(name)]));
}

/** The loss, and the gradient of all that is minimised for every trained parameter. */
export function lossAndGradients(
  { objective, trainable, frozen: fixed, precision = 'float32', dropout = 0 }: Differentiated,
  inputs: Readonly<Record<string, Value>>,
): { loss: Value; gradients: Map<string, Value>; statistics: Readonly<Record<string, Value>> } {
  const names = [...trainable.keys()];
  const own = names.map((name) => inputs[name] as Value);
  const parameters = new Map([
    ...frozen(fixed),
    ...names.map((name, at) => [name, own[at] as Value] as const),
  ]);
  const scale = inputs[lossScaleInput];
  const { summed, parts } = withPrecision(precision, () => {
    const forward = () => objective.summedLoss(parameters, inputs, scale);
    const summed = dropout === 0 ? forward() : withDropout(forward);
    const { loss, auxiliaryLoss } = summed;
    const minimised = auxiliaryLoss === undefined ? loss : scope('loss', () => add(loss, auxiliaryLoss));
    return { summed, parts: gradients(minimised, own) };
  });
  return {
    loss: scale === undefined ? summed.loss : divide(summed.loss, scale),
    gradients: new Map(names.map((name, at) => [name, parts[at] as Value])),
    statistics: summed.statistics ?? {},
  };
}

/** The scope of a decoder layer's values. */
export function layerScope(layer: number): string {
  return `layers.${layer}`;
}

/** The program with the activations of these layers computed again for their backward pass. */
export function recomputeLayers(program: Program, layers: readonly number[]): Program {
  if (layers.length === 0) return program;
  return recompute(program, recomputableRegions(program, layers.map(layerScope)));
}

/** The types under other names. */
export function prefixed(
  prefix: string,
  types: Readonly<Record<string, ValueType>>,
): Record<string, ValueType> {
  return Object.fromEntries(Object.entries(types).map(([name, type]) => [`${prefix}${name}`, type]));
}

export interface OptimizerState {
  /** Updates done; Adam's t. */
  readonly updates: number;
  /** `first.<name>` and `second.<name>`. */
  readonly moments: ParameterTensors;
  /** Undefined where the precision needs none. */
  readonly lossScale?: LossScale | undefined;
}

export interface StepResult {
  /** Mean over the supervised tokens of the window. */
  readonly loss: number;
  /** Before clipping. Not finite where the step was skipped. */
  readonly gradientNorm: number;
  /** Undefined where the precision needs no loss scale. */
  readonly scaling?: { readonly lossScale: number; readonly skipped: boolean } | undefined;
  /** Scalars of the objective, averaged over the window's micro-batches. */
  readonly statistics: Readonly<Record<string, number>>;
  /** Milliseconds of the update where it is no part of the engine's programs, else 0. */
  readonly updateMs: number;
}

/** Training in progress: parameters and moments stay where the engine keeps them. */
export interface TrainingState {
  /**
   * One optimizer step over a window of micro-batches. With a loss scale, a step whose gradients overflow is
   * skipped: nothing is updated, and the scale is halved.
   * @throws NonFiniteError before anything is updated when loss or gradients are not finite, and no smaller scale helps
   */
  step(window: readonly Batch[], learningRate: number): Promise<StepResult>;
  /** The trained parameters as they are now, without a copy where there need be none: the next step may change them. */
  parameters(): Promise<Map<string, Tensor & { dtype: 'float32' }>>;
  /** The moments as they are now; the next step may change them. */
  optimizer(): Promise<OptimizerState>;
  dispose(): Promise<void>;
}

export class NonFiniteError extends Error {
  override readonly name = 'NonFiniteError';
}

/** The tokens of a window that have a loss. @throws NonFiniteError when there are none */
export function supervisedTokens(window: readonly Batch[]): number {
  const total = window.reduce((sum, batch) => sum + batch.supervisedTokens, 0);
  if (total === 0)
    throw new NonFiniteError('no token of the batch has a loss: there is nothing to learn from');
  return total;
}

/** @throws NonFiniteError */
export function mustBeFinite(loss: number, gradientNorm: number): void {
  if (Number.isFinite(loss) && Number.isFinite(gradientNorm)) return;
  throw new NonFiniteError(
    `the loss is ${loss} and the gradient's norm ${gradientNorm}: the step was not taken, the parameters are as before`,
  );
}

/**
 * Whether a step is to be skipped because its gradients overflowed under the loss scale.
 * @param scaling undefined: nothing was scaled
 * @throws NonFiniteError when loss or gradients are not finite and a smaller scale would not help
 */
export function overflows(loss: number, gradientNorm: number, scaling: LossScale | undefined): boolean {
  const helps = scaling !== undefined && scaling.scale > smallestLossScale && Number.isFinite(loss);
  if (helps && !Number.isFinite(gradientNorm)) return true;
  mustBeFinite(loss, gradientNorm);
  return false;
}
