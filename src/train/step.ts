/**
 * The training step as tensor programs: forward pass, loss, gradients, clipping and the optimizer's update.
 * Without accumulation all of it is one program; with it, one program adds up gradients and one updates.
 */
import {
  type DeviceTensor,
  type Engine,
  type Executable,
  type Feed,
  isDeviceTensor,
  plain,
} from '../engine/engine.ts';
import { gradients } from '../tensor/gradients.ts';
import { add, multiply } from '../tensor/operations.ts';
import {
  frozen,
  type Parameters,
  type ParameterTensors,
  parameter,
  parameterInputs,
} from '../tensor/parameters.ts';
import type { Program, Value, ValueType } from '../tensor/program.ts';
import { float32, type Tensor, zeros } from '../tensor/tensor.ts';
import { scope, trace } from '../tensor/trace.ts';
import { type AdamWConfig, adamW, clipFactor, globalNorm } from './optimizer.ts';

/** One micro-batch, ready to be fed. */
export interface Batch {
  readonly feeds: Readonly<Record<string, Tensor>>;
  /** Tokens with a loss. */
  readonly supervisedTokens: number;
  /** Real text tokens and audio tokens that the LLM takes in. */
  readonly tokens: number;
}

const scalar: ValueType = { dtype: 'float32', shape: [] };
const scalarInputs = { learningRate: scalar, correction1: scalar, correction2: scalar, scale: scalar };

function updates(
  config: AdamWConfig,
  clipNorm: number | null,
  names: readonly string[],
  inputs: Readonly<Record<string, Value>>,
  summedGradients: readonly Value[],
): Record<string, Value> {
  return scope('update', () => {
    const scale = inputs.scale as Value;
    const norm = multiply(globalNorm(summedGradients), scale);
    const factor = clipNorm === null ? scale : multiply(scale, clipFactor(norm, clipNorm));
    const scalars = {
      learningRate: inputs.learningRate as Value,
      correction1: inputs.correction1 as Value,
      correction2: inputs.correction2 as Value,
    };
    const outputs: Record<string, Value> = { gradientNorm: norm };
    for (const [index, name] of names.entries()) {
      const gradient = multiply(summedGradients[index] as Value, factor);
      const state = { first: inputs[`first.${name}`] as Value, second: inputs[`second.${name}`] as Value };
      const next = adamW(config, inputs[name] as Value, gradient, state, scalars);
      outputs[`next.${name}`] = next.parameter;
      outputs[`next.first.${name}`] = next.state.first;
      outputs[`next.second.${name}`] = next.state.second;
    }
    return outputs;
  });
}

function prefixed(prefix: string, types: Readonly<Record<string, ValueType>>): Record<string, ValueType> {
  return Object.fromEntries(Object.entries(types).map(([name, type]) => [`${prefix}${name}`, type]));
}

/** What is trained: a loss over named inputs. */
export interface Objective {
  readonly inputs: Readonly<Record<string, ValueType>>;
  /** The loss summed over the supervised tokens. */
  readonly summedLoss: (parameters: Parameters, inputs: Readonly<Record<string, Value>>) => Value;
}

export interface StepOptions {
  readonly engine: Engine;
  readonly objective: Objective;
  readonly trainable: ParameterTensors;
  readonly frozen: ParameterTensors;
  readonly optimizer: AdamWConfig;
  readonly clipNorm: number | null;
  /** Micro-batches per step. */
  readonly accumulate: number;
}

type Differentiated = Pick<StepOptions, 'objective' | 'trainable' | 'frozen'>;

/** Loss and gradients of one micro-batch: outputs `loss` and `gradient.<name>`, both sums over tokens. */
export function gradientProgram(options: Differentiated): Program {
  const names = [...options.trainable.keys()];
  return trace<string>({ ...parameterInputs(options.trainable), ...options.objective.inputs }, (inputs) => {
    const { loss, parts } = lossAndGradients(options, inputs);
    return {
      loss,
      ...Object.fromEntries(names.map((name, index) => [`gradient.${name}`, parts[index] as Value])),
    };
  });
}

