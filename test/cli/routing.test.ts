/** How rows choose, on the command line: a run whose audio rows pass sparse layers, and one where none does. */
import { execFile } from 'node:child_process';
import { existsSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { cp, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import type { Fall, Routing } from '../../src/cli/routing/analyse.ts';
import type { StepMetrics } from '../../src/train/metrics.ts';
import { makeWorld, type World } from '../train/fixture.ts';

let world: World;
const folder = (name: string) => join(world.folder, name);

const run = promisify(execFile);
const palkit = (...given: string[]) =>
  run(process.execPath, ['--import', 'tsx', 'src/cli/main.ts', ...given], { maxBuffer: 2 ** 26 }).then(
    ({ stdout, stderr }) => ({ code: 0, stdout, stderr }),
    (error: { code: number; stdout: string; stderr: string }) => error,
  );

function train(name: string, ffn: string, ...set: string[]) {
  const stage = '{ name: all, trainable: ["*"], steps: 3, learningRate: 0.003 }';
  const all = [`run.dir=${folder(name)}`, `llm.ffn=${ffn}`, `train.stages=[${stage}]`, ...set];
  return palkit('train', world.config, '--no-eval', ...all.flatMap((one) => ['--set', one]));
}

const blocks = 'kind: sparse, blockSize: 6';
let told: Awaited<ReturnType<typeof train>>;
beforeAll(async () => {
  world = await makeWorld();
  told = await train(
    'prefix',
    `[{ ${blocks}, layers: "1..2", select: topk, active: 2 }, { ${blocks}, layers: "3..3", select: switch, capacityFactor: 0.5 }]`,
    'streams.0.connector={ kind: mlp, hidden: 16 }',
    'streams.0.integration={ mode: prefix, startLayer: 2 }',
  );
  await train('attention-only', '{ kind: moc, layers: "2..3", active: 9 }');
  await train('dense', '{ kind: dense }');
}, 120_000);
afterAll(() => world.remove());

const sum = (values: readonly number[]) => values.reduce((total, own) => total + own, 0);

describe('palkit train', () => {
  it('draws the curves of a run whose layers choose, and none of another', () => {
    expect(told.stderr).toContain(join(folder('prefix'), 'routing-curves.svg'));
    const svg = readFileSync(join(folder('prefix'), 'routing-curves.svg'), 'utf8');
    expect(svg).toContain('optimizer step');
    expect(svg).toContain('The same of audio rows');
    expect(existsSync(join(folder('attention-only'), 'routing-curves.svg'))).toBe(true);
    expect(existsSync(join(folder('dense'), 'routing-curves.svg'))).toBe(false);
  });
});

describe('palkit routing', () => {
  it('tells text and audio apart, and leaves numbers and pictures', async () => {
    const { code, stdout, stderr } = await palkit('routing', folder('prefix'), '--limit', '12', '--json');
    expect(code, stderr).toBe(0);
    const out = join(folder('prefix'), 'routing');
    const files = ['curves.svg', 'load.svg', 'overlap.svg', 'routing.html', 'routing.json', 'text-audio.svg'];
    expect(readdirSync(out).sort()).toEqual(files);
    expect(stdout).toBe(readFileSync(join(out, 'routing.json'), 'utf8'));
    const made = JSON.parse(stdout) as Routing;
    expect(made).toMatchObject({ experiment: 'small', split: 'test', questions: 12, leftOut: [] });
    expect(made.layers.map(({ layer, kind, blocks, active }) => [layer, kind, blocks, active])).toEqual([
      [1, 'topk', 8, 2],
      [2, 'topk', 8, 2],
      [3, 'switch', 8, 1],
    ]);
    for (const { layer, active, all, text, audio, textAudioOverlap, byCategory, ...own } of made.layers) {
      for (const { rows, load } of [all, text, ...(audio === null ? [] : [audio])])
        expect(sum(load)).toBe(rows * active);
      expect(own.deadBlocks).toBe(all.load.filter((load) => load === 0).length);
      expect(own.overflow > 0).toBe(layer === 3);
      const categories = Object.values(byCategory);
      expect(all.load.map((_, block) => sum(categories.map(({ load }) => load[block] as number)))).toEqual(
        all.load,
      );
      // The stream begins in layer 2.
      expect(audio === null).toBe(layer === 1);
      if (audio === null) continue;
      expect(all.load).toEqual(
        text.load.map((load, block) => load + ((audio as Fall).load[block] as number)),
      );
      expect(textAudioOverlap).toBeGreaterThan(0);
      expect(textAudioOverlap).toBeLessThan(1);
    }
    const { measured, shuffled, tooMany } = made.overlap;
    expect(tooMany).toBe(false);
    for (const [row, values] of measured.entries())
      for (const [column, value] of values.entries()) {
        expect(value).toBe(measured[column]?.[row]);
        expect(value as number).toBeGreaterThan(shuffled[row]?.[column] as number);
      }
    // One choice a row: the block determines itself.
    expect(measured[2]?.[2]).toBeCloseTo(1, 9);
  });

  it('gives the same numbers again, and others with another seed', async () => {
    const ask = async (...given: string[]) =>
      (
        await palkit(
          'routing',
          folder('prefix'),
          '--limit',
          '5',
          '--out',
          folder('again'),
          '--json',
          ...given,
        )
      ).stdout;
    const first = await ask();
    expect(await ask()).toBe(first);
    expect(await ask('--seed', '1')).not.toBe(first);
  });

  it('says that no audio row passes under attention-only integration; a model folder will do', async () => {
    const { code, stdout, stderr } = await palkit(
      'routing',
      join(folder('attention-only'), 'model'),
      '--limit',
      '6',
      '--out',
      folder('heard'),
    );
    expect(code, stderr).toBe(0);
    expect(stdout).toContain('No audio row passes these layers');
    expect(stdout).toMatch(/2 +moc, gate +48 +9 /);
    expect(readdirSync(folder('heard')).sort()).toEqual([
      'load.svg',
      'overlap.svg',
      'routing.html',
      'routing.json',
    ]);
  });

  it('refuses what it cannot tell of, and leaves other folders alone', async () => {
    const dense = await palkit('routing', folder('dense'));
    expect(dense.code).toBe(1);
    expect(dense.stderr).toContain('no layer chooses among blocks');
    const absent = await palkit('routing', folder('absent'));
    expect(absent.stderr).toContain("neither a trained model's folder nor a run's");
    const limit = await palkit('routing', folder('prefix'), '--limit', '0');
    expect([limit.code, limit.stderr]).toEqual([2, '--limit 0: expected a whole number from 1 up\n']);
    const occupied = await palkit('routing', folder('prefix'), '--limit', '5', '--out', world.dataset);
    expect(occupied.code).toBe(1);
    expect(occupied.stderr).toContain('holds other files');
  });

  it('names the line of metrics that are none', async () => {
    const copy = folder('copy');
    await cp(folder('prefix'), copy, { recursive: true });
    await rm(join(copy, 'routing'), { recursive: true, force: true });
    const path = join(copy, 'metrics.jsonl');
    const [first = ''] = readFileSync(path, 'utf8').split('\n');
    const step: StepMetrics = JSON.parse(first);
    for (const [line, message] of [
      ['{', 'not JSON'],
      ['{"step":"2"}', 'not the metrics of a step'],
      [JSON.stringify(step), 'step 1 after step 1'],
    ] as const) {
      writeFileSync(path, `${first}\n${line}\n`);
      const { code, stderr } = await palkit('routing', copy, '--limit', '5');
      expect(code).toBe(1);
      expect(stderr).toContain(`${path}:2: ${message}`);
      expect(existsSync(join(copy, 'routing'))).toBe(false);
    }
  }, 60_000);
});
