/**
 * Training steps of one shape in a process of its own, so that its peak memory is its own. Prints one JSON line:
 * the time of each step, the process's peak resident memory, the peak of the activations by liveness, the loss.
 *
 *     tsx bench/trainStepOnce.ts SHAPE STEPS [--optimizer] [--recompute]
 */
import { readFileSync } from 'node:fs';
import { random } from '../src/config/random.ts';
import { plain } from '../src/engine/engine.ts';
import { onnxEngine } from '../src/engine/onnx/engine.ts';
import { type Tensor, zeros } from '../src/tensor/tensor.ts';
import { activationsOf } from '../src/train/activations.ts';
import { answerBatch, answerObjective } from '../src/train/loss.ts';
import { gradientProgram } from '../src/train/step.ts';
import { trainingState } from '../src/train/trainingState.ts';
import { type BenchShapeName, benchModel, benchShapes, randomParameters } from './models.ts';

const [name = 'tiny', steps = '5', ...flags] = process.argv.slice(2);
const { llm, batch: rows, rows: textRows } = benchShapes[name as BenchShapeName];
const model = benchModel(llm);
const parameters = randomParameters(llm);
const shape = { rows, textRows, targets: rows * textRows };
const objective = answerObjective(model, shape);
const draw = random('tokens');
const batch = answerBatch(
  model,
  shape,
  Array.from({ length: rows }, (_, row) => {
    const ids = Array.from({ length: textRows }, () => draw.integer(llm.vocabularySize));
    const targets = ids.map((_id, position) => ({ position, id: draw.integer(llm.vocabularySize) }));
    return { id: String(row), ids, clip: undefined, targets };
  }),
);
const options = {
  objective,
  trainable: parameters,
  frozen: new Map(),
  optimizer: { kind: 'adamw', beta1: 0.9, beta2: 0.95, epsilon: 1e-8, weightDecay: 0.01 } as const,
  clipNorm: 1,
  accumulate: 1,
  recompute: flags.includes('--recompute') ? [...Array(llm.layers).keys()] : [],
};
const activationMB = Math.round(activationsOf(gradientProgram(options)).peakBytes / 1e6);
const engine = onnxEngine({ threads: 2 });
const began = performance.now();
const step = flags.includes('--optimizer') ? await wholeStep() : await gradientsOnly();
const compileMs = performance.now() - began;
const times: number[] = [];
let loss = 0;
for (let count = 0; count < Number(steps); count++) {
  const start = performance.now();
  loss = await step();
  times.push(performance.now() - start);
}
const peakKiB = Number(/VmHWM:\s*(\d+)/.exec(readFileSync('/proc/self/status', 'utf8'))?.[1]);
const peakMB = Math.round(peakKiB / 1024);
process.stdout.write(`${JSON.stringify({ times, compileMs, peakMB, activationMB, loss })}\n`);

async function gradientsOnly(): Promise<() => Promise<number>> {
  const program = gradientProgram(options);
  const executable = await engine.compile(program);
  const feeds = { ...Object.fromEntries(parameters), ...batch.feeds };
  const into: Record<string, Tensor> = Object.fromEntries(
    [...program.outputs].map(([output, value]) => [output, zeros('float32', value.shape)]),
  );
  return async () =>
    Number(plain(await executable.run(feeds, into), 'loss').data[0]) / batch.supervisedTokens;
}

async function wholeStep(): Promise<() => Promise<number>> {
  const state = await trainingState({ engine, ...options });
  return async () => (await state.step([batch], 1e-4)).loss;
}
