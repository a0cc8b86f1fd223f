/** Training with layers that share a feed-forward or have none: what is counted, kept, resumed and exported. */
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { loadExperiment } from '../../src/config/load.ts';
import type { Experiment } from '../../src/config/schema.ts';
import { isFeedForward } from '../../src/ffn/parameters.ts';
import { loadLlm } from '../../src/llm/weights.ts';
import { runEvaluation } from '../../src/train/evaluateRun.ts';
import { exportAudioLlm, exportLlm, readTrained } from '../../src/train/export.ts';
import { exportOnnx } from '../../src/train/exportOnnx.ts';
import { planExperiment } from '../../src/train/plan.ts';
import { runTraining } from '../../src/train/run.ts';
import { assemble, initialParameters, loadExperimentLlm } from '../../src/train/setup.ts';
import { makeWorld, silentWatch, type World } from './fixture.ts';

let world: World;
beforeAll(async () => {
  world = await makeWorld();
});
afterAll(() => world.remove());

/** The LLM has 4 layers of width 32 with 48 hidden units. */
const layer = 3 * 32 * 48;
const kinds = {
  'one wide': { ffn: '{ kind: wide, layers: "1..3", width: all }', saved: 0, shared: [0] },
  average: {
    ffn: '{ kind: wide, groups: 2, tie: cycle-reverse, from: average }',
    saved: 2 * layer,
    shared: [0, 1],
  },
  'wide, dense and none': {
    ffn: '[{ kind: wide, layers: "0..1", width: all }, { kind: none, layers: "3..3" }]',
    saved: 32,
    shared: [0],
  },
} as const;

let runs = 0;
const folderOf = (name: string) => join(world.folder, `${name}-${++runs}`);

async function experimentOf(ffn: string, over: readonly string[] = []): Promise<Experiment> {
  const stage =
    '{ name: all, trainable: ["connector.*", "model.*", "ffn.*"], steps: 4, learningRate: 0.003 }';
  const { experiment } = await loadExperiment(world.config, [
    `run.dir=${folderOf('wide')}`,
    `llm.ffn=${ffn}`,
    `train.stages=[${stage}]`,
    ...over,
  ]);
  return experiment;
}

const train = (experiment: Experiment, over: object = {}) =>
  runTraining(experiment, { watch: silentWatch, resume: false, evaluate: false, ...over });

async function initialOf(experiment: Experiment) {
  const llm = await loadExperimentLlm(experiment);
  const widths = new Map([['timbre', { width: 48 }]]);
  const model = assemble(experiment, llm, widths, new Map([['timbre', 30]]));
  return initialParameters(model, llm.parameters, experiment.seed);
}

/** Without feed-forward layers of its own there is no "ffn.*" to train. */
const untrained = 'train.stages.0.trainable=["connector.*", "model.*"]';
const plans = { stage: undefined, rates: null };

describe.each(Object.entries(kinds))('%s', (name, { ffn, saved, shared }) => {
  let experiment: Experiment;
  beforeAll(async () => {
    experiment = await experimentOf(ffn);
    await train(experiment);
  });

  it('counts shared weights once, in the plan and in training', async () => {
    const [dense] = (await planExperiment(await experimentOf('{ kind: dense }', [untrained]), plans)).stages;
    const [own] = (await planExperiment(experiment, plans)).stages;
    expect((dense?.parameters.all as number) - (own?.parameters.all as number)).toBe(saved);
    expect(own?.parameters.optimizerBytes).toBe(8 * (own?.parameters.trained as number));
  });

  it('all shared weights move, and are read back once', async () => {
    const before = await initialOf(experiment);
    const { parameters } = await readTrained(experiment.run.dir);
    expect([...parameters.keys()].sort()).toEqual([...before.keys()].sort());
    const own = [...parameters.keys()].filter(isFeedForward);
    expect(own.sort()).toEqual(
      shared.flatMap((at) => ['down', 'gate', 'up'].map((part) => `ffn.shared.${at}.${part}_proj.weight`)),
    );
    for (const parameter of own)
      expect(parameters.get(parameter)?.data).not.toEqual(before.get(parameter)?.data);
    const record = await runEvaluation(experiment, { watch: silentWatch });
    expect(record.n).toBeGreaterThan(0);
  });

  it('resumes to the same bits', async () => {
    const parts = await experimentOf(ffn);
    let asked = 0;
    const stopped = await train(parts, { resume: true, interrupted: () => ++asked === 2 });
    expect(stopped).toMatchObject({ finished: false, steps: 2 });
    await train(parts, { resume: true });
    const bytes = ({ run }: Experiment, file: string) => readFileSync(join(run.dir, 'model', file));
    for (const file of ['model.safetensors', 'streams.safetensors'])
      expect(bytes(parts, file).equals(bytes(experiment, file)), file).toBe(true);
  });

  it('is exported whole; and for transformers where that has a place for it', async () => {
    await exportAudioLlm(experiment.run.dir, folderOf('whole'), { lora: 'merge', half: false });
    await exportOnnx(experiment.run.dir, folderOf('onnx'), { promptTokens: 40, answerTokens: 8 });
    const folder = folderOf('transformers');
    const exported = exportLlm(experiment.run.dir, folder, { lora: 'merge', half: false });
    if (name !== 'average') {
      await expect(exported).rejects.toThrow(
        /feed-forward of (144|192) units, the LLM's own have 48.*no name for/s,
      );
      return;
    }
    await exported;
    const { parameters } = await readTrained(experiment.run.dir);
    const written = (await loadLlm(folder)).parameters;
    for (const [at, group] of [0, 1, 1, 0].entries())
      for (const part of ['gate', 'up', 'down'])
        expect(written.get(`model.layers.${at}.mlp.${part}_proj.weight`)?.data).toEqual(
          parameters.get(`ffn.shared.${group}.${part}_proj.weight`)?.data,
        );
  });
});

