import { type ChildProcess, spawn, spawnSync } from 'node:child_process';
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { appendFile, readdir, readFile, rm, truncate } from 'node:fs/promises';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { makeWorld, trainingChild, type World } from './fixture.ts';

let world: World;
let uninterrupted: Outcome;

interface Outcome {
  readonly hash: string;
  readonly notes: string[];
}

beforeAll(async () => {
  world = await makeWorld();
  uninterrupted = await finish(start('whole'));
});
afterAll(() => world.remove());

const runFolder = (name: string) => join(world.folder, name);

function start(name: string): ChildProcess {
  const command = [...trainingChild, world.config, `run.dir=${runFolder(name)}`];
  return spawn(process.execPath, command, { stdio: ['ignore', 'pipe', 'pipe'] });
}

function finish(child: ChildProcess): Promise<Outcome> {
  return new Promise((resolve, reject) => {
    let [output, errors] = ['', ''];
    child.stdout?.on('data', (data) => {
      output += data;
    });
    child.stderr?.on('data', (data) => {
      errors += data;
    });
    child.on('close', (code) => (code === 0 ? resolve(JSON.parse(output)) : reject(new Error(errors))));
  });
}

/** Kills the process, without any chance to tidy up, as soon as the condition holds. */
async function killWhen(name: string, condition: () => boolean): Promise<void> {
  const child = start(name);
  const closed = new Promise<void>((resolve) => child.on('close', () => resolve()));
  while (!condition() && child.exitCode === null) await new Promise((resolve) => setImmediate(resolve));
  expect(child.exitCode).toBeNull();
  child.kill('SIGKILL');
  await closed;
}

function stepsLogged(name: string): number {
  const path = join(runFolder(name), 'metrics.jsonl');
  return existsSync(path) ? readFileSync(path, 'utf8').split('\n').length - 1 : 0;
}

function checkpointEntries(name: string): string[] {
  const path = join(runFolder(name), 'checkpoints');
  return existsSync(path) ? readdirSync(path) : [];
}

describe('a run that is killed and started again ends with the same weights, bit for bit', () => {
  const moments: Record<string, (name: string) => boolean> = {
    'in the first stage': (name) => stepsLogged(name) >= 3,
    'between the first checkpoint of a stage and the next': (name) => stepsLogged(name) >= 9,
    'in the last stage': (name) => stepsLogged(name) >= 15,
    'inside a checkpoint write': (name) =>
      checkpointEntries(name).some((entry) => entry.startsWith('step-000008.tmp-')),
  };
  for (const [when, condition] of Object.entries(moments)) {
    it(when, async () => {
      const name = when.replaceAll(' ', '-');
      await killWhen(name, () => condition(name));
      const { hash, notes } = await finish(start(name));
      expect(notes.some((note) => note.startsWith('resuming after step'))).toBe(true);
      expect(hash).toBe(uninterrupted.hash);
      const lines = readFileSync(join(runFolder(name), 'metrics.jsonl'), 'utf8')
        .trim()
        .split('\n');
      expect(lines.map((line) => JSON.parse(line).step)).toEqual(
        [...Array(18).keys()].map((step) => step + 1),
      );
      expect(checkpointEntries(name).filter((entry) => entry.includes('.tmp-'))).toEqual([]);
    });
  }

  it('twice in a row', async () => {
    await killWhen('twice', () => stepsLogged('twice') >= 4);
    await killWhen('twice', () => stepsLogged('twice') >= 13);
    expect((await finish(start('twice'))).hash).toBe(uninterrupted.hash);
  });

  it('with a damaged newest checkpoint it takes the one before, and says so', async () => {
    await killWhen('damaged', () => stepsLogged('damaged') >= 11);
    const folder = join(runFolder('damaged'), 'checkpoints');
    const newest = (await readdir(folder))
      .filter((entry) => /^step-\d+$/.test(entry))
      .sort()
      .at(-1) as string;
    await truncate(join(folder, newest, 'model.safetensors'), 100);
    const { hash, notes } = await finish(start('damaged'));
    expect(
      notes.some((note) => note.includes(newest) && note.includes('is not the file that was written')),
    ).toBe(true);
    expect(hash).toBe(uninterrupted.hash);
  });

  it('with no whole checkpoint it refuses and keeps its record, until it is told to start over', async () => {
    await killWhen('none whole', () => stepsLogged('none whole') >= 11);
    const folder = join(runFolder('none whole'), 'checkpoints');
    const names = checkpointEntries('none whole').filter((entry) => /^step-\d+$/.test(entry));
    expect(names.length).toBeGreaterThan(0);
    for (const name of names) await truncate(join(folder, name, 'model.safetensors'), 100);
    const log = join(runFolder('none whole'), 'metrics.jsonl');
    const before = await readFile(log, 'utf8');
    const message = await finish(start('none whole')).then(
      () => 'no error',
      (error: Error) => error.message,
    );
    expect(message).toContain(`${folder}: none of its checkpoints can be read`);
    for (const name of names)
      expect(message).toContain(
        `${join(folder, name, 'model.safetensors')} is not the file that was written`,
      );
    expect(message).toContain('--resume never');
    expect(await readFile(log, 'utf8')).toBe(before);

    const over = ['src/cli/main.ts', 'train', world.config, '--resume', 'never', '--no-eval'];
    const command = [...trainingChild.slice(0, -1), ...over, '--set', `run.dir=${runFolder('none whole')}`];
    const { status, stderr } = spawnSync(process.execPath, command, { encoding: 'utf8' });
    expect(status, stderr).toBe(0);
    expect(stepsLogged('none whole')).toBe(18);
    const { hash, notes } = await finish(start('none whole'));
    expect(notes).toContain('resuming after step 18');
    expect(hash).toBe(uninterrupted.hash);
  });

  it('the uninterrupted run logged every step with what scripts rely on', async () => {
    const lines = (await readFile(join(runFolder('whole'), 'metrics.jsonl'), 'utf8')).trim().split('\n');
    const steps = lines.map((line) => JSON.parse(line) as Record<string, unknown>);
    expect(steps).toHaveLength(18);
    for (const [index, step] of steps.entries()) {
      expect(step.step).toBe(index + 1);
      expect(step.stage).toBe(['connector', 'closed', 'all'][Math.floor(index / 6)]);
      expect(step.loss).toBeGreaterThan(0);
      expect(step.tokensPerSecond).toBeGreaterThan(0);
      expect(step.peakResidentMB).toBeGreaterThan(50);
    }
  });

  it('a torn last line in the log is dropped', async () => {
    await killWhen('torn', () => stepsLogged('torn') >= 7);
    await appendFile(join(runFolder('torn'), 'metrics.jsonl'), '{"step":8,"sta');
    expect((await finish(start('torn'))).hash).toBe(uninterrupted.hash);
    await rm(runFolder('torn'), { recursive: true });
  });
});
