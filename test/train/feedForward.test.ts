/** Training with each kind of sparse feed-forward layer: what moves, what is told, what is kept, what resumes. */
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { loadExperiment } from '../../src/config/load.ts';
import { random } from '../../src/config/random.ts';
import { isFeedForward, isHashTable } from '../../src/ffn/parameters.ts';
import { loraOf, loraScale } from '../../src/llm/lora.ts';
import { adapterNames, adapterScale } from '../../src/tensor/projection.ts';
import { float32, type Tensor } from '../../src/tensor/tensor.ts';
import { runEvaluation } from '../../src/train/evaluateRun.ts';
import { exportLlm, withLora } from '../../src/train/export.ts';
import type { StepMetrics } from '../../src/train/metrics.ts';
import type { TrainedModel } from '../../src/train/modelCard.ts';
import { loadModel } from '../../src/train/modelFolder.ts';
import { runTraining } from '../../src/train/run.ts';
import { assemble, initialParameters, loadExperimentLlm } from '../../src/train/setup.ts';
import { allParameters, audioLlm, feedForwardKinds } from '../pal/fixture.ts';
import { makeWorld, silentWatch, type World } from './fixture.ts';

let world: World;
beforeAll(async () => {
  world = await makeWorld();
});
afterAll(() => world.remove());

const sparse = (fields: string) => `{ kind: sparse, layers: "1..2", ${fields} }`;
/** The LLM has 48 hidden units. */
const kinds: Record<string, string> = {
  switch: sparse('select: switch, memory: 96, blockSize: 24'),
  'switch on its own weights': sparse('select: switch, blockSize: 12, capacityFactor: 1'),
  topk: sparse('select: topk, memory: 96, blockSize: 12, active: 3, normalize: chosen'),
  hash: sparse('select: hash, blockSize: 12, active: 2'),
  'avg-k': sparse('select: avg-k, memory: 64, blockSize: 8, active: 3'),
  'vanilla-memory': sparse('select: vanilla-memory, blockSize: 1, active: 12'),
  pkm: sparse('select: pkm, memory: 64, blockSize: 1, active: 8, heads: 2, queryWidth: 8'),
  'lowrank-memory': sparse('select: lowrank-memory, blockSize: 4, active: 3, rank: 4'),
  moc: '{ kind: moc, layers: "1..2", active: 9 }',
  'moc, structured': '{ kind: moc, select: structured, recompute: true }',
  'a list of kinds':
    '[{ kind: dense, layers: "0..0" }, { kind: sparse, layers: "1..1", select: hash, blockSize: 6, active: 2 }, ' +
    '{ kind: sparse, layers: "3..3", select: avg-k, blockSize: 6, active: 2, gate: softmax }]',
};

/** A layer in which tokens choose. */
interface Choosing {
  readonly at: number;
  readonly blocks: number;
  readonly active: number;
  /** Whether choices may be dropped; undefined: it is not told, as nothing ever is. */
  readonly drops: boolean | undefined;
}

let runs = 0;

async function experimentOf(ffn: string, over: readonly string[] = []) {
  const trainable = /switch|topk|pkm|lowrank|memory: \d/.test(ffn)
    ? '"connector.*", "model.*", "ffn.*"'
    : '"connector.*", "model.*"';
  const stage = `{ name: all, trainable: [${trainable}], steps: 4, learningRate: 0.003 }`;
  const { experiment } = await loadExperiment(world.config, [
    `run.dir=${join(world.folder, `ffn-${++runs}`)}`,
    `llm.ffn=${ffn}`,
    `train.stages=[${stage}]`,
    ...over,
  ]);
  return experiment;
}

const widths = new Map([['timbre', { width: 48 }]]);

function metricsOf(dir: string): StepMetrics[] {
  const lines = readFileSync(join(dir, 'metrics.jsonl'), 'utf8').trim().split('\n');
  return lines.map((line) => JSON.parse(line));
}

