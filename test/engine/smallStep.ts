/** One training step of a small audio-LLM with every kind of stream, on any engine. */
import { random } from '../../src/config/random.ts';
import { type Engine, plain } from '../../src/engine/engine.ts';
import type { Precision } from '../../src/tensor/precision.ts';
import { float32, type Tensor } from '../../src/tensor/tensor.ts';
import { answerBatch, answerObjective } from '../../src/train/loss.ts';
import { gradientProgram, lossScaleInput, type StepOptions } from '../../src/train/step.ts';
import { trainingState } from '../../src/train/trainingState.ts';
import { allParameters, attentionOnly, audioLlm, stream } from '../pal/fixture.ts';

export interface Step {
  /** `loss` and `gradient.<name>`. */
  readonly gradients: Record<string, number[]>;
  /** Of three steps, with the state where the engine keeps it. */
  readonly losses: number[];
  /** After them. */
  readonly parameters: Record<string, number[]>;
}

const streams = [
  stream('one'),
  stream('two', { frames: 3, width: 4, integration: { mode: 'prefix', startLayer: 1 } }),
  stream('three', {
    frames: 4,
    connector: { kind: 'latent', tokens: 2, heads: 2, blocks: 1, perLayer: true },
    integration: { ...attentionOnly, audioNorm: 'own', keyValueProjection: 'separate' },
  }),
];
const model = audioLlm(streams);
const parameters = allParameters(model);
const frozen = new Map([...parameters].filter(([name]) => name.startsWith('model.layers.0.')));
const trainable = new Map([...parameters].filter(([name]) => !frozen.has(name)));
const shape = { rows: 3, textRows: 8, targets: 12 };
const objective = answerObjective(model, shape);
const rows = [0, 1, 2].map((row) => {
  const draw = random(21, row);
  const ids = Array.from({ length: 6 + row }, () => draw.integer(23));
  const clip = new Map(
    streams.map(({ encoder, frames, width }) => [
      encoder,
      float32(
        [frames, width],
        Array.from({ length: frames * width }, () => draw.normal()),
      ),
    ]),
  );
  const targets = ids.slice(3).map((id, index) => ({ position: index + 2, id }));
  return { id: String(row), ids, clip, targets };
});
export const batch = answerBatch(model, shape, rows);

/** What the training of the model is compiled from. */
export function smallOptions(engine: Engine, accumulate = 1, precision: Precision = 'float32'): StepOptions {
  return {
    engine,
    objective,
    trainable,
    frozen,
    optimizer: { kind: 'adamw', beta1: 0.9, beta2: 0.95, epsilon: 1e-8, weightDecay: 0.01 },
    clipNorm: 1,
    precision,
    accumulate,
  };
}

/** Loss, gradients and, after three resident steps, the parameters. */
export async function smallStep(engine: Engine, precision: Precision = 'float32'): Promise<Step> {
  const gradient = await engine.compile(gradientProgram({ objective, trainable, frozen, precision }));
  const scaleFeed = precision === 'float16' ? { [lossScaleInput]: float32([], [1]) } : {};
  const outputs = await gradient.run({ ...Object.fromEntries(trainable), ...scaleFeed, ...batch.feeds });
  const state = await trainingState(smallOptions(engine, 1, precision));
  const losses: number[] = [];
  for (let step = 0; step < 3; step++) losses.push((await state.step([batch], 0.001)).loss);
  const numbers = ({ data }: Tensor) => Array.from(data as Float32Array);
  const result = {
    gradients: Object.fromEntries(Object.keys(outputs).map((name) => [name, numbers(plain(outputs, name))])),
    losses,
    parameters: Object.fromEntries(
      [...(await state.parameters())].map(([name, tensor]) => [name, numbers(tensor)]),
    ),
  };
  await state.dispose();
  await gradient.dispose();
  return result;
}

/** Distance of two vectors relative to the length of the first. */
export function relative(a: readonly number[], b: readonly number[]): number {
  const norm = (values: readonly number[]) =>
    Math.sqrt(values.reduce((total, value) => total + value * value, 0));
  return norm(a.map((value, at) => value - (b[at] as number))) / Math.max(norm(a), 1e-12);
}
