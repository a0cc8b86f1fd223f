/** Questions that are too long are named, or left out, counted and listed; nothing is cut. */
import { existsSync } from 'node:fs';
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { loadExperiment } from '../../src/config/load.ts';
import { type Example, readManifest, writeManifest } from '../../src/data/manifest.ts';
import { planExperiment } from '../../src/train/plan.ts';
import { runTraining } from '../../src/train/run.ts';
import { showExamples } from '../../src/train/showExamples.ts';
import { makeWorld, noProgress, silentWatch, type World } from './fixture.ts';

let world: World;
let longest: Example;
const notes: string[] = [];
beforeAll(async () => {
  world = await makeWorld();
  for (const split of ['train', 'test']) {
    const path = join(world.dataset, `${split}.jsonl`);
    const [first, ...rest] = await readManifest(path);
    longest = { ...(first as Example), id: `long-${split}`, question: 'Is it a bell? '.repeat(12).trim() };
    await writeManifest(path, [longest, ...rest]);
  }
});
afterAll(() => world.remove());

const load = async (name: string, overrides: string[]) =>
  (
    await loadExperiment(world.config, [
      `run.dir=${join(world.folder, name)}`,
      'train.maxSteps=1',
      ...overrides,
    ])
  ).experiment;
async function train(name: string, overrides: string[], evaluate = false) {
  const watch = { note: (text: string) => notes.push(text), progress: noProgress };
  return runTraining(await load(name, overrides), { watch, resume: false, evaluate });
}

/** Text tokens of the long question, as `palkit data show` has them: its answer is as long as the other options. */
async function lengthOfLong(split: 'train' | 'test' = 'train'): Promise<number> {
  const { examples } = await showExamples(await load('show', []), {
    split,
    count: 1,
    watch: silentWatch,
  });
  return examples[0]?.tokens.length as number;
}

describe('a question longer than data.maxTextTokens', () => {
  it('fits to the token', async () => {
    const length = await lengthOfLong();
    const { finished } = await train('fits', [`data.maxTextTokens=${length}`]);
    expect(finished).toBe(true);
    expect(JSON.parse(await readFile(join(world.folder, 'fits', 'skipped.json'), 'utf8'))).toEqual([]);
  });

  it('is an error that names it, its length and the limit', async () => {
    const length = await lengthOfLong();
    const attempt = train('too long', [`data.maxTextTokens=${length - 1}`]);
    await expect(attempt).rejects.toThrow(
      `sample "long-train" has ${length} text tokens, and at most ${length - 1} are taken (data.maxTextTokens); 1 of `,
    );
    await expect(attempt).rejects.toThrow('data.onTooLong: skip');
  });

  it('is left out of training, evaluation and plan where that is asked for, counted and listed', async () => {
    const length = await lengthOfLong();
    const overrides = [`data.maxTextTokens=${length - 1}`, 'data.onTooLong=skip'];
    notes.length = 0;
    const { record } = await train('skipped', overrides, true);
    const reason = `${length} text tokens, and at most ${length - 1} are taken (data.maxTextTokens)`;
    expect(notes).toContain(`left out "long-train": ${reason}`);
    expect(notes).toContain('2 questions are left out; skipped.json lists them');
    const listed = JSON.parse(await readFile(join(world.folder, 'skipped', 'skipped.json'), 'utf8'));
    expect(listed).toEqual([
      { id: 'long-train', reason },
      { id: 'long-test', reason },
    ]);
    expect(record?.skipped).toEqual([{ id: 'long-test', reason }]);
    const plan = await planExperiment(await load('plan', overrides), { rates: null });
    expect(plan.skipped).toEqual([{ id: 'long-train', reason }]);
  });

  it('of the evaluation stops the run before anything is trained', async () => {
    const path = join(world.dataset, 'train.jsonl');
    const examples = await readManifest(path);
    await writeManifest(path, examples.slice(1));
    const length = await lengthOfLong('test');
    const attempt = train('evaluation', [`data.maxTextTokens=${length - 1}`], true);
    await expect(attempt).rejects.toThrow('sample "long-test" has ');
    expect(existsSync(join(world.folder, 'evaluation', 'metrics.jsonl'))).toBe(false);
    await writeManifest(path, examples);
  });

  it('leaves nothing to train on when every one is', async () => {
    const attempt = train('none', ['data.maxTextTokens=3', 'data.onTooLong=skip']);
    await expect(attempt).rejects.toThrow('every training example is too long');
  });
});

describe('the positions of the model', () => {
  it('hold text and audio together', async () => {
    const question = 'Is it a bell? '.repeat(45).trim();
    const path = join(world.dataset, 'train.jsonl');
    const examples = await readManifest(path);
    await writeManifest(path, [...examples, { ...longest, id: 'longer', question }]);
    // The tiny model has 256 positions; the audio takes 30 of them.
    await expect(train('positions', [])).rejects.toThrow(
      /sample "longer" has \d+ text tokens, and at most 226 are taken \(the model's positions, less those of the audio\)/,
    );
    await writeManifest(path, examples);
  });

  it('must hold what evaluation may generate, which is told before anything is trained', async () => {
    const path = join(world.dataset, 'test.jsonl');
    const examples = await readManifest(path);
    const open = { ...longest, id: 'open', kind: 'open' as const, options: undefined };
    await writeManifest(path, [...examples, open]);
    const asked = async (name: string, maxNewTokens: number) =>
      train(name, [`eval.open.maxNewTokens=${maxNewTokens}`], true);
    const attempt = asked('no room', 200);
    await expect(attempt).rejects.toThrow(
      /sample "open" has \d+ text tokens and an answer of up to 200 \(eval.open.maxNewTokens\), and at most 226 are taken/,
    );
    expect(existsSync(join(world.folder, 'no room', 'metrics.jsonl'))).toBe(false);
    await writeManifest(path, examples);
  });
});
