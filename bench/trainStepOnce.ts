/**
 * Training steps of one shape in a process of its own, so that its peak memory is its own. Prints one JSON line: the
 * time of each step and of its update, the process's peak resident memory, the peak of the activations by liveness,
 * the loss.
 *
 *     tsx bench/trainStepOnce.ts SHAPE STEPS [--optimizer] [--recompute] [--ffn '{"kind": "moc", ...}']
 */
import { random } from '../src/config/random.ts';
import { plain } from '../src/engine/engine.ts';
import { onnxEngine } from '../src/engine/onnx/engine.ts';
import { type Tensor, zeros } from '../src/tensor/tensor.ts';
import { activationsOf } from '../src/train/activations.ts';
import { collectGarbage } from '../src/train/collectGarbage.ts';
import { answerBatch, answerObjective } from '../src/train/loss.ts';
import { gradientProgram } from '../src/train/step.ts';
import { trainingState } from '../src/train/trainingState.ts';
import { memoryMB } from './measure.ts';
import { type BenchShapeName, benchModel, benchShapes, randomParameters } from './models.ts';

interface Step {
  readonly loss: number;
  readonly updateMs: number;
}

const [name = 'tiny', steps = '5', ...flags] = process.argv.slice(2);
const { llm, batch: rows, rows: textRows } = benchShapes[name as BenchShapeName];
const ffn = flags.includes('--ffn') ? flags[flags.indexOf('--ffn') + 1] : undefined;
const model = benchModel(llm, [], ffn === undefined ? undefined : JSON.parse(ffn));
const shape = { rows, textRows, targets: rows * textRows };
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
const engine = onnxEngine({ threads: 2 });
const began = performance.now();
const { step, activationMB } = await (flags.includes('--optimizer') ? wholeStep() : gradientsOnly());
const compileMs = performance.now() - began;
const times: number[] = [];
const updatesMs: number[] = [];
let loss = 0;
for (let count = 0; count < Number(steps); count++) {
  const start = performance.now();
  const done = await step();
  times.push(performance.now() - start);
  updatesMs.push(done.updateMs);
  loss = done.loss;
}
process.stdout.write(
  `${JSON.stringify({ times, updatesMs, compileMs, peakMB: memoryMB('VmHWM'), activationMB, loss })}\n`,
);

/** What is trained, with parameters that nobody else holds. */
function options() {
  return {
    objective: answerObjective(model, shape),
    trainable: randomParameters(llm),
    frozen: new Map(),
    optimizer: { kind: 'adamw', beta1: 0.9, beta2: 0.95, epsilon: 1e-8, weightDecay: 0.01 } as const,
    clipNorm: 1,
    accumulate: 1,
    recompute: flags.includes('--recompute') ? [...Array(llm.layers).keys()] : [],
  };
}

async function gradientsOnly(): Promise<{ step: () => Promise<Step>; activationMB: number }> {
  const own = options();
  const program = gradientProgram(own);
  const executable = await engine.compile(program);
  const feeds = { ...Object.fromEntries(own.trainable), ...batch.feeds };
  const into: Record<string, Tensor> = Object.fromEntries(
    [...program.outputs].map(([output, value]) => [output, zeros('float32', value.shape)]),
  );
  const step = async () => {
    const outputs = await executable.run(feeds, into);
    return { loss: Number(plain(outputs, 'loss').data[0]) / batch.supervisedTokens, updateMs: 0 };
  };
  return { step, activationMB: Math.round(activationsOf(program).peakBytes / 1e6) };
}

async function wholeStep(): Promise<{ step: () => Promise<Step>; activationMB: number }> {
  const activationMB = Math.round(activationsOf(gradientProgram(options())).peakBytes / 1e6);
  const state = await trainingState({ engine, ...options() });
  // As training does: the state has copied the parameters.
  collectGarbage();
  return { step: () => state.step([batch], 1e-4), activationMB };
}
