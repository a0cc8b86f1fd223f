/** Runs side by side on the command line: two that differ in their feed-forward, and the first with another seed. */
import { execFile } from 'node:child_process';
import { existsSync, readFileSync } from 'node:fs';
import { cp } from 'node:fs/promises';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { type Comparison, shareOf } from '../../src/cli/similarity/compare.ts';
import { formatComparison } from '../../src/cli/similarity/table.ts';
import { loadExperiment } from '../../src/config/load.ts';
import { readSafetensors, writeSafetensors } from '../../src/llm/safetensors.ts';
import type { FloatTensor } from '../../src/llm/weights.ts';
import { float32 } from '../../src/tensor/tensor.ts';
import { runTraining } from '../../src/train/run.ts';
import { makeWorld, silentWatch, type World } from '../train/fixture.ts';

let world: World;
const folder = (name: string) => join(world.folder, name);

async function train(name: string, ...over: string[]): Promise<void> {
  const stage = '{ name: all, trainable: ["*"], steps: 3, learningRate: 0.003 }';
  const overrides = [`run.dir=${folder(name)}`, `train.stages=[${stage}]`, ...over];
  const { experiment } = await loadExperiment(world.config, overrides);
  await runTraining(experiment, { watch: silentWatch, resume: false, evaluate: false });
}

beforeAll(async () => {
  world = await makeWorld();
  await train('dense');
  await train('again', 'seed=6');
  await train('wide', 'llm.ffn={ kind: wide, width: all }');
});
afterAll(() => world.remove());

const palkit = (...given: string[]) =>
  promisify(execFile)(process.execPath, ['--import', 'tsx', 'src/cli/main.ts', 'similarity', ...given]).then(
    ({ stdout }) => ({ code: 0, stdout, stderr: '' }),
    (error: { code: number; stdout: string; stderr: string }) => error,
  );

