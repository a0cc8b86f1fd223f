import { createHash } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, describe, expect, it } from 'vitest';
import { loadExperiment } from '../../src/config/load.ts';
import type { Engine } from '../../src/engine/engine.ts';
import { onnxEngine } from '../../src/engine/onnx/engine.ts';
import { divide, linear, multiply, sqrt, subtract, sum } from '../../src/tensor/operations.ts';
import type { Precision } from '../../src/tensor/precision.ts';
import type { Value } from '../../src/tensor/program.ts';
import { float32, type Tensor } from '../../src/tensor/tensor.ts';
import { initialLossScale, type LossScale, nextLossScale } from '../../src/train/lossScale.ts';
import { runTraining } from '../../src/train/run.ts';
import { type Batch, NonFiniteError, type Objective, type OptimizerState } from '../../src/train/step.ts';
import { trainingState } from '../../src/train/trainingState.ts';
import { makeWorld, noProgress } from './fixture.ts';

const engine = onnxEngine();
afterAll(() => engine.dispose());

describe('the loss scale', () => {
  it('halves when gradients overflow, doubles after 2000 steps without, and counts what was skipped', () => {
    let scale = nextLossScale(initialLossScale, true);
    expect(scale).toEqual({ scale: 32768, steps: 0, skipped: 1 });
    for (let step = 0; step < 1999; step++) scale = nextLossScale(scale, false);
    expect(scale).toEqual({ scale: 32768, steps: 1999, skipped: 1 });
    scale = nextLossScale(scale, false);
    expect(scale).toEqual({ scale: 65536, steps: 0, skipped: 1 });
  });
});

const weight = float32(
  [4, 4],
  Float32Array.from({ length: 16 }, (_, at) => Math.sin(at) / 2),
);

/** Squared error of a linear map, times `factor`: its gradients overflow float16 where the factor is large. */
function regression(factor: number): Objective {
  return {
    inputs: { x: { dtype: 'float32', shape: [2, 4] } },
    summedLoss: (parameters, inputs, scale) => {
      const error = subtract(linear(inputs.x as Value, parameters.get('weight') as Value), 1);
      return { loss: multiply(multiply(sum(multiply(error, error)), factor), scale ?? 1) };
    },
  };
}

const batch = (seed: number): Batch => ({
  feeds: {
    x: float32(
      [2, 4],
      Float32Array.from({ length: 8 }, (_, at) => Math.cos(seed + at)),
    ),
  },
  supervisedTokens: 2,
  tokens: 2,
});

function start(
  objective: Objective,
  {
    precision = 'float16',
    on = engine,
    accumulate = 1,
    lossScale,
    state,
  }: {
    precision?: Precision;
    on?: Engine;
    accumulate?: number;
    lossScale?: LossScale;
    state?: OptimizerState;
  } = {},
) {
  const options = {
    engine: on,
    objective,
    trainable: new Map([['weight', weight]]),
    frozen: new Map(),
    optimizer: { kind: 'adamw', beta1: 0.9, beta2: 0.95, epsilon: 1e-8, weightDecay: 0.01 },
    clipNorm: 1,
    precision,
    accumulate,
  } as const;
  const fresh = { updates: 0, moments: new Map(), lossScale };
  return trainingState(options, state ?? (lossScale === undefined ? undefined : fresh));
}

/** The same engine as a device, which updates in the program. */
const device: Engine = { ...engine, inPlace: false };