function lossAndGradients(
  { objective, trainable, frozen: fixed }: Differentiated,
  inputs: Readonly<Record<string, Value>>,
): { loss: Value; parts: Value[] } {
  const own = new Map([...trainable.keys()].map((name) => [name, inputs[name] as Value]));
  const loss = objective.summedLoss(new Map([...frozen(fixed), ...own]), inputs);
  return { loss, parts: gradients(loss, [...own.values()]) };
}

function fusedProgram(options: StepOptions): Program {
  const { trainable, objective, optimizer, clipNorm } = options;
  const names = [...trainable.keys()];
  const own = parameterInputs(trainable);
  const types = { ...own, ...prefixed('first.', own), ...prefixed('second.', own), ...scalarInputs };
  return trace<string>({ ...types, ...objective.inputs }, (inputs) => {
    const { loss, parts } = lossAndGradients(options, inputs);
    return { loss, ...updates(optimizer, clipNorm, names, inputs, parts) };
  });
}

function accumulatingProgram(options: StepOptions): Program {
  const { trainable, objective } = options;
  const names = [...trainable.keys()];
  const own = parameterInputs(trainable);
  return trace<string>({ ...own, ...prefixed('sum.', own), ...objective.inputs }, (inputs) => {
    const { loss, parts } = lossAndGradients(options, inputs);
    const sums = names.map((name, index) => [
      `next.sum.${name}`,
      add(inputs[`sum.${name}`] as Value, parts[index] as Value),
    ]);
    return { loss, ...Object.fromEntries(sums) };
  });
}

function updateProgram({ trainable, optimizer, clipNorm }: StepOptions): Program {
  const names = [...trainable.keys()];
  const own = parameterInputs(trainable);
  const state = { ...own, ...prefixed('first.', own), ...prefixed('second.', own), ...prefixed('sum.', own) };
  return trace<string>({ ...state, ...scalarInputs }, (inputs) =>
    updates(
      optimizer,
      clipNorm,
      names,
      inputs,
      names.map((name) => parameter(new Map(Object.entries(inputs)), `sum.${name}`)),
    ),
  );
}

export interface OptimizerState {
  /** Updates done; Adam's t. */
  readonly updates: number;
  /** `first.<name>` and `second.<name>`. */
  readonly moments: ParameterTensors;
}

export interface StepResult {
  /** Mean over the supervised tokens of the window. */
  readonly loss: number;
  /** Before clipping. */
  readonly gradientNorm: number;
}

/** Training in progress: parameters and moments stay where the engine keeps them. */
export interface TrainingState {
  /**
   * One optimizer step over a window of micro-batches.
   * @throws NonFiniteError before anything is updated when loss or gradients are not finite
   */
  step(window: readonly Batch[], learningRate: number): Promise<StepResult>;
  parameters(): Promise<Map<string, Tensor & { dtype: 'float32' }>>;
  optimizer(): Promise<OptimizerState>;
  dispose(): Promise<void>;
}

export class NonFiniteError extends Error {
  override readonly name = 'NonFiniteError';
}

