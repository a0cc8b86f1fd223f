/** What goes wrong in practice must name itself, and lose nothing. */
import { execFileSync, spawnSync } from 'node:child_process';
import { existsSync, mkdtempSync, readdirSync, readFileSync } from 'node:fs';
import { copyFile, mkdir, readFile, rm, truncate, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { parse, stringify } from 'yaml';
import { loadExperiment } from '../../src/config/load.ts';
import { readManifest } from '../../src/data/manifest.ts';
import { float32 } from '../../src/tensor/tensor.ts';
import { listCheckpoints, saveCheckpoint } from '../../src/train/checkpoint.ts';
import { runTraining } from '../../src/train/run.ts';
import { makeWorld, noProgress, type World } from './fixture.ts';

let world: World;
const notes: string[] = [];

beforeAll(async () => {
  world = await makeWorld();
});
afterAll(() => world.remove());

async function train(overrides: string[], evaluate = false) {
  const { experiment } = await loadExperiment(world.config, overrides);
  return runTraining(experiment, {
    watch: {
      note: (text) => notes.push(text),
      progress: noProgress,
    },
    resume: true,
    evaluate,
  });
}

/** A copy of the dataset in which one clip of the training split is broken. */
async function brokenDataset(name: string, damage: (path: string) => Promise<void>) {
  const folder = join(world.folder, name);
  execFileSync('cp', ['-r', world.dataset, folder]);
  const [example] = await readManifest(join(folder, 'train.jsonl'));
  await damage(join(folder, example?.audio ?? ''));
  return { folder, id: example?.id as string, audio: example?.audio as string };
}

describe('a clip that cannot be read', () => {
  const damages: Record<string, [damage: (path: string) => Promise<void>, message: string]> = {
    'is missing': [(path) => rm(path), 'there is no such file'],
    'is cut off': [(path) => truncate(path, 5000), 'cut off: the header promises'],
    'is something else': [(path) => writeFile(path, 'not audio'), 'not a WAV file'],
  };
  for (const [what, [damage, message]] of Object.entries(damages)) {
    it(`${what}: names the sample and the file; skipping counts and lists it`, async () => {
      const { folder, id, audio } = await brokenDataset(`broken ${what}`, damage);
      const run = `run.dir=${join(world.folder, `run ${what}`)}`;
      const attempt = train([`data.dir=${folder}`, run, 'train.maxSteps=1']);
      await expect(attempt).rejects.toThrow(`sample "${id}"`);
      await expect(attempt).rejects.toThrow(audio);
      await expect(attempt).rejects.toThrow(message);
      notes.length = 0;
      const options = [
        `data.dir=${folder}`,
        run,
        'train.maxSteps=1',
        'data.onBadSample=skip',
        'eval.split=train',
      ];
      const { record, finished } = await train(options, true);
      expect(finished).toBe(true);
      expect(notes.some((note) => note.includes(id) && note.includes(message))).toBe(true);
      expect(record?.skipped.map((skipped) => skipped.id)).toContain(id);
      expect(record?.skipped.every((skipped) => skipped.reason.includes(message))).toBe(true);
    });
  }
});

describe('a checkpoint of another architecture', () => {
  it('lists every key that differs, and is left as it is', async () => {
    const run = `run.dir=${join(world.folder, 'other architecture')}`;
    await train([run, 'train.maxSteps=2']);
    const checkpoints = join(world.folder, 'other architecture', 'checkpoints');
    const before = await listCheckpoints(checkpoints);
    const attempt = train([run, 'streams[0].connector.hidden=24', 'streams[0].integration.startLayer=2']);
    await expect(attempt).rejects.toThrow('connector.timbre.in_proj.weight: [16, 48] instead of [24, 48]');
    await expect(attempt).rejects.toThrow('connector.timbre.layers.1.out_proj.weight');
    await expect(attempt).rejects.toThrow('--resume never');
    expect(await listCheckpoints(checkpoints)).toEqual(before);
  });

  it('of the same architecture but another configuration is refused too', async () => {
    const run = `run.dir=${join(world.folder, 'other configuration')}`;
    await train([run, 'train.maxSteps=2']);
    await expect(train([run, 'train.clipNorm=0.5'])).rejects.toThrow(
      'the checkpoint is of another configuration',
    );
  });
});

describe('a model file that is cut off', () => {
  it('names the file and the tensor', async () => {
    const { llm } = parse(await readFile(world.config, 'utf8')) as { llm: { from: string } };
    const copy = join(world.folder, 'cut llm');
    await mkdir(copy);
    for (const name of readdirSync(llm.from)) await copyFile(join(llm.from, name), join(copy, name));
    await truncate(join(copy, 'model.safetensors'), 20_000);
    const attempt = train([`llm.from=${copy}`, `run.dir=${join(world.folder, 'cut run')}`]);
    await expect(attempt).rejects.toThrow(join(copy, 'model.safetensors'));
    await expect(attempt).rejects.toThrow(/model\.|bytes/);
  });
});

describe('a configuration with a mistyped field', () => {
  it('names the field, the line and the nearest valid name, with exit code 2', async () => {
    const path = join(world.folder, 'mistyped.yaml');
    const text = (await readFile(world.config, 'utf8')).replace('startLayer', 'startLayr');
    await writeFile(path, text);
    const line = text.split('\n').findIndex((one) => one.includes('startLayr')) + 1;
    const child = spawnSync(
      process.execPath,
      ['node_modules/tsx/dist/cli.mjs', 'src/cli/main.ts', 'train', path],
      { encoding: 'utf8' },
    );
    expect(child.status).toBe(2);
    expect(child.stderr).toContain(`mistyped.yaml:${line}:`);
    expect(child.stderr).toContain('startLayr');
    expect(child.stderr).toContain('did you mean "startLayer"?');
    expect(child.stdout).toBe('');
  });

  it('a pattern that matches no parameter, and a layer that is not there, are named as well', async () => {
    const run = `run.dir=${join(world.folder, 'patterns')}`;
    await expect(train([run, 'train.stages[0].trainable=["conector.*"]'])).rejects.toThrow(
      'train.stages "connector".trainable: "conector.*" matches no parameter',
    );
    await expect(train([run, 'streams[0].integration.startLayer=7'])).rejects.toThrow(
      'stream "timbre" asks for layer 7; the LLM has layers 0 to 3',
    );
    await expect(train([run, 'train.stages[0].data.categories=[wich]'])).rejects.toThrow(
      'no category "wich"',
    );
  });
});

describe('a full disk', () => {
  const small = mkdtempSync(join(tmpdir(), 'palkit-disk-'));
  const mounted = spawnSync('mount', ['-t', 'tmpfs', '-o', 'size=300k', 'tmpfs', small]).status === 0;
  afterAll(async () => {
    if (mounted) spawnSync('umount', [small]);
    await rm(small, { recursive: true, force: true });
  });
  const progress = {
    version: 1 as const,
    stage: 0,
    stageStep: 1,
    drawn: 1,
    updates: 1,
    tokensSeen: 1,
    seed: 1,
    configHash: 'a',
    frozenHash: 'b',
  };
  const checkpoint = (step: number, size: number) => ({
    progress: { ...progress, step },
    parameters: new Map([['w', float32([size], new Float32Array(size))]]),
    moments: new Map(),
  });

  it.skipIf(!mounted)(
    `while checkpointing names the newest whole checkpoint, and leaves no part of one${mounted ? '' : ' (skipped: it needs the right to mount a tmpfs)'}`,
    async () => {
      await saveCheckpoint(small, checkpoint(1, 20_000), 2);
      const attempt = saveCheckpoint(small, checkpoint(2, 100_000), 2);
      await expect(attempt).rejects.toThrow('the disk is full');
      await expect(attempt).rejects.toThrow('The newest whole one is step-000001');
      expect(readdirSync(small)).toEqual(['step-000001']);
      expect(existsSync(join(small, 'step-000001', 'MANIFEST.json'))).toBe(true);
    },
  );
});

describe('the run folder', () => {
  it('holds the resolved configuration, which trains the same again', async () => {
    const dir = join(world.folder, 'resolved');
    await train([`run.dir=${dir}`, 'train.maxSteps=2']);
    const { experiment } = await loadExperiment(join(dir, 'config.yaml'), []);
    expect(stringify(experiment)).toBe(
      stringify((await loadExperiment(world.config, [`run.dir=${dir}`, 'train.maxSteps=2'])).experiment),
    );
    const environment = JSON.parse(readFileSync(join(dir, 'environment.json'), 'utf8'));
    expect(environment).toMatchObject({ node: process.version, seed: 5 });
  });
});
