/** Language models on the command line: the table, one document of JSON, and exit codes. */
import { execFile, spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout } from 'node:timers/promises';
import { promisify } from 'node:util';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import type { LmResult } from '../../src/train/pretrain.ts';
import { makeTextWorld, type TextWorld } from '../train/textWorld.ts';

let world: TextWorld;
beforeAll(async () => {
  world = await makeTextWorld();
});
afterAll(() => world.remove());

const folder = (name: string) => join(world.folder, name);
const node = ['--import', 'tsx', 'src/cli/main.ts', 'lm'];
const palkit = (...given: string[]) =>
  promisify(execFile)(process.execPath, [...node, ...given]).then(
    ({ stdout, stderr }) => ({ code: 0, stdout, stderr }),
    (error: { code: number; stdout: string; stderr: string }) => error,
  );

describe('palkit lm', () => {
  it('prints what it measured and where everything is', async () => {
    const dir = folder('told');
    // What clears the screen is a name like any other, but none to print.
    const { code, stdout, stderr } = await palkit(world.config, '--set', `run.dir="${dir}\\e[2J"`);
    expect(code, stderr).toBe(0);
    const { measured, flopsPerToken, parameters } = JSON.parse(
      readFileSync(join(`${dir}\u001b[2J`, 'result.json'), 'utf8'),
    ) as LmResult;
    const million = (count: number) => (count / 1e6).toFixed(2);
    expect(stdout).toContain(
      `small: ${million(parameters)} M parameters; ${million(flopsPerToken.forward)} MFLOP a token forward, ${million(flopsPerToken.training)} in training`,
    );
    expect(stdout).toContain('3 steps, 0.00 M tokens');
    expect(stdout).toMatch(/model +perplexity +nats a token +bits a byte +tokens/);
    expect(measured.map(({ model }) => model)).toEqual(['initial', 'trained']);
    for (const { model, perplexity, nll, bitsPerByte, tokens } of measured)
      expect(stdout.replaceAll(/ +/g, ' ')).toContain(
        `${model} ${perplexity.toFixed(2)} ${nll.toFixed(4)} ${bitsPerByte.toFixed(4)} ${tokens}`,
      );
    expect(stdout).toContain(`Everything is in ${dir}\n`);
    // What it does goes to standard error.
    expect(stderr).toContain(`reading ${world.text}`);
    expect(stderr).toMatch(/text: \d+ files, .* to train on; \d+ files, .* held out\. Left out: 0 copies/);
  });

  it('--json: one document, that of result.json', async () => {
    const out = folder('json');
    const { code, stdout, stderr } = await palkit(world.config, '--set', `run.dir=${out}`, '--json');
    expect(code, stderr).toBe(0);
    expect(JSON.parse(stdout)).toEqual(JSON.parse(readFileSync(join(out, 'result.json'), 'utf8')));
  });

  it('stops on Ctrl-C and keeps what it has; another length is another run', async () => {
    const out = folder('stopped');
    const steps = (count: number) => [
      world.config,
      '--set',
      `run.dir=${out}`,
      '--set',
      `train.steps=${count}`,
    ];
    const child = spawn(process.execPath, [...node, ...steps(5000)], { stdio: ['ignore', 'ignore', 'pipe'] });
    const ended = once(child, 'exit');
    let told = '';
    child.stderr.on('data', (text) => {
      told += text;
    });
    const metrics = join(out, 'metrics.jsonl');
    const lines = () => (existsSync(metrics) ? readFileSync(metrics, 'utf8').split('\n').length - 1 : 0);
    while (lines() < 3 && child.exitCode === null) await setTimeout(20);
    child.kill('SIGINT');
    expect(await ended).toEqual([130, null]);
    expect(told).toContain('stopped and saved; the same command goes on from there');
    expect(existsSync(join(out, 'result.json'))).toBe(false);
    const done = lines();
    // Another length is another schedule of learning rates.
    const { code, stderr } = await palkit(...steps(done + 1));
    expect([code, stderr]).toEqual([
      1,
      expect.stringContaining('of another configuration, text or pretrained model'),
    ]);
    expect((await palkit(...steps(2), '--resume', 'never')).code).toBe(0);
    expect(lines()).toBe(2);
  });

  it.each([
    [['--set', 'train.flops=1'], 2, 'train.steps: the length of training is either steps or flops'],
    [['--set', 'corpus.folders=[nowhere]'], 2, 'corpus.folders: nowhere: is not there'],
    [['--resume', 'always'], 2, '--resume always: expected auto or never'],
  ])('%j', async (given, expected, message) => {
    const { code, stdout, stderr } = await palkit(
      world.config,
      '--set',
      `run.dir=${folder('bad')}`,
      '--json',
      ...given,
    );
    expect(code).toBe(expected);
    expect(stderr).toContain(message);
    expect(JSON.parse(stdout)).toEqual({
      error: { name: expect.any(String), message: expect.stringContaining(message) },
    });
  });
});
