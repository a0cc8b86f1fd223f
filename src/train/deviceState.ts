/**
 * The step on a device: the update is part of the tensor program, and parameters and moments stay there from step to
 * step. Without accumulation all of it is one program; with it, one program adds up gradients and one updates.
 */
import { type DeviceTensor, type Executable, type Feed, isDeviceTensor, plain } from '../engine/engine.ts';
import { detach, filled, multiply } from '../tensor/operations.ts';
import { parameterInputs } from '../tensor/parameters.ts';
import type { Program, Value, ValueType } from '../tensor/program.ts';
import { float32, type Tensor, zeros } from '../tensor/tensor.ts';
import { scope, trace } from '../tensor/trace.ts';
import { withMasks } from './dropout.ts';
import { nextLossScale, startingLossScale } from './lossScale.ts';
import { type AdamWConfig, adamW, clipFactor, globalNorm } from './optimizer.ts';
import {
  type Batch,
  forEachSize,
  gradientProgram,
  lossAndGradients,
  lossScaleInput,
  meanStatistics,
  type OptimizerState,
  ofSize,
  overflows,
  precisionInputs,
  prefixed,
  recomputeLayers,
  type StepOptions,
  type StepResult,
  statisticOutputs,
  supervisedTokens,
  type TrainingState,
} from './step.ts';

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
    // A value that nobody reads: programs run from such values, the first one first. From here on all gradients come
    // one after the other; the first update would ask for one of them alone, and hold what the others read.
    const outputs: Record<string, Value> = { gradientNorm: detach(norm) };
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

/** Loss, gradients and update in one program. */
export function fusedProgram(options: Omit<StepOptions, 'engine'>): Program {
  const { trainable, objective, optimizer, clipNorm } = options;
  const names = [...trainable.keys()];
  const own = parameterInputs(trainable);
  const types = {
    ...own,
    ...prefixed('first.', own),
    ...prefixed('second.', own),
    ...scalarInputs,
    ...precisionInputs(options),
  };
  const program = trace<string>({ ...types, ...objective.inputs }, (inputs) => {
    const { loss, gradients, statistics } = lossAndGradients(options, inputs);
    return {
      loss,
      ...statisticOutputs(statistics),
      ...updates(optimizer, clipNorm, names, inputs, [...gradients.values()]),
    };
  });
  return recomputeLayers(program, options.recompute ?? []);
}

/** The update alone, from gradients that were summed over the micro-batches. */
export function updateProgram({
  trainable,
  optimizer,
  clipNorm,
}: Pick<StepOptions, 'trainable' | 'optimizer' | 'clipNorm'>): Program {
  const names = [...trainable.keys()];
  const own = parameterInputs(trainable);
  const state = {
    ...own,
    ...prefixed('first.', own),
    ...prefixed('second.', own),
    ...prefixed('gradient.', own),
  };
  return trace<string>({ ...state, ...scalarInputs }, (inputs) =>
    updates(
      optimizer,
      clipNorm,
      names,
      inputs,
      names.map((name) => inputs[`gradient.${name}`] as Value),
    ),
  );
}

const sumName = (name: string) => `sum.${name}`;

/** The sums of gradients before the first micro-batch. */
function zeroProgram({ trainable }: StepOptions): Program {
  return trace({}, () =>
    Object.fromEntries(
      [...trainable].map(([name, { shape }]) => [sumName(name), filled('float32', shape, 0)]),
    ),
  );
}

/**
 * Compiles the step's programs and brings their state to the device.
 * @throws EngineError as `trainingState`
 */
