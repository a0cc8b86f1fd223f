import { spawn } from 'node:child_process';
import { mkdtemp, readdir, readFile, rm } from 'node:fs/promises';
import { createRequire } from 'node:module';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { pathToFileURL } from 'node:url';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { buildSoundWorld, soundWorldSettings } from '../../src/data/soundWorld/build.ts';

const loader = pathToFileURL(createRequire(import.meta.url).resolve('tsx')).href;
const main = resolve('src/cli/main.ts');
const config = resolve('configs/attention-only.yaml');

let folder: string;
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'palkit-interrupt-'));
  const split = { rounds: 1, presencePerClass: 1, describe: 2 };
  const settings = soundWorldSettings.parse({ splits: { train: split, validation: split, test: split } });
  await buildSoundWorld(join(folder, 'data/sound-world'), settings, () => undefined);
});
afterAll(() => rm(folder, { recursive: true }));

test('an interrupt under --json saves, prints one document and ends with 130', async () => {
  const given = [
    '--import',
    loader,
    main,
    'train',
    config,
    '--json',
    '--set',
    'data.dir=data/sound-world',
    '--set',
    'train.batchSize=4',
  ];
  const child = spawn(process.execPath, given, { cwd: folder, stdio: ['ignore', 'pipe', 'pipe'] });
  const text = { stdout: '', stderr: '' };
  child.stdout.on('data', (chunk) => {
    text.stdout += chunk;
  });
  child.stderr.on('data', (chunk) => {
    text.stderr += chunk;
  });
  const ended = new Promise<number | null>((done) => child.on('close', done));
  const run = join(folder, 'runs/attention-only');
  while (child.exitCode === null) {
    if ((await readFile(join(run, 'metrics.jsonl'), 'utf8').catch(() => '')) !== '') break;
    await sleep(50);
  }
  child.kill('SIGINT');
  expect({ code: await ended, stderr: text.stderr }).toEqual({ code: 130, stderr: '' });
  const { finished, steps }: { finished: boolean; steps: number } = JSON.parse(text.stdout);
  expect(finished).toBe(false);
  expect(steps).toBeGreaterThan(0);
  expect(await readdir(join(run, 'checkpoints'))).toContainEqual(expect.stringContaining(String(steps)));
});