describe('palkit similarity', () => {
  it('compares runs layer by layer, with baselines, and draws their layers', async () => {
    const out = folder('compared');
    const runs = ['dense', 'wide'].map(folder) as [string, string];
    const baseline = ['dense', 'again'].flatMap((name) => ['--baseline', folder(name)]);
    const { code, stdout, stderr } = await palkit(
      ...runs,
      ...baseline,
      '--limit',
      '20',
      '--out',
      out,
      '--json',
    );
    expect(code, stderr).toBe(0);
    expect(stdout).toBe(readFileSync(join(out, 'similarity.json'), 'utf8'));
    const told = JSON.parse(stdout) as Comparison;
    expect(told).toMatchObject({ dataset: 'sound-world', questions: 20, neighbours: 1, leftOut: [] });
    expect(told.runs.map(({ run }) => run)).toEqual(runs);
    for (const { selfSimilarity } of told.runs) {
      expect(selfSimilarity).toHaveLength(4);
      for (const [layer, row] of selfSimilarity.entries()) {
        expect(row).toHaveLength(4);
        expect(row[layer]).toBeCloseTo(1, 9);
        for (const [other, cka] of row.entries())
          expect(cka).toBeCloseTo(selfSimilarity[other]?.[layer] ?? 0, 12);
      }
    }
    const [pair] = told.pairs;
    expect(told.pairs).toHaveLength(1);
    for (const [layer, { cka, lns }] of (pair?.layers ?? []).entries()) {
      expect(cka).toBeGreaterThan(0);
      expect(cka).toBeLessThan(1);
      expect(lns).toBeGreaterThanOrEqual(0);
      const ceiling = told.baseline?.layers[layer];
      expect(pair?.normalised?.[layer]?.cka).toBeCloseTo(cka / (ceiling?.cka ?? 0), 12);
      expect(pair?.normalised?.[layer]?.lns).toBeCloseTo(lns / (ceiling?.lns ?? 0), 12);
    }
    const svg = readFileSync(join(out, 'similarity.svg'), 'utf8');
    expect(svg).toMatch(/^<svg /);
    // A rectangle a pair of layers a run.
    expect(svg.match(/<path aria-label="layer/g)).toHaveLength(2 * 16);
  });

  it('a model is like itself, wherever it is read from; three are three pairs', async () => {
    const [dense, wide] = ['dense', 'wide'].map(folder) as [string, string];
    const out = folder('three\u001b[2J');
    const { code, stdout, stderr } = await palkit(
      dense,
      wide,
      join(dense, 'model'),
      '--limit',
      '20',
      '--out',
      out,
    );
    expect(code, stderr).toBe(0);
    const { pairs } = JSON.parse(readFileSync(join(out, 'similarity.json'), 'utf8')) as Comparison;
    expect(pairs).toHaveLength(3);
    const itself = pairs.find(({ runs }) => !runs.includes(wide));
    expect(itself?.layers).toHaveLength(4);
    for (const { cka, lns } of itself?.layers ?? []) {
      expect(cka).toBeCloseTo(1, 9);
      expect(lns).toBe(1);
    }
    expect(stdout).toContain('20 questions of sound-world, test split; 1 neighbours each');
    expect(stdout).toMatch(/mean {2,}1\.000 {2,}1\.000/);
    expect(stdout).toContain(`The picture is ${join(folder('three'), 'similarity.svg')}\n`);
  });

  it.each([
    [['dense'], /OTHER is missing/],
    [['dense', 'wide', '--baseline', 'dense'], /--baseline is given once; two runs/],
    [
      ['dense', 'wide', '--baseline', 'dense', '--baseline', 'dense'],
      /--baseline dense is given twice; two runs that differ/,
    ],
    [['dense', 'wide', '--limit', '2'], /--limit 2: expected a whole number from 3 up/],
  ])('%j', async (given, message) => {
    const { code, stderr } = await palkit(...given);
    expect(code).toBe(2);
    expect(stderr).toMatch(message);
  });

  it('a model that has diverged is told by name', async () => {
    const broken = folder('diverged');
    await cp(join(folder('dense'), 'model'), broken, { recursive: true });
    const weights = await readSafetensors(join(broken, 'model.safetensors'));
    const name = 'model.layers.2.mlp.down_proj.weight';
    const { shape } = weights.get(name) as FloatTensor;
    const size = (shape[0] as number) * (shape[1] as number);
    weights.set(name, float32(shape, new Float32Array(size).fill(Number.NaN)));
    await writeSafetensors(join(broken, 'model.safetensors'), weights, { format: 'pt' });
    const { code, stderr } = await palkit(folder('dense'), broken, '--out', folder('none'));
    expect(code).toBe(1);
    expect(stderr).toMatch(
      /diverged: after layer 2 the hidden states of question ".+" are no numbers \(NaN\)/,
    );
    expect(existsSync(folder('none'))).toBe(false);
  });

  it('tells no share of scores that are nothing', () => {
    expect(shareOf(0.2, 0.5)).toBeCloseTo(0.4, 12);
    const scores = { cka: 0.5, lns: 0 };
    const shares = { cka: shareOf(scores.cka, 0.5), lns: shareOf(scores.lns, 0) };
    const pair = { runs: ['a', 'b'] as const, layers: [scores], normalised: [shares] };
    const about = { dataset: 'd', split: 'test', questions: 3, neighbours: 1, leftOut: [], runs: [] };
    const table = formatComparison({ ...about, pairs: [pair], baseline: null });
    expect(table).toMatch(/^mean +0\.500 +0\.000 +100\.0 % +-$/m);
  });

  it('a folder without a model', async () => {
    const { code, stderr } = await palkit(folder('dense'), folder('data'), '--out', folder('none'));
    expect(code).toBe(1);
    expect(stderr).toContain(`${folder('data')}: neither a trained model's folder nor a run's`);
    expect(existsSync(folder('none'))).toBe(false);
  });
});