export async function deviceState(options: StepOptions, start?: OptimizerState): Promise<TrainingState> {
  const { engine, trainable, accumulate, optimizer, dropout = 0 } = options;
  const names = [...trainable.keys()];
  const stateNames = names.flatMap((name) => [name, `first.${name}`, `second.${name}`]);
  const keepOnDevice = stateNames.map((name) => `next.${name}`);
  const executables: Executable[] = [];
  const compile = async (program: Program, kept: readonly string[]) => {
    const executable = await engine.compile(program, { keepOnDevice: kept });
    executables.push(executable);
    return executable;
  };
  const forBatches = async (program: Program, kept: readonly string[]) =>
    withMasks(await compile(program, kept), program, dropout);
  const fused =
    accumulate === 1
      ? await forEachSize(options, (objective) =>
          forBatches(fusedProgram({ ...options, objective }), keepOnDevice),
        )
      : undefined;
  const accumulating = fused
    ? []
    : await forEachSize(options, (objective) =>
        forBatches(
          gradientProgram({ ...options, objective }, { accumulates: true }),
          names.map((name) => `gradient.${name}`),
        ),
      );
  const update = fused ? undefined : await compile(updateProgram(options), keepOnDevice);
  // Where every window's sums begin: on the device too (where outputs can stay there: not on cuda), or each step would
  // bring up as many zeros as there are parameters.
  const zeroSums = fused ? {} : await (await compile(zeroProgram(options), names.map(sumName))).run({});

  const zero = (name: string) => zeros('float32', trainable.get(name)?.shape ?? []);
  const state: Record<string, Feed> = Object.fromEntries(
    names.flatMap((name): [string, Feed][] => [
      [name, trainable.get(name) as Tensor],
      [`first.${name}`, start?.moments.get(`first.${name}`) ?? zero(name)],
      [`second.${name}`, start?.moments.get(`second.${name}`) ?? zero(name)],
    ]),
  );
  let done = start?.updates ?? 0;
  let scaling = startingLossScale(options, start);

  function commit(
    outputs: Readonly<Record<string, Feed>>,
    loss: number,
    statistics: StepResult['statistics'],
  ): StepResult {
    const gradientNorm = Number(plain(outputs, 'gradientNorm').data[0]);
    const used = scaling;
    let skipped: boolean;
    try {
      skipped = overflows(loss, gradientNorm, used);
    } catch (error) {
      dispose(Object.values(outputs));
      throw error;
    }
    if (skipped) dispose(Object.values(outputs));
    else {
      dispose(stateNames.map((name) => state[name] as Feed));
      for (const name of stateNames) state[name] = outputs[`next.${name}`] as Feed;
      done++;
    }
    scaling = used && nextLossScale(used, skipped);
    return {
      loss,
      gradientNorm,
      scaling: used && { lossScale: used.scale, skipped },
      statistics,
      updateMs: 0,
    };
  }

  /** The sums of the window's gradients, and its loss. */
  async function accumulateWindow(window: readonly Batch[], scaleFeed: Readonly<Record<string, Tensor>>) {
    const trained = Object.fromEntries(names.map((name) => [name, state[name] as Feed]));
    let sums: Record<string, Feed> = zeroSums;
    let loss = 0;
    const runs: Record<string, Feed>[] = [];
    for (const batch of window) {
      const before = sums;
      const { executable, feedsOf } = ofSize(accumulating, batch);
      const outputs = await executable
        .run({ ...trained, ...before, ...scaleFeed, ...feedsOf(batch) })
        .finally(() => {
          if (before !== zeroSums) dispose(Object.values(before));
        });
      loss += Number(plain(outputs, 'loss').data[0]);
      runs.push(outputs);
      sums = Object.fromEntries(names.map((name) => [sumName(name), outputs[`gradient.${name}`] as Feed]));
    }
    return { sums, loss, statistics: meanStatistics(runs) };
  }

  async function read(wanted: readonly string[]): Promise<Map<string, Tensor & { dtype: 'float32' }>> {
    const device = wanted.flatMap((name): [string, DeviceTensor][] => {
      const value = state[name] as Feed;
      return isDeviceTensor(value) ? [[name, value]] : [];
    });
    const copies = await engine.read(Object.fromEntries(device));
    return new Map(
      wanted.map((name) => [name, (copies[name] ?? state[name]) as Tensor & { dtype: 'float32' }]),
    );
  }

  return {
    async step(window, learningRate) {
      const supervised = supervisedTokens(window);
      const number = (value: number) => float32([], [value]);
      const scalars = {
        learningRate: number(learningRate),
        correction1: number(1 - optimizer.beta1 ** (done + 1)),
        correction2: number(1 - optimizer.beta2 ** (done + 1)),
        scale: number(1 / (scaling?.scale ?? supervised)),
      };
      const scaleFeed: Record<string, Tensor> =
        scaling === undefined ? {} : { [lossScaleInput]: number(scaling.scale / supervised) };
      if (fused !== undefined) {
        const [batch] = window as readonly [Batch];
        const { executable, feedsOf } = ofSize(fused, batch);
        const outputs = await executable.run({ ...state, ...scalars, ...scaleFeed, ...feedsOf(batch) });
        return commit(
          outputs,
          Number(plain(outputs, 'loss').data[0]) / supervised,
          meanStatistics([outputs]),
        );
      }
      const { sums, loss, statistics } = await accumulateWindow(window, scaleFeed);
      const fed = Object.fromEntries(names.map((name) => [`gradient.${name}`, sums[sumName(name)] as Feed]));
      const outputs = await (update as Executable)
        .run({ ...state, ...fed, ...scalars })
        .finally(() => dispose(Object.values(sums)));
      return commit(outputs, loss / supervised, statistics);
    },
    parameters: () => read(names),
    async optimizer() {
      const moments = await read(stateNames.filter((name) => !trainable.has(name)));
      return { updates: done, moments, lossScale: scaling };
    },
    async dispose() {
      // Device memory belongs to the program that made it: freeing it after the program ends the process.
      dispose([...Object.values(state), ...Object.values(zeroSums)]);
      for (const executable of executables) await executable.dispose();
    },
  };
}

function dispose(values: readonly Feed[]): void {
  for (const value of values) if (isDeviceTensor(value)) value.dispose();
}