describe.each(Object.entries(kinds))('%s', (_, ffn) => {
  it('trains, tells how tokens choose, and is read back as it was', async () => {
    const experiment = await experimentOf(ffn);
    const { dir } = experiment.run;
    const { record } = await runTraining(experiment, { watch: silentWatch, resume: false, evaluate: true });
    const llm = await loadExperimentLlm(experiment);
    const model = assemble(experiment, llm, widths, new Map([['timbre', 30]]));
    const before = initialParameters(model, llm.parameters, experiment.seed);
    const read = await loadModel(join(dir, 'model'), (loaded, frames) =>
      assemble(experiment, loaded, widths, frames),
    );
    expect([...read.parameters.keys()].sort()).toEqual([...before.keys()].sort());
    for (const [name, { data }] of before) {
      if (!isFeedForward(name) || isHashTable(name)) continue;
      expect(read.parameters.get(name)?.data, name).not.toEqual(data);
    }

    const hasRouter = /switch|topk/.test(ffn);
    const sparseLayers = (model.ffn ?? []).flatMap((layer, at): Choosing[] => {
      if (layer.kind !== 'sparse' && layer.kind !== 'moc') return [];
      const { active } = layer;
      if (layer.kind === 'moc') return [{ at, blocks: layer.channels, active, drops: undefined }];
      return [{ at, blocks: layer.blocks, active, drops: layer.capacityFactor !== null }];
    });
    for (const { loss, auxiliaryLoss, feedForward = {} } of metricsOf(dir)) {
      expect(Number.isFinite(loss)).toBe(true);
      expect(auxiliaryLoss === undefined).toBe(!hasRouter);
      // Load balancing is at its least where all blocks are used alike.
      if (hasRouter) expect(auxiliaryLoss).toBeGreaterThan(0.01 * 2 * 0.9);
      const told = sparseLayers.reduce((count, { drops }) => count + (drops === undefined ? 3 : 4), 0);
      expect(Object.keys(feedForward)).toHaveLength(told);
      for (const { at, blocks, active, drops } of sparseLayers) {
        const statistic = (name: string) => feedForward[`layers.${at}.${name}`] as number;
        expect(statistic('load')).toBeGreaterThanOrEqual(1 - 1e-6);
        // Heads choose apart, so that all of a token's choices may fall on one block.
        const most = blocks / (ffn.includes('pkm') ? 1 : active);
        expect(statistic('load')).toBeLessThanOrEqual(most + 1e-4);
        expect(statistic('entropy')).toBeGreaterThanOrEqual(-1e-6);
        expect(statistic('entropy')).toBeLessThanOrEqual(1 + 1e-6);
        expect(statistic('deadBlocks')).toBeLessThan(blocks);
        if (drops === true) expect(statistic('overflow')).toBeLessThan(1);
        if (drops === false) expect(Math.abs(statistic('overflow'))).toBeLessThan(1e-6);
      }
    }
    const again = await runEvaluation(experiment, { watch: silentWatch });
    expect(again).toEqual(record);
    await expect(
      exportLlm(dir, join(world.folder, `export-${runs}`), { lora: 'merge', half: false }),
    ).rejects.toThrow(/sparse feed-forward/);
    expect(readFileSync(join(dir, 'model', 'README.md'), 'utf8')).toMatch(/which palkit alone computes/);
  });
});

it('tells text and audio apart where audio rows pass the layer', async () => {
  for (const kind of ['topk', 'moc'] as const) {
    const experiment = await experimentOf(kinds[kind] as string, [
      'streams.0.connector={ kind: mlp, hidden: 16 }',
      'streams.0.integration={ mode: prefix, startLayer: 2 }',
    ]);
    await runTraining(experiment, { watch: silentWatch, resume: false, evaluate: false });
    for (const { feedForward = {} } of metricsOf(experiment.run.dir)) {
      const ofKinds = Object.keys(feedForward).filter((name) => /text|audio/.test(name));
      const names = ['audio.entropy', 'audio.load', 'text.entropy', 'text.load', 'textAudioOverlap'];
      // The layer before the stream begins has none of its rows.
      expect(ofKinds.sort()).toEqual(names.map((name) => `layers.2.${name}`));
      expect(feedForward['layers.2.textAudioOverlap']).toBeGreaterThan(0);
      expect(feedForward['layers.2.textAudioOverlap']).toBeLessThan(1);
    }
  }
});

it('resumes to the same bits', async () => {
  const ffn = kinds.switch as string;
  const [whole, parts] = [await experimentOf(ffn), await experimentOf(ffn)];
  await runTraining(whole, { watch: silentWatch, resume: false, evaluate: false });
  let asked = 0;
  const stopped = await runTraining(parts, {
    watch: silentWatch,
    resume: true,
    evaluate: false,
    interrupted: () => ++asked === 2,
  });
  expect(stopped).toMatchObject({ finished: false, steps: 2 });
  await runTraining(parts, { watch: silentWatch, resume: true, evaluate: false });
  const bytes = ({ run }: typeof whole, file: string) => readFileSync(join(run.dir, 'model', file));
  for (const file of ['model.safetensors', 'streams.safetensors'])
    expect(bytes(parts, file).equals(bytes(whole, file)), file).toBe(true);
});

