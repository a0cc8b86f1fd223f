import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { loadExperiment } from '../../src/config/load.ts';
import { random } from '../../src/config/random.ts';
import { onnxEngine } from '../../src/engine/onnx/engine.ts';
import { float32 } from '../../src/tensor/tensor.ts';
import {
  affordableShapes,
  type BatchNeed,
  chooseShapes,
  copiesBudgetBytes,
  paddingCost,
  shapeFor,
} from '../../src/train/batchShapes.ts';
import { deviceState } from '../../src/train/deviceState.ts';
import { copiesPerProgram } from '../../src/train/frozenWeights.ts';
import { hostState } from '../../src/train/hostState.ts';
import { answerBatch, answerObjective } from '../../src/train/loss.ts';
import { runTraining } from '../../src/train/run.ts';
import { allParameters, audioLlm, llm, stream } from '../pal/fixture.ts';
import { makeWorld, noProgress, type World } from './fixture.ts';

const cost = { textRow: 10, target: 3 };

describe('the shapes of a stage', () => {
  const whole = { rows: 4, textRows: 48, targets: 96 };
  const draw = random('needs');
  const needs = Array.from({ length: 60 }, (): BatchNeed => {
    const long = draw.uniform() < 0.2;
    return { textRows: long ? 20 + draw.integer(28) : 6 + draw.integer(12), targets: 4 + draw.integer(60) };
  });
  const arithmetic = (s: BatchNeed) => 4 * s.textRows * cost.textRow + s.targets * cost.target;
  const total = (shapes: readonly BatchNeed[]) =>
    needs.reduce((sum, need) => {
      const holding = shapes.filter((s) => s.textRows >= need.textRows && s.targets >= need.targets);
      return sum + Math.min(...holding.map(arithmetic));
    }, 0);

  it('are one when one is asked for: the one that holds everything', () => {
    expect(chooseShapes(whole, needs, cost, 1)).toEqual({ shapes: [whole], saved: 0, shares: [1] });
  });

  it('save what they say, and the second saves the most that any could', () => {
    const two = chooseShapes(whole, needs, cost, 2);
    expect(two.saved).toBeCloseTo(1 - total(two.shapes) / total([whole]), 10);
    let least = total([whole]);
    for (let textRows = 8; textRows <= 48; textRows += 8) {
      for (let targets = 8; targets <= 96; targets += 8)
        least = Math.min(least, total([whole, { textRows, targets }]));
    }
    expect(total(two.shapes)).toBe(least);
    const four = chooseShapes(whole, needs, cost, 4);
    expect(four.shapes).toHaveLength(4);
    expect(four.shapes[0]).toBe(whole);
    expect(four.saved).toBeGreaterThan(two.saved);
    const mix = four.shares.map((share, at) => share * arithmetic(four.shapes[at] as BatchNeed));
    expect(mix.reduce((sum, one) => sum + one, 0)).toBeCloseTo(total(four.shapes) / needs.length, 8);
  });

  it('are no more than pay', () => {
    const alike = needs.map(() => ({ textRows: 44, targets: 95 }));
    expect(chooseShapes(whole, alike, cost, 8).shapes).toEqual([whole]);
    expect(chooseShapes(whole, [], cost, 8)).toEqual({ shapes: [whole], saved: 0, shares: [1] });
  });

  it('are fewer where each holds copies of large frozen weights', () => {
    expect(affordableShapes(4, 0)).toBe(4);
    for (const frozenBytes of [50e6, 150e6, 200e6, 500e6, 2.4e9]) {
      const shapes = affordableShapes(4, frozenBytes);
      const copies = (smaller: number) => smaller * copiesPerProgram * frozenBytes;
      expect(copies(shapes - 1)).toBeLessThanOrEqual(copiesBudgetBytes);
      if (shapes < 4) expect(copies(shapes)).toBeGreaterThan(copiesBudgetBytes);
    }
    expect(affordableShapes(4, 200e6)).toBe(3);
    expect(affordableShapes(4, 2.4e9)).toBe(1);
  });

  it('take each batch in the cheapest that holds it, one that was not foreseen in the first', () => {
    const shapes = [whole, { ...whole, textRows: 16, targets: 16 }, { ...whole, textRows: 16, targets: 48 }];
    const row = (length: number, targets: number) => ({
      id: '',
      ids: Array<number>(length).fill(1),
      clip: undefined,
      targets: Array.from({ length: targets }, () => ({ position: 0, id: 1 })),
    });
    const numberFor = (...rows: ReturnType<typeof row>[]) => shapeFor({ shapes }, rows, cost);
    expect(numberFor(row(16, 8), row(4, 8))).toBe(1);
    expect(numberFor(row(16, 8), row(4, 9))).toBe(2);
    expect(numberFor(row(17, 1))).toBe(0);
    expect(numberFor(row(90, 1))).toBe(0);
  });
});

