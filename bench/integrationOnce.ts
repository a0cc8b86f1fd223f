/**
 * Training steps of one integration in a process of its own. Prints one JSON line: the time of each step, the peak
 * resident memory, what of it the steps took, and what liveness says they take.
 *
 *     tsx bench/integrationOnce.ts SHAPE prefix|attention-only STEPS
 */
import { random } from '../src/config/random.ts';
import { plain } from '../src/engine/engine.ts';
import { onnxEngine } from '../src/engine/onnx/engine.ts';
import { initialize } from '../src/llm/initialize.ts';
import { streamParameters } from '../src/pal/audioLlm.ts';
import type { Stream } from '../src/pal/streams.ts';
import { simplify } from '../src/tensor/passes.ts';
import { countFlops } from '../src/tensor/print.ts';
import { float32, sizeOf, type Tensor } from '../src/tensor/tensor.ts';
import { activationsOf } from '../src/train/activations.ts';
import { answerBatch, answerObjective } from '../src/train/loss.ts';
import { gradientProgram } from '../src/train/step.ts';
import { memoryMB } from './measure.ts';
import { type BenchShapeName, benchModel, benchShapes, randomParameters } from './models.ts';

const [name = 'tiny', mode = 'prefix', steps = '4'] = process.argv.slice(2);
const [rows, textRows, answer, frames, width] = [4, 100, 16, 512, 768];
const { llm } = benchShapes[name as BenchShapeName];
const stream: Stream = {
  name: 'audio',
  encoder: 'audio',
  frames,
  width,
  connector: { kind: 'mlp', hidden: llm.hiddenSize, perLayer: false },
  integration:
    mode === 'prefix'
      ? { mode: 'prefix' }
      : {
          mode: 'attention-only',
          audioNorm: 'layer',
          audioVisibleTo: 'all',
          rope: 'sequential',
          keyValueProjection: 'llm',
        },
};
const model = benchModel(llm, [stream]);
const parameters = new Map([
  ...randomParameters(llm),
  ...initialize(streamParameters(model), (parameter) => random(parameter)),
]);
const shape = { rows, textRows, targets: rows * answer };
const draw = random('clips');
const batch = answerBatch(
  model,
  shape,
  Array.from({ length: rows }, (_, row) => {
    const ids = Array.from({ length: textRows }, () => draw.integer(llm.vocabularySize));
    const targets = ids.slice(-answer).map((id, at) => ({ position: textRows - answer - 1 + at, id }));
    const clip = new Map([
      ['audio', float32([frames, width], Float32Array.from({ length: frames * width }, draw.normal))],
    ]);
    return { id: String(row), ids, clip, targets };
  }),
);
const program = simplify(
  gradientProgram({ objective: answerObjective(model, shape), trainable: parameters, frozen: new Map() }),
);
const executable = await onnxEngine({ threads: 2 }).compile(program);
const into: Record<string, Tensor> = Object.fromEntries(
  [...program.outputs].map(([output, value]) => [
    output,
    { dtype: 'float32', shape: value.shape, data: filled(value.shape) },
  ]),
);
const feeds = { ...Object.fromEntries(parameters), ...batch.feeds };
const before = memoryMB('VmRSS');
const times: number[] = [];
let loss = 0;
for (let step = 0; step < Number(steps); step++) {
  const start = performance.now();
  loss = Number(plain(await executable.run(feeds, into), 'loss').data[0]);
  times.push(performance.now() - start);
}
const peak = memoryMB('VmHWM');
process.stdout.write(
  `${JSON.stringify({
    times,
    peakMB: peak,
    stepMB: peak - before,
    activationMB: Math.round(activationsOf(program).peakBytes / 1e6),
    gigaflops: countFlops(program) / 1e9,
    loss,
  })}\n`,
);

/** Memory that is resident before it is written to. */
function filled(dimensions: readonly number[]): Float32Array {
  return new Float32Array(sizeOf(dimensions)).fill(1);
}