it.each(['topk', 'moc', 'moc, structured'])(
  'adds up over micro-batches, in float16, and with activations computed again: %s',
  async (kind) => {
    const over = ['train.batchSize=2', 'train.accumulate=2', 'train.precision=float16'];
    const plain = await experimentOf(kinds[kind] as string, over);
    const again = await experimentOf(kinds[kind] as string, [...over, 'train.recompute={ kind: all }']);
    for (const experiment of [plain, again])
      await runTraining(experiment, { watch: silentWatch, resume: false, evaluate: false });
    const losses = ({ run }: typeof plain) =>
      metricsOf(run.dir).map(({ loss, auxiliaryLoss }) => [loss, auxiliaryLoss]);
    expect(losses(again)).toEqual(losses(plain));
    for (const [loss] of losses(plain)) expect(Number.isFinite(loss)).toBe(true);
  },
);

it('merges adapters whatever rounding does to a choice', async () => {
  const own = audioLlm([], {}, feedForwardKinds.moc);
  const lora = loraOf(own.llm, { rank: 1, alpha: 1, dropout: 0, targets: ['gate_proj'], layers: null });
  const parameters = allParameters(own);
  for (const module of lora.modules) {
    const weight = parameters.get(`${module}.weight`) as Tensor & { dtype: 'float32' };
    const [outputs, inputs] = weight.shape as [number, number];
    const [{ normal }, names] = [random(module), adapterNames(module)];
    const [a, b, sum] = [inputs, outputs, inputs].map((size) => Float32Array.from({ length: size }, normal));
    // Merged, all rows are the same but for rounding: what decides between them.
    const apart = weight.data.map(
      (_, at) => (sum?.[at % inputs] ?? 0) - (b?.[Math.floor(at / inputs)] ?? 0) * (a?.[at % inputs] ?? 0),
    );
    parameters.set(`${module}.weight`, float32(weight.shape, apart));
    parameters.set(names.a, float32([1, inputs], a as Float32Array));
    parameters.set(names.b, float32([outputs, 1], b as Float32Array));
  }
  parameters.set(adapterScale, loraScale(lora));
  const experiment = await experimentOf(kinds.moc as string);
  const trained = { model: { ...own, lora }, parameters, experiment } as unknown as TrainedModel;
  const merged = await withLora(trained, { lora: 'merge' });
  expect(merged.model.lora).toBeUndefined();
});

describe('a configuration that cannot be', () => {
  it.each([
    ['{ kind: sparse, select: topk, blockSize: 7, active: 1 }', /48 cells = 6 x 7 \+ 6.*near to it: 6, 8/],
    [
      '{ kind: sparse, select: topk, blockSize: 12, active: 5 }',
      /active: 5 of 48 cells \/ 12 a block = 4 blocks/,
    ],
    ['{ kind: sparse, select: pkm, blockSize: 1, active: 2 }', /48 blocks, and product keys need a square/],
    [
      '{ kind: sparse, select: pkm, memory: 64, blockSize: 1, active: 9, heads: 2 }',
      /9 blocks do not divide among 2/,
    ],
    [
      '{ kind: sparse, select: avg-k, blockSize: 12, active: 1, layers: "2..9" }',
      /the LLM has layers 0 to 3/,
    ],
    ['{ kind: sparse, select: avg-k, blockSize: 12, active: 1, layers: "2..1" }', /1 is below 2/],
    [
      '[{ kind: dense, layers: "0..2" }, { kind: sparse, select: avg-k, blockSize: 12, active: 1, layers: "2..3" }]',
      /layer 2 is in llm.ffn\[0\] already/,
    ],
    [
      '{ kind: sparse, select: switch, blockSize: 12, capacityFactor: 0.001 }',
      /0\.001 \* \d+ tokens \* 1 choices \/ 4 blocks = 0\.0\d+ slots a block: everything would be dropped/,
    ],
  ])('%s', async (ffn, message) => {
    const experiment = await experimentOf(ffn);
    await expect(
      runTraining(experiment, { watch: silentWatch, resume: false, evaluate: false }),
    ).rejects.toThrow(message);
  });

  it('what chooses is not trained', async () => {
    const experiment = await experimentOf(kinds.topk as string, ['train.stages.0.trainable=["connector.*"]']);
    await expect(
      runTraining(experiment, { watch: silentWatch, resume: false, evaluate: false }),
    ).rejects.toThrow(/no stage trains "ffn\.\*"/);
  });

  it('adapters on the projections of a sparse layer', async () => {
    const experiment = await experimentOf(kinds.hash as string, [
      'llm.lora={ rank: 2, alpha: 4, targets: ["*.mlp.*"] }',
    ]);
    await expect(
      runTraining(experiment, { watch: silentWatch, resume: false, evaluate: false }),
    ).rejects.toThrow(
      /llm\.lora\.targets: they choose model\.layers\.1\.mlp\.gate_proj, whose feed-forward layer is sparse/,
    );
  });
});