describe('a step over micro-batches of several sizes', () => {
  const engine = onnxEngine();
  afterAll(() => engine.dispose());
  const model = audioLlm([stream('one')]);
  const parameters = allParameters(model);
  const frozen = new Map([...parameters].filter(([name]) => name.includes('mlp')));
  const trainable = new Map([...parameters].filter(([name]) => !frozen.has(name)));
  const rows = [16, 6, 7, 12].map((length, row) => {
    const draw = random('row', row);
    const ids = Array.from({ length }, () => draw.integer(23));
    const clip = new Map([
      [
        'one',
        float32(
          [5, 6],
          Array.from({ length: 30 }, () => draw.normal()),
        ),
      ],
    ]);
    return { id: String(row), ids, clip, targets: [{ position: length - 2, id: ids.at(-1) as number }] };
  });
  const shapes = [
    { rows: 2, textRows: 16, targets: 8 },
    { rows: 2, textRows: 8, targets: 2 },
  ] as const;
  const windows = [rows.slice(0, 2), rows.slice(1, 3), rows.slice(2)];

  for (const [kind, start] of Object.entries({ host: hostState, device: deviceState })) {
    for (const accumulate of [1, 3]) {
      it(`${kind}, ${accumulate} micro-batches: as when all are padded to the longest`, async () => {
        const results = [];
        for (const several of [false, true]) {
          const [objective, small] = shapes.map((shape) => answerObjective(model, shape));
          const state = await start({
            engine,
            objective: objective as ReturnType<typeof answerObjective>,
            ...(several && small !== undefined && { otherSizes: [small] }),
            trainable,
            frozen,
            optimizer: { kind: 'adamw', beta1: 0.9, beta2: 0.95, epsilon: 1e-4, weightDecay: 0.01 },
            clipNorm: 1,
            accumulate,
          });
          const batches = windows.map((own) => {
            const size = several ? shapeFor({ shapes }, own, paddingCost(llm)) : 0;
            return answerBatch(model, shapes[size as 0 | 1], own, size);
          });
          if (several) expect(batches.map(({ size }) => size)).toEqual([0, 1, 0]);
          const losses: number[] = [];
          for (let step = 0; step < 3; step++) {
            const window = accumulate === 1 ? batches.slice(step, step + 1) : batches;
            losses.push((await state.step(window, 0.01)).loss);
          }
          results.push({ losses, parameters: new Map(await state.parameters()) });
          await state.dispose();
        }
        const [padded, bucketed] = results;
        for (const [step, loss] of (padded?.losses ?? []).entries())
          expect(bucketed?.losses[step]).toBeCloseTo(loss, 5);
        for (const [name, { data }] of padded?.parameters ?? []) {
          const own = bucketed?.parameters.get(name)?.data ?? [];
          for (const [at, value] of data.entries()) expect(own[at]).toBeCloseTo(value, 4);
        }
      });
    }
  }

  it('names a size that the step does not have', async () => {
    const state = await hostState({
      engine,
      objective: answerObjective(model, shapes[0]),
      trainable,
      frozen,
      optimizer: { kind: 'adamw', beta1: 0.9, beta2: 0.95, epsilon: 1e-4, weightDecay: 0.01 },
      clipNorm: 1,
      accumulate: 1,
    });
    const batch = answerBatch(model, shapes[1], rows.slice(1, 3), 1);
    await expect(state.step([batch], 0.01)).rejects.toThrow('size number 1, the step has 1 sizes');
    await state.dispose();
  });
});

describe('a run', () => {
  let world: World;
  beforeAll(async () => {
    world = await makeWorld();
  });
  afterAll(() => world.remove());

  async function train(name: string, batchShapes: number, stopAfter = Number.POSITIVE_INFINITY) {
    const dir = join(world.folder, name);
    const { experiment } = await loadExperiment(world.config, [
      `run.dir=${dir}`,
      `train.batchShapes=${batchShapes}`,
      'train.batchSize=2',
      'train.accumulate=2',
      'train.lossOn=all',
    ]);
    const notes: string[] = [];
    let steps = 0;
    await runTraining(experiment, {
      resume: true,
      evaluate: false,
      watch: {
        note: (text) => notes.push(text),
        progress: noProgress,
      },
      interrupted: () => ++steps >= stopAfter,
    });
    const lines = readFileSync(join(dir, 'metrics.jsonl'), 'utf8').trim().split('\n');
    return { notes, losses: lines.map((line) => JSON.parse(line).loss as number) };
  }

  it('sees the same questions, loses the same, and resumes to the same bits', async () => {
    const padded = await train('padded', 1);
    const bucketed = await train('bucketed', 3);
    const told = bucketed.notes.filter((note) => note.startsWith('micro-batches in'));
    expect(told).toHaveLength(3);
    expect(told.at(-1)).toMatch(
      /^micro-batches in [23] of 3 shapes .*: [1-9][\d.]* % of the text's arithmetic/,
    );
    expect(padded.notes.some((note) => note.startsWith('micro-batches in'))).toBe(false);
    expect(bucketed.losses).toHaveLength(18);
    for (const [step, loss] of bucketed.losses.entries())
      expect(loss / (padded.losses[step] as number)).toBeCloseTo(1, 4);
    await train('resumed', 3, 15);
    const resumed = await train('resumed', 3);
    expect(resumed.notes).toContain('resuming after step 15');
    expect(resumed.losses).toEqual(bucketed.losses);
  });
});
