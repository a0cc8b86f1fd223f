/**
 * The step in the process's own memory: the engine computes the gradients, and a kernel updates parameters and
 * moments in place, so that there is one generation of each.
 */
import { plain } from '../engine/engine.ts';
import { float32, type Tensor } from '../tensor/tensor.ts';
import { type AdamWTensors, adamwMemory } from './adamwMemory.ts';
import { type BatchExecutable, withMasks } from './dropout.ts';
import { nextLossScale, startingLossScale } from './lossScale.ts';
import {
  forEachSize,
  gradientProgram,
  lossScaleInput,
  meanStatistics,
  type OptimizerState,
  ofSize,
  overflows,
  type StepOptions,
  supervisedTokens,
  type TrainingState,
} from './step.ts';

/**
 * Compiles the step's programs and copies its state in; `options.trainable` is not held.
 * @throws EngineError as `trainingState`
 */
export async function hostState(options: StepOptions, start?: OptimizerState): Promise<TrainingState> {
  const { trainable, optimizer, clipNorm } = options;
  const accumulates = options.accumulate > 1;
  const programs = await compileGradients(options, accumulates);
  const memory = adamwMemory(trainable);
  const all = (kind: keyof AdamWTensors, prefix = ''): [string, Tensor & { dtype: 'float32' }][] =>
    [...memory.tensors].map(([name, tensors]) => [`${prefix}${name}`, tensors[kind]]);
  for (const [name, { data }] of [...all('first', 'first.'), ...all('second', 'second.')]) {
    const moment = start?.moments.get(name);
    if (moment !== undefined) data.set(moment.data);
  }
  let done = start?.updates ?? 0;
  let scaling = startingLossScale(options, start);
  const gradients = all('gradient', 'gradient.');
  const into = Object.fromEntries(gradients);
  const feeds: Record<string, Tensor> = Object.fromEntries(all('parameter'));
  // Read and written in the same place: each element is read before it is written.
  if (accumulates) Object.assign(feeds, Object.fromEntries(all('gradient', 'sum.')));

  return {
    async step(window, learningRate) {
      const supervised = supervisedTokens(window);
      const used = scaling;
      const scaleFeed: Record<string, Tensor> =
        used === undefined ? {} : { [lossScaleInput]: float32([], [used.scale / supervised]) };
      let loss = 0;
      const runs: Awaited<ReturnType<BatchExecutable['executable']['run']>>[] = [];
      if (accumulates) for (const [, { data }] of gradients) data.fill(0);
      for (const batch of window) {
        const { executable, feedsOf } = ofSize(programs, batch);
        const outputs = await executable.run({ ...feeds, ...scaleFeed, ...feedsOf(batch) }, into);
        loss += Number(plain(outputs, 'loss').data[0]) / supervised;
        runs.push(outputs);
      }
      const began = performance.now();
      const divisor = used?.scale ?? supervised;
      const gradientNorm = memory.gradientNorm() / divisor;
      const skipped = overflows(loss, gradientNorm, used);
      if (!skipped) {
        const clipping = clipNorm === null || gradientNorm < clipNorm ? 1 : clipNorm / gradientNorm;
        memory.update(optimizer, { learningRate, done, scale: clipping / divisor });
        done++;
      }
      scaling = used && nextLossScale(used, skipped);
      const told = used && { lossScale: used.scale, skipped };
      const statistics = meanStatistics(runs);
      return { loss, gradientNorm, scaling: told, statistics, updateMs: performance.now() - began };
    },
    parameters: async () => new Map(all('parameter')),
    optimizer: async () => ({
      updates: done,
      moments: new Map([...all('first', 'first.'), ...all('second', 'second.')]),
      lossScale: scaling,
    }),
    async dispose() {
      for (const { executable } of programs) await executable.dispose();
    },
  };
}

/** A function of its own: what it is given must not live on in the state's closures. */
function compileGradients(options: StepOptions, accumulates: boolean): Promise<BatchExecutable[]> {
  return forEachSize(options, async (objective) => {
    const program = gradientProgram({ ...options, objective }, { accumulates });
    return withMasks(await options.engine.compile(program), program, options.dropout ?? 0);
  });
}