describe.each([
  { where: 'in memory', on: engine },
  { where: 'on a device', on: device },
])('training in float16 $where', ({ on }) => {
  it('skips steps whose gradients overflow, halving the scale, and changes nothing meanwhile', async () => {
    const state = await start(regression(3000), { on });
    const told = [];
    let skipped = true;
    while (skipped) {
      const before = (await state.parameters()).get('weight')?.data.slice();
      const result = await state.step([batch(1)], 0.01);
      skipped = result.scaling?.skipped ?? false;
      told.push(result.scaling);
      expect(Number.isFinite(result.gradientNorm)).toBe(!skipped);
      expect(Number.isFinite(result.loss)).toBe(true);
      const { updates, lossScale, moments } = await state.optimizer();
      expect(updates).toBe(skipped ? 0 : 1);
      expect(lossScale?.skipped).toBe(skipped ? told.length : told.length - 1);
      if (!skipped) continue;
      expect((await state.parameters()).get('weight')?.data).toEqual(before);
      for (const { data } of moments.values()) expect(data.every((value) => value === 0)).toBe(true);
    }
    expect(told.length).toBeGreaterThan(3);
    expect(told.map((one) => one?.lossScale)).toEqual(told.map((_, at) => 2 ** (16 - at)));
    await state.dispose();
  });

  it('gives the same step whatever the scale, up to what float16 loses of small gradients', async () => {
    const results = [];
    for (const scale of [256, 1024, 4096]) {
      const state = await start(regression(1), { on, lossScale: { scale, steps: 0, skipped: 0 } });
      const { gradientNorm, scaling } = await state.step([batch(1)], 0.01);
      expect(scaling).toEqual({ lossScale: scale, skipped: false });
      results.push({ gradientNorm, data: (await state.parameters()).get('weight')?.data.slice() });
      await state.dispose();
    }
    // Powers of two change exponents alone.
    for (const { gradientNorm, data } of results) {
      expect(gradientNorm).toBe(results[0]?.gradientNorm);
      expect(data).toEqual(results[0]?.data);
    }
  });

  it('keeps gradients that float16 would lose: unscaled they vanish', async () => {
    const norm = async (precision: Precision, scale: number) => {
      const state = await start(regression(1e-6), {
        on,
        precision,
        lossScale: { scale, steps: 0, skipped: 0 },
      });
      const { gradientNorm } = await state.step([batch(1)], 0.01);
      await state.dispose();
      return gradientNorm;
    };
    const expected = await norm('float32', 1);
    expect(Math.abs((await norm('float16', 65536)) / expected - 1)).toBeLessThan(2e-3);
    expect(Math.abs((await norm('float16', 1)) / expected - 1)).toBeGreaterThan(2e-2);
  });

  it('adds micro-batches up under one scale', async () => {
    const losses = async (precision: Precision) => {
      const lossScale = { scale: 1024, steps: 0, skipped: 0 };
      const state = await start(regression(1), { on, precision, accumulate: 2, lossScale });
      const made = [];
      for (let step = 0; step < 3; step++) {
        const { loss, gradientNorm } = await state.step([batch(step), batch(step + 7)], 0.01);
        made.push(loss, gradientNorm);
      }
      await state.dispose();
      return made;
    };
    const expected = await losses('float32');
    for (const [at, value] of (await losses('float16')).entries())
      expect(Math.abs(value / (expected[at] as number) - 1)).toBeLessThan(3e-3);
  });

  it('ends when the scale has fallen to nothing, and at once when the loss itself is not finite', async () => {
    const infinite: Objective = {
      ...regression(1),
      // Finite at zero, with an infinite slope.
      summedLoss: (parameters, inputs, scale) => {
        const x = multiply(sum(multiply(parameters.get('weight') as Value, 0)), sum(inputs.x as Value));
        return { loss: multiply(sqrt(x), scale ?? 1) };
      },
    };
    const state = await start(infinite, { on });
    for (let step = 0; step < 16; step++)
      expect((await state.step([batch(0)], 0.01)).scaling).toEqual({
        lossScale: 2 ** (16 - step),
        skipped: true,
      });
    await expect(state.step([batch(0)], 0.01)).rejects.toThrow(NonFiniteError);
    await state.dispose();

    const broken: Objective = {
      ...regression(1),
      summedLoss: (parameters, inputs) => ({
        loss: sum(divide(linear(inputs.x as Value, parameters.get('weight') as Value), 0)),
      }),
    };
    const hopeless = await start(broken, { on });
    await expect(hopeless.step([batch(0)], 0.01)).rejects.toThrow(NonFiniteError);
    await hopeless.dispose();
  });
});

it('bfloat16 and float32 have no loss scale', async () => {
  for (const precision of ['float32', 'bfloat16'] as const) {
    const state = await start(regression(1), { precision });
    expect((await state.step([batch(1)], 0.01)).scaling).toBeUndefined();
    expect((await state.optimizer()).lossScale).toBeUndefined();
    await state.dispose();
  }
});

/** An engine on which gradients overflow where the loss is scaled by more than a limit. */
function overflowing(inner: Engine, limit: number): Engine {
  return {
    ...inner,
    async compile(program, options) {
      const executable = await inner.compile(program, options);
      return {
        ...executable,
        async run(feeds, into) {
          const outputs = await executable.run(feeds, into);
          const fed = feeds['loss.scale'] as Tensor | undefined;
          const [gradient] = Object.entries(into ?? {}).find(([name]) => name.startsWith('gradient.')) ?? [];
          if (Number(fed?.data[0] ?? 0) > limit) into?.[gradient as string]?.data.fill(Infinity as never);
          return outputs;
        },
      };
    },
  };
}

describe('a run in float16', () => {
  it('that was interrupted goes on to the same bits, with its loss scale, and logs what it skipped', async () => {
    const world = await makeWorld();
    try {
      const train = async (name: string, stopAfter = Number.POSITIVE_INFINITY) => {
        const { experiment } = await loadExperiment(world.config, [
          `run.dir=${join(world.folder, name)}`,
          'train.precision=float16',
        ]);
        const notes: string[] = [];
        let steps = 0;
        const { finished } = await runTraining(experiment, {
          watch: {
            note: (text) => notes.push(text),
            progress: noProgress,
          },
          resume: true,
          evaluate: false,
          engine: overflowing(engine, 1000),
          interrupted: () => ++steps >= stopAfter,
        });
        const lines = readFileSync(join(world.folder, name, 'metrics.jsonl'), 'utf8')
          .trim()
          .split('\n');
        return { notes, finished, lines: lines.map((line) => JSON.parse(line)) };
      };
      const hash = (name: string) =>
        createHash('sha256')
          .update(readFileSync(join(world.folder, name, 'model', 'model.safetensors')))
          .digest('hex');
      const told = (lines: { loss: number; lossScale: number; skipped: boolean }[]) =>
        lines.map(({ loss, lossScale, skipped }) => ({ loss, lossScale, skipped }));

      const whole = await train('whole');
      expect(whole.notes).toContainEqual(
        expect.stringContaining('float16 on onnx (cpu, 2 threads) is computed in float32 with rounding'),
      );
      const skipped = whole.lines.filter((line) => line.skipped);
      expect(skipped.length).toBeGreaterThan(0);
      expect(whole.notes.filter((note) => note.includes('the step was skipped'))).toHaveLength(
        skipped.length,
      );
      expect((await train('parts', 3)).finished).toBe(false);
      expect((await train('parts', 5)).finished).toBe(false);
      const parts = await train('parts');
      expect(parts.notes).toContainEqual(expect.stringContaining('resuming after step 8'));
      expect(told(parts.lines)).toEqual(told(whole.lines));
      expect(hash('parts')).toBe(hash('whole'));
    } finally {
      await world.remove();
    }
  });
});
