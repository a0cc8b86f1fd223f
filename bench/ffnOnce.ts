/**
 * Training steps of one feed-forward layer in a process of its own: forward, backward, all gradients. Prints one JSON
 * line: the time of each step, the peak resident memory, the arithmetic, and with PROFILE=1 on stderr what took it.
 *
 *     tsx bench/ffnOnce.ts 'dense' TOKENS MEMORY STEPS
 *     tsx bench/ffnOnce.ts '{"select": "avg-k", "blockSize": 384, "active": 4, "gate": "indicator"}' TOKENS MEMORY STEPS
 */
import { random } from '../src/config/random.ts';
import { onnxEngine } from '../src/engine/onnx/engine.ts';
import type { KernelProfile } from '../src/engine/onnx/profile.ts';
import { type FeedForwardConfig, feedForwardLayers } from '../src/ffn/config.ts';
import type { FeedForward } from '../src/ffn/feedForward.ts';
import { feedForwardOf } from '../src/ffn/layers.ts';
import { feedForwardParameters } from '../src/ffn/parameters.ts';
import { initialize } from '../src/llm/initialize.ts';
import { gradients } from '../src/tensor/gradients.ts';
import { add, multiply, sum } from '../src/tensor/operations.ts';
import { type ParameterSpec, parameterInputs } from '../src/tensor/parameters.ts';
import { simplify } from '../src/tensor/passes.ts';
import { countFlops } from '../src/tensor/print.ts';
import type { Value } from '../src/tensor/program.ts';
import { float32, sizeOf, type Tensor } from '../src/tensor/tensor.ts';
import { trace } from '../src/tensor/trace.ts';
import { median, memoryMB } from './measure.ts';

const [kind = 'dense', tokens = 2048, memory = 6144, steps = 4] = process.argv
  .slice(2)
  .map((word, at) => (at === 0 ? word : Number(word))) as [string, number, number, number];
const width = 576;
const config: FeedForwardConfig =
  kind === 'dense' ? { kind } : { kind: 'sparse', memory: null, capacityFactor: null, ...JSON.parse(kind) };
const layers = feedForwardLayers(config, { layers: 1, hiddenSize: width, intermediateSize: memory });
const matrix = (shape: readonly [number, number]): ParameterSpec => ({
  shape,
  initial: 'normal',
  deviation: shape[1] ** -0.5,
});
const specs = new Map<string, ParameterSpec>([
  ['model.layers.0.mlp.gate_proj.weight', matrix([memory, width])],
  ['model.layers.0.mlp.up_proj.weight', matrix([memory, width])],
  ['model.layers.0.mlp.down_proj.weight', matrix([width, memory])],
  ...feedForwardParameters(layers, { hiddenSize: width, biases: { feedForward: false } }),
]);
const parameters = initialize(specs, (name) => random(name));
const draw = random('hidden states');
const rows = (): Tensor =>
  float32([tokens, width], Float32Array.from({ length: tokens * width }, draw.normal));
const feeds: Record<string, Tensor> = { x: rows(), targets: rows(), ...Object.fromEntries(parameters) };
const program = simplify(
  trace<string>(parameterInputs(new Map(Object.entries(feeds))), (inputs) => {
    const context = { layer: 0, prefix: 'model.layers.0.mlp' };
    const { y, auxiliaryLoss } = (feedForwardOf(layers)(0) as FeedForward)(
      inputs.x as Value,
      new Map(Object.entries(inputs)),
      context,
    );
    const weighted = sum(multiply(y, inputs.targets as Value));
    const loss = auxiliaryLoss === undefined ? weighted : add(weighted, auxiliaryLoss);
    const wanted = ['x', ...parameters.keys()];
    const parts = gradients(
      loss,
      wanted.map((name) => inputs[name] as Value),
    );
    return {
      loss,
      ...Object.fromEntries(wanted.map((name, at) => [`gradient.${name}`, parts[at] as Value])),
    };
  }),
);
const engine = onnxEngine({
  threads: 2,
  ...(process.env.PROFILE !== undefined && { onProfile: ({ kernels }) => tell(kernels) }),
});
const executable = await engine.compile(program);
const into: Record<string, Tensor> = Object.fromEntries(
  [...program.outputs].map(([name, { shape }]) => [
    name,
    float32(shape, new Float32Array(sizeOf(shape)).fill(1)),
  ]),
);
const times: number[] = [];
for (let step = 0; step <= steps; step++) {
  const start = performance.now();
  await executable.run(feeds, into);
  times.push(performance.now() - start);
}
process.stdout.write(
  `${JSON.stringify({ times, peakMB: memoryMB('VmHWM'), gigaflops: countFlops(program) / 1e9 })}\n`,
);
await executable.dispose();
await engine.dispose();

/** The kernels that take most, by the median of their runs. */
function tell(kernels: readonly KernelProfile[]): void {
  const rows = kernels.map(({ node, operator, runsMs }) => ({ node, operator, ms: median(runsMs.slice(1)) }));
  for (const { node, operator, ms } of rows.sort((a, b) => b.ms - a.ms).slice(0, 40))
    process.stderr.write(`${ms.toFixed(2).padStart(8)} ms  ${operator.padEnd(18)} ${node}\n`);
}
