/**
 * A stack of feed-forward layers of one kind in a process of its own. Prints one JSON line: the time of each step, the
 * peak resident memory, and how much of it came with the steps; for training also what the program's values hold at
 * most, as counted.
 *
 *     tsx bench/mocOnce.ts train '{"kind": "moc", "select": "gate"}' LAYERS TOKENS WIDTH CHANNELS STEPS
 *     tsx bench/mocOnce.ts decode '{"kind": "dense"}' LAYERS 1 WIDTH CHANNELS STEPS
 */
import { random } from '../src/config/random.ts';
import { onnxEngine } from '../src/engine/onnx/engine.ts';
import { type FeedForwardConfig, feedForwardLayers } from '../src/ffn/config.ts';
import { feedForwardOf } from '../src/ffn/layers.ts';
import { initialize } from '../src/llm/initialize.ts';
import { gradients } from '../src/tensor/gradients.ts';
import { liveness } from '../src/tensor/liveness.ts';
import { add, multiply, sum } from '../src/tensor/operations.ts';
import { frozen, type ParameterSpec, type Parameters, parameterInputs } from '../src/tensor/parameters.ts';
import { simplify } from '../src/tensor/passes.ts';
import type { Program, Value } from '../src/tensor/program.ts';
import { schedule } from '../src/tensor/schedule.ts';
import { float32, sizeOf, type Tensor } from '../src/tensor/tensor.ts';
import { trace } from '../src/tensor/trace.ts';
import { memoryMB } from './measure.ts';

const [mode, kind, ...numbers] = process.argv.slice(2) as ['train' | 'decode', string, ...string[]];
const [layerCount, tokens, width, channels, steps] = numbers.map(Number) as [
  number,
  number,
  number,
  number,
  number,
];
const config = { recompute: false, active: null, ...JSON.parse(kind) } as FeedForwardConfig;
const layers = feedForwardLayers(config, {
  layers: layerCount,
  hiddenSize: width,
  intermediateSize: channels,
});
const prefixOf = (layer: number) => `model.layers.${layer}.mlp`;
const specs = new Map<string, ParameterSpec>(
  layers.flatMap((_, layer): [string, ParameterSpec][] => [
    [`${prefixOf(layer)}.gate_proj.weight`, matrix(channels, width)],
    [`${prefixOf(layer)}.up_proj.weight`, matrix(channels, width)],
    [`${prefixOf(layer)}.down_proj.weight`, matrix(width, channels)],
  ]),
);
const weights = initialize(specs, (name) => random(name));
const x = hiddenStates('hidden states');
const engine = onnxEngine({ threads: 2 });
const program = simplify(mode === 'train' ? training() : decoding());
const countedMB = liveness(schedule(program), 'elsewhere').peakBytes / 1e6;
const feeds: Record<string, Tensor> =
  mode === 'train' ? { x, targets: hiddenStates('targets'), ...Object.fromEntries(weights) } : { x };
const executable = await engine.compile(program);
// Touched before anything is measured.
const into: Record<string, Tensor> = Object.fromEntries(
  [...program.outputs].map(([name, { shape }]) => [
    name,
    float32(shape, new Float32Array(sizeOf(shape)).fill(1)),
  ]),
);
const before = memoryMB('VmRSS');
const times: number[] = [];
for (let step = 0; step <= steps; step++) {
  const start = performance.now();
  await executable.run(feeds, into);
  times.push(performance.now() - start);
}
const activationMB = memoryMB('VmHWM') - before;
process.stdout.write(`${JSON.stringify({ times, peakMB: memoryMB('VmHWM'), activationMB, countedMB })}\n`);
await executable.dispose();
await engine.dispose();

/** Small enough for hidden states that hardly grow from layer to layer. */
function matrix(rows: number, columns: number): ParameterSpec {
  return { shape: [rows, columns], initial: 'normal', deviation: 0.5 * columns ** -0.5 };
}

function hiddenStates(name: string): Tensor {
  const { normal } = random(name);
  return float32([tokens, width], Float32Array.from({ length: tokens * width }, normal));
}

/** A layer's output is added to its input, which is all that a layer holds beside its own activations. */
function stack(start: Value, parameters: Parameters): Value {
  const feedForwards = feedForwardOf(layers);
  return layers.reduce((hidden, _, layer) => {
    const own = feedForwards(layer)?.(hidden, parameters, { layer, prefix: prefixOf(layer) });
    return own === undefined ? hidden : add(hidden, own.y);
  }, start);
}

/** The gradients of all weights for a weighted sum of the outputs. */
function training(): Program {
  const types = parameterInputs(new Map([...weights, ['x', x], ['targets', x]]));
  return trace<string>(types, (inputs) => {
    const y = stack(inputs.x as Value, new Map(Object.entries(inputs)));
    const names = [...weights.keys()];
    const parts = gradients(
      sum(multiply(y, inputs.targets as Value)),
      names.map((name) => inputs[name] as Value),
    );
    return Object.fromEntries(names.map((name, at) => [`gradient.${name}`, parts[at] as Value]));
  });
}

/** One step of generation: weights are constants. */
function decoding(): Program {
  return trace(parameterInputs(new Map([['x', x]])), ({ x: start }) => ({
    y: stack(start as Value, frozen(weights)),
  }));
}
