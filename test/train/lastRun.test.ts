import { spawn } from 'node:child_process';
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { loadExperiment } from '../../src/config/load.ts';
import { EngineError } from '../../src/engine/engine.ts';
import { withCheckpoint } from '../../src/train/failure.ts';
import { markRunning } from '../../src/train/lastRun.ts';
import { runTraining } from '../../src/train/run.ts';
import { makeWorld, noProgress, trainingChild, type World } from './fixture.ts';

let world: World;
const folder = mkdtempSync(join(tmpdir(), 'palkit-mark-'));
beforeAll(async () => {
  world = await makeWorld();
});
afterAll(async () => {
  await world.remove();
  rmSync(folder, { recursive: true });
});

const mark = join(folder, 'running.json');

async function notesOf(): Promise<string[]> {
  const notes: string[] = [];
  const unmark = await markRunning(folder, (text) => notes.push(text));
  unmark();
  expect(existsSync(mark)).toBe(false);
  return notes;
}

describe('the mark of a run', () => {
  it('that ended in order leaves nothing', async () => {
    expect(await notesOf()).toEqual([]);
    expect(await notesOf()).toEqual([]);
  });

  it('that was killed is told of at the next start, with what may have ended it', async () => {
    const child = spawn(process.execPath, ['-e', '']);
    await new Promise((resolve) => child.on('close', resolve));
    writeFileSync(mark, JSON.stringify({ pid: child.pid, started: '2026-01-02T03:04:05.000Z' }));
    const [note] = await notesOf();
    expect(note).toContain(
      `the run of 2026-01-02T03:04:05.000Z in ${folder} (process ${child.pid}) ended without a word`,
    );
    expect(note).toContain('want of memory (lower train.batchSize)');
  });

  it('of this very process, as in a container that was started again, is of one that died', async () => {
    writeFileSync(mark, JSON.stringify({ pid: process.pid, started: 'yesterday' }));
    expect((await notesOf())[0]).toContain('ended without a word');
  });

  it('of a process that is alive warns of two runs in one folder', async () => {
    writeFileSync(mark, JSON.stringify({ pid: process.ppid, started: 'yesterday' }));
    expect((await notesOf())[0]).toContain(`process ${process.ppid} has been at work in this folder`);
  });

  it('is told of once where the file is torn', async () => {
    writeFileSync(mark, '{"pid": 1');
    expect(await notesOf()).toEqual([]);
  });
});

it('a training run that is killed is told of when it is started again, and goes on from its checkpoint', async () => {
  const dir = join(world.folder, 'killed');
  const command = [...trainingChild, world.config, `run.dir=${dir}`];
  const child = spawn(process.execPath, command, { stdio: 'ignore' });
  const closed = new Promise((resolve) => child.on('close', resolve));
  const steps = () => {
    const path = join(dir, 'metrics.jsonl');
    return existsSync(path) ? readFileSync(path, 'utf8').split('\n').length - 1 : 0;
  };
  while (steps() < 4 && child.exitCode === null) await new Promise((resolve) => setTimeout(resolve, 5));
  child.kill('SIGKILL');
  await closed;
  const { experiment } = await loadExperiment(world.config, [`run.dir=${dir}`]);
  const notes: string[] = [];
  const { finished } = await runTraining(experiment, {
    watch: {
      note: (text) => notes.push(text),
      progress: noProgress,
    },
    resume: true,
    evaluate: false,
  });
  expect(finished).toBe(true);
  expect(notes[0]).toContain('ended without a word: it was killed');
  expect(notes.some((note) => note.startsWith('resuming after step'))).toBe(true);
  expect(existsSync(join(dir, 'running.json'))).toBe(false);
});

describe("the host's memory that is full", () => {
  const checkpoints = () => join(world.folder, 'killed/checkpoints');

  it('is told as such, with the checkpoint', async () => {
    const size = 2 ** 40;
    let thrown: unknown;
    try {
      new ArrayBuffer(size);
    } catch (error) {
      thrown = error;
    }
    const failure = await withCheckpoint(thrown, checkpoints(), true);
    expect(failure).toBeInstanceOf(EngineError);
    expect((failure as EngineError).message).toMatch(
      /^out of memory; lower train.batchSize .*\nArray buffer allocation failed\nThe newest whole checkpoint is \S+step-000018/,
    );
  });

  it('names the newest checkpoint even where none can be read', async () => {
    const broken = join(folder, 'checkpoints');
    mkdirSync(join(broken, 'step-000007'), { recursive: true });
    const failure = await withCheckpoint(new EngineError('out of memory'), broken, true);
    expect((failure as EngineError).message).toContain(
      'step-000007, which could not be read now; run the same command',
    );
  });

  it('advises with the fields of the configuration at hand', async () => {
    const none = join(folder, 'none');
    const fields = { smaller: 'train.sequenceLength', checkpoints: 'train.checkpointEvery' };
    const thrown = new RangeError('Array buffer allocation failed');
    const { message } = (await withCheckpoint(thrown, none, true, fields)) as EngineError;
    expect(message).toContain('out of memory; lower train.sequenceLength, or give the process more');
    expect(message).toContain('There is no checkpoint yet (train.checkpointEvery)');
  });

  it('leaves other errors as they are', async () => {
    const error = new RangeError('Invalid array length');
    expect(await withCheckpoint(error, checkpoints(), true)).toBe(error);
  });
});