/** Compiles the step's programs and holds their state. */
export async function trainingState(options: StepOptions, start?: OptimizerState): Promise<TrainingState> {
  const { engine, trainable, accumulate, optimizer } = options;
  const names = [...trainable.keys()];
  const stateNames = names.flatMap((name) => [name, `first.${name}`, `second.${name}`]);
  const keepOnDevice = stateNames.map((name) => `next.${name}`);
  const sumNames = names.map((name) => `sum.${name}`);
  const executables: Executable[] = [];
  const compile = async (program: Program, kept: readonly string[]) => {
    const executable = await engine.compile(program, { keepOnDevice: kept });
    executables.push(executable);
    return executable;
  };
  const fused = accumulate === 1 ? await compile(fusedProgram(options), keepOnDevice) : undefined;
  const accumulating = fused
    ? undefined
    : await compile(
        accumulatingProgram(options),
        sumNames.map((name) => `next.${name}`),
      );
  const update = fused ? undefined : await compile(updateProgram(options), keepOnDevice);

  const zero = (name: string) => zeros('float32', trainable.get(name)?.shape ?? []);
  const state: Record<string, Feed> = Object.fromEntries(
    names.flatMap((name): [string, Feed][] => [
      [name, trainable.get(name) as Tensor],
      [`first.${name}`, start?.moments.get(`first.${name}`) ?? zero(name)],
      [`second.${name}`, start?.moments.get(`second.${name}`) ?? zero(name)],
    ]),
  );
  let done = start?.updates ?? 0;
  // Two generations of the state take turns in the same memory. What came from outside, or was given out, is not ours.
  const own = new Set<Feed>();
  const spare: Record<string, Tensor> = {};

  function replace(
    target: Record<string, Feed>,
    outputs: Readonly<Record<string, Feed>>,
    replaced: readonly string[],
  ) {
    for (const name of replaced) {
      const old = target[name];
      const next = outputs[`next.${name}`] as Feed;
      target[name] = next;
      delete spare[`next.${name}`];
      if (!isDeviceTensor(next)) own.add(next);
      if (old === undefined) continue;
      if (isDeviceTensor(old)) old.dispose();
      else if (own.delete(old)) spare[`next.${name}`] = old;
    }
  }

  /** The memory that a program's outputs may be written to. */
  function room(outputs: readonly string[]): Record<string, Tensor> {
    return Object.fromEntries(
      outputs.flatMap((name): [string, Tensor][] => {
        const tensor = spare[`next.${name}`];
        return tensor === undefined ? [] : [[`next.${name}`, tensor]];
      }),
    );
  }

  function commit(outputs: Readonly<Record<string, Feed>>, loss: number): StepResult {
    const gradientNorm = Number(plain(outputs, 'gradientNorm').data[0]);
    if (!Number.isFinite(loss) || !Number.isFinite(gradientNorm)) {
      for (const output of Object.values(outputs)) if (isDeviceTensor(output)) output.dispose();
      throw new NonFiniteError(
        `the loss is ${loss} and the gradient's norm ${gradientNorm}: the step was not taken, the parameters are as before`,
      );
    }
    replace(state, outputs, stateNames);
    done++;
    return { loss, gradientNorm };
  }

  async function read(wanted: readonly string[]): Promise<Map<string, Tensor & { dtype: 'float32' }>> {
    const device = wanted.flatMap((name): [string, DeviceTensor][] => {
      const value = state[name] as Feed;
      return isDeviceTensor(value) ? [[name, value]] : [];
    });
    const copies = await engine.read(Object.fromEntries(device));
    for (const name of wanted) own.delete(state[name] as Feed);
    return new Map(
      wanted.map((name) => [name, (copies[name] ?? state[name]) as Tensor & { dtype: 'float32' }]),
    );
  }

  return {
    async step(window, learningRate) {
      const supervised = window.reduce((total, batch) => total + batch.supervisedTokens, 0);
      if (supervised === 0)
        throw new NonFiniteError('no token of the batch has a loss: there is nothing to learn from');
      const number = (value: number) => float32([], [value]);
      const scalars = {
        learningRate: number(learningRate),
        correction1: number(1 - optimizer.beta1 ** (done + 1)),
        correction2: number(1 - optimizer.beta2 ** (done + 1)),
        scale: number(1 / supervised),
      };
      if (fused !== undefined) {
        const [batch] = window;
        const outputs = await fused.run({ ...state, ...scalars, ...batch?.feeds }, room(stateNames));
        return commit(outputs, Number(plain(outputs, 'loss').data[0]) / supervised);
      }
      const sums: Record<string, Feed> = Object.fromEntries(names.map((name) => [`sum.${name}`, zero(name)]));
      const trained = Object.fromEntries(names.map((name) => [name, state[name] as Feed]));
      let loss = 0;
      for (const batch of window) {
        const outputs = await (accumulating as Executable).run(
          { ...trained, ...sums, ...batch.feeds },
          room(sumNames),
        );
        loss += Number(plain(outputs, 'loss').data[0]);
        replace(sums, outputs, sumNames);
      }
      const outputs = await (update as Executable).run({ ...state, ...sums, ...scalars }, room(stateNames));
      for (const value of Object.values(sums)) if (isDeviceTensor(value)) value.dispose();
      return commit(outputs, loss / supervised);
    },
    parameters: () => read(names),
    async optimizer() {
      return { updates: done, moments: await read(stateNames.filter((name) => !trainable.has(name))) };
    },
    async dispose() {
      // Device memory belongs to the program that made it: freeing it after the program ends the process.
      for (const value of Object.values(state)) if (isDeviceTensor(value)) value.dispose();
      for (const executable of executables) await executable.dispose();
    },
  };
}