it('adds up over micro-batches, in float16, and with activations computed again', async () => {
  const { ffn } = kinds['wide, dense and none'];
  const over = ['train.batchSize=2', 'train.accumulate=2', 'train.precision=float16'];
  const plain = await experimentOf(ffn, over);
  const again = await experimentOf(ffn, [...over, 'train.recompute={ kind: all }']);
  for (const experiment of [plain, again]) await train(experiment);
  const losses = ({ run }: Experiment) =>
    readFileSync(join(run.dir, 'metrics.jsonl'), 'utf8')
      .trim()
      .split('\n')
      .map((line): number => JSON.parse(line).loss);
  expect(losses(again)).toEqual(losses(plain));
  for (const loss of losses(plain)) expect(Number.isFinite(loss)).toBe(true);
});

it('a model without a layer is not for transformers', async () => {
  const experiment = await experimentOf('{ kind: none, layers: "2..2" }', [untrained]);
  await train(experiment);
  await expect(
    exportLlm(experiment.run.dir, folderOf('transformers'), { lora: 'merge', half: false }),
  ).rejects.toThrow(/layer 2 has no feed-forward \(llm.ffn\)/);
  const card = readFileSync(join(experiment.run.dir, 'model', 'README.md'), 'utf8');
  expect(card).toContain('its feed-forward is left out in the layers 2 ');
});

describe('a configuration that cannot be', () => {
  it.each([
    [
      '{ kind: wide, layers: "0..2", groups: 2 }',
      /llm\.ffn\.groups: 3 layers \/ 2 groups = 1\.5: no whole number/,
    ],
    [
      '{ kind: wide, width: all, from: average }',
      /llm\.ffn\.from: average: the LLM's own layers have 48 units, the shared one has 192/,
    ],
    ['{ kind: wide, groups: 2, from: 1 }', /from: 1: one layer cannot be the beginning of 2 groups/],
    ['{ kind: wide, layers: "1..2", from: 3 }', /from: 3: not among the layers that share it, 1 to 2/],
    [
      '[{ kind: wide, layers: "0..0", width: all }, { kind: wide, layers: "1..1", width: all }, { kind: none, layers: "2..3" }]',
      /llm\.ffn\[1\]\.width: all: llm\.ffn\[0\] takes the units of the 2 dropped layers already/,
    ],
    ['[{ kind: wide }, { kind: none, layers: "3..3" }]', /layer 3 is in llm\.ffn\[0\] already/],
  ] as const)('%s', async (ffn, message) => {
    const experiment = await experimentOf(ffn);
    await expect(planExperiment(experiment, plans)).rejects.toThrow(message);
  });

  it.each([
    ['{ kind: wide }', 'is a shared one'],
    ['{ kind: none }', 'is dropped'],
  ])('adapters on the projections of %s', async (ffn, reason) => {
    const experiment = await experimentOf(ffn, ['llm.lora={ rank: 2, alpha: 4, targets: ["*.mlp.*"] }']);
    await expect(planExperiment(experiment, plans)).rejects.toThrow(
      `they choose model.layers.0.mlp.gate_proj, whose feed-forward layer ${reason}`,
    );
  });

  it('shared weights from the seed are not trained; those from the LLM may stay', async () => {
    const stages = 'train.stages=[{ name: all, trainable: ["connector.*"], steps: 1, learningRate: 0.001 }]';
    await expect(planExperiment(await experimentOf('{ kind: wide }', [stages]), plans)).rejects.toThrow(
      /no stage trains "ffn\.\*"/,
    );
    await planExperiment(await experimentOf('{ kind: wide, from: average }', [stages]), plans);
  });
});
