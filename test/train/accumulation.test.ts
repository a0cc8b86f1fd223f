import { afterAll, expect, it } from 'vitest';
import { random } from '../../src/config/random.ts';
import { onnxEngine } from '../../src/engine/onnx/engine.ts';
import { float32 } from '../../src/tensor/tensor.ts';
import { answerBatch, answerObjective } from '../../src/train/loss.ts';
import { NonFiniteError } from '../../src/train/step.ts';
import { trainingState } from '../../src/train/trainingState.ts';
import { allParameters, audioLlm, stream } from '../pal/fixture.ts';

const engine = onnxEngine();
afterAll(() => engine.dispose());

const model = audioLlm([stream('one')]);
const parameters = allParameters(model);
const frozen = new Map([...parameters].filter(([name]) => name.includes('mlp')));
const trainable = new Map([...parameters].filter(([name]) => !frozen.has(name)));

/** Rows whose answers differ in length, so that a mean of means would differ from the mean. */
const rows = Array.from({ length: 8 }, (_, row) => {
  const draw = random('row', row);
  const ids = Array.from({ length: 8 }, () => draw.integer(23));
  const clip = new Map([
    [
      'one',
      float32(
        [5, 6],
        Array.from({ length: 30 }, () => draw.normal()),
      ),
    ],
  ]);
  const targets = ids.slice(7 - (row % 4)).map((id, index) => ({ position: 6 - (row % 4) + index, id }));
  return { id: String(row), ids, clip, targets };
});

async function start(size: number) {
  const shape = { rows: size, textRows: 8, targets: size * 4 };
  const state = await trainingState({
    engine,
    objective: answerObjective(model, shape),
    trainable,
    frozen,
    optimizer: { kind: 'adamw', beta1: 0.9, beta2: 0.95, epsilon: 1e-4, weightDecay: 0.01 },
    clipNorm: 1,
    accumulate: 8 / size,
  });
  const window = Array.from({ length: 8 / size }, (_, at) =>
    answerBatch(model, shape, rows.slice(at * size, (at + 1) * size)),
  );
  return { state, window, shape };
}

it('8 x 1, 4 x 2 and 2 x 4 rows x micro-batches give the same losses and parameters', async () => {
  const results = [];
  for (const size of [8, 4, 2]) {
    const { state, window } = await start(size);
    const losses: number[] = [];
    for (let step = 0; step < 3; step++) losses.push((await state.step(window, 0.01)).loss);
    results.push({ losses, parameters: await state.parameters() });
    await state.dispose();
  }
  const [whole, ...split] = results;
  for (const { losses, parameters: own } of split) {
    for (const [step, loss] of losses.entries()) expect(loss).toBeCloseTo(whole?.losses[step] as number, 5);
    for (const [name, { data }] of own) {
      for (const [at, value] of data.entries())
        expect(Math.abs(value - (whole?.parameters.get(name)?.data[at] as number))).toBeLessThan(1e-4);
    }
  }
});

it('a step that is not finite is refused, and changes nothing', async () => {
  const { state, window, shape } = await start(8);
  await state.step(window, 0.01);
  const before = await state.parameters();
  const broken = rows.map((row) => ({
    ...row,
    clip: new Map([['one', float32([5, 6], new Float32Array(30).fill(Number.NaN))]]),
  }));
  await expect(state.step([answerBatch(model, shape, broken)], 0.01)).rejects.toThrow(NonFiniteError);
  const silent = rows.map((row) => ({ ...row, targets: [] }));
  await expect(state.step([answerBatch(model, shape, silent)], 0.01)).rejects.toThrow(
    'nothing to learn from',
  );
  for (const [name, { data }] of await state.parameters()) expect(data).toEqual(before.get(name)?.data);
  expect((await state.optimizer()).updates).toBe(1);
  await state.dispose();
});
