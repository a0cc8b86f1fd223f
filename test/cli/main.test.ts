import { spawn } from 'node:child_process';
import { mkdir, mkdtemp, readdir, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';

const tsx = resolve('node_modules/.bin/tsx');
const main = resolve('src/cli/main.ts');

interface Outcome {
  readonly code: number | null;
  readonly stdout: string;
  readonly stderr: string;
}

let folder: string;
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'palkit-cli-'));
});
afterAll(() => rm(folder, { recursive: true }));

/** Runs palkit in an empty folder. */
function palkit(...given: string[]): Promise<Outcome> {
  return run(tsx, [main, ...given]);
}

function run(program: string, given: readonly string[]): Promise<Outcome> {
  const child = spawn(program, given, { cwd: folder, stdio: ['ignore', 'pipe', 'pipe'] });
  const text = { stdout: '', stderr: '' };
  child.stdout.on('data', (chunk) => {
    text.stdout += chunk;
  });
  child.stderr.on('data', (chunk) => {
    text.stderr += chunk;
  });
  return new Promise((done, fail) => {
    child.on('error', fail);
    child.on('close', (code) => done({ code, ...text }));
  });
}

describe('wrong usage ends with 2 and says what was meant', () => {
  test.each([
    ['no command', [], 'palkit: a command is missing'],
    ['an unknown command', ['doctr'], 'palkit: there is no command "doctr" (did you mean "doctor"?)'],
    ['a name that every object has', ['constructor'], 'palkit: there is no command "constructor"'],
    [
      'an unknown subcommand',
      ['data', 'biuld'],
      'palkit data: there is no command "biuld" (did you mean "build"?)',
    ],
    [
      'an unknown option',
      ['data', 'list', '--jsno'],
      'palkit data list: there is no option --jsno (did you mean "--json"?)',
    ],
    [
      'a negated option that cannot be',
      ['data', 'list', '--no-json'],
      'palkit data list: there is no option --no-json',
    ],
    ['an argument too many', ['data', 'list', 'all'], 'palkit data list: "all" is one argument too many'],
    ['a missing argument', ['data', 'build'], 'palkit data build: NAME is missing'],
    ['a missing option', ['export', 'runs/default', '--format', 'hf'], 'palkit export: --out is missing'],
    ['a missing value', ['data', 'build', 'sound-world', '--dir'], 'palkit data build: --dir needs a value'],
    ['a value too many', ['data', 'list', '--json=yes'], 'palkit data list: --json takes no value'],
    ['an option before the command', ['--json', 'data', 'list'], 'palkit: --json stands before the command'],
    [
      'an unknown dataset',
      ['data', 'build', 'sound-wrld'],
      'there is no dataset "sound-wrld" (did you mean "sound-world"?)',
    ],
    [
      'a wrong setting',
      ['data', 'build', 'sound-world', '--set', 'settings.sede=1'],
      '--set settings.sede=1  settings.sede: unknown field (did you mean "seed"?)',
    ],
    [
      'an engine for no experiment',
      ['doctor', '--engine', 'webgpu'],
      'palkit doctor: --engine, --stage, --set and --on-bad-sample belong to an experiment',
    ],
    [
      'an engine that is none',
      ['doctor', '--engine', 'webgp', 'configs/default.yaml'],
      '--engine takes one of cpu, webgpu, cuda, not "webgp" (did you mean "webgpu"?)',
    ],
    [
      'an engine that is none, for training',
      ['train', 'configs/default.yaml', '--engine', 'tfsj'],
      '--engine takes one of cpu, webgpu, cuda, tfjs, not "tfsj" (did you mean "tfjs"?)',
    ],
    [
      'steps that are no number',
      ['profile', 'configs/default.yaml', '--steps', 'few'],
      '--steps few: expected a whole number from 1 up',
    ],
    ['a misspelt config', ['train', 'configs/defualt.yaml'], 'configs/defualt.yaml: there is no such file'],
  ])('%s', async (_, given, expected) => {
    const { code, stdout, stderr } = await palkit(...given);
    const [first] = stderr.split('\n');
    expect(first).toContain(expected);
    expect(stderr).not.toContain('    at ');
    expect(code).toBe(2);
    expect(stdout === '').toBe(given[0] !== '--json');
  });
});

describe('with --json', () => {
  test('an error is the only document on standard output', async () => {
    const { code, stdout, stderr } = await palkit(
      'data',
      'build',
      'sound-world',
      '--json',
      '--set',
      'settings.seed=x',
    );
    expect(code).toBe(2);
    expect(JSON.parse(stdout)).toEqual({
      error: {
        name: 'ConfigError',
        message: '--set settings.seed=x  settings.seed: expected a whole number, found "x"',
      },
    });
    expect(stderr).toContain('settings.seed: expected a whole number');
  });

  test('the datasets', async () => {
    const { code, stdout, stderr } = await palkit('data', 'list', '--json');
    expect({ code, stderr }).toEqual({ code: 0, stderr: '' });
    expect(JSON.parse(stdout)).toContainEqual(
      expect.objectContaining({ name: 'sound-world', licence: 'CC0-1.0', folder: null }),
    );
  });

  test('the doctor tries the CPU and names what is optional', async () => {
    const { code, stdout } = await palkit('doctor', '--json');
    const report: { ok: boolean; checks: { what: string; status: string; advice: string }[] } =
      JSON.parse(stdout);
    expect(code).toBe(0);
    expect(report.ok).toBe(true);
    const status = Object.fromEntries(report.checks.map((check) => [check.what, check.status]));
    expect(status).toMatchObject({
      'Node.js': 'ok',
      'provider cpu': 'ok',
      'npm onnxruntime-node': 'ok',
      'tfjs wasm': 'ok',
      'tfjs cpu': 'ok',
      writing: 'ok',
    });
    expect(Object.keys(status)).toEqual(
      expect.arrayContaining(['provider webgpu', 'provider cuda', 'tfjs node-gpu', 'ffmpeg']),
    );
    for (const { status: own, advice } of report.checks) expect(own === 'ok' || advice !== '').toBe(true);
  });
});

describe('help', () => {
  test('of palkit names its commands', async () => {
    const { code, stdout } = await palkit('--help');
    expect(code).toBe(0);
    for (const command of ['train', 'eval', 'ask', 'profile', 'data', 'doctor'])
      expect(stdout).toMatch(new RegExp(`  ${command} `));
  });

  test('of a command names its options', async () => {
    const { code, stdout } = await palkit('data', 'build', '-h');
    expect(code).toBe(0);
    expect(stdout).toContain('palkit data build');
    expect(stdout).toContain('--set=<settings.field=value>');
    expect(stdout).not.toContain('\u001b');
  });

  test('the version', async () => {
    expect(await palkit('--version')).toMatchObject({
      code: 0,
      stdout: expect.stringMatching(/^\d+\.\d+\.\d+\n$/),
    });
  });
});

describe('data build', () => {
  const tiny = ['train', 'validation', 'test'].map(
    (split) => `settings.splits.${split}={rounds: 1, presencePerClass: 0, describe: 0}`,
  );

  test('builds what the settings ask for, again over itself, and lists it', async () => {
    const given = ['data', 'build', 'sound-world', ...tiny.flatMap((setting) => ['--set', setting])];
    const first = await palkit(...given);
    expect(first).toMatchObject({ code: 0 });
    expect(first.stdout).toContain('sound-world stands in data/sound-world');
    expect(await readdir(join(folder, 'data/sound-world'))).toEqual(
      expect.arrayContaining(['train.jsonl', 'validation.jsonl', 'test.jsonl', 'dataset.json', 'audio']),
    );
    const again = await palkit(...given, '--json');
    expect(again).toMatchObject({ code: 0, stderr: '' });
    expect(JSON.parse(again.stdout)).toMatchObject({ name: 'sound-world', folder: 'data/sound-world' });
    const listed = await palkit('data', 'list', '--json');
    expect(JSON.parse(listed.stdout)).toContainEqual(
      expect.objectContaining({ name: 'sound-world', folder: 'data/sound-world' }),
    );
  });

  test('leaves a folder alone that is something else', async () => {
    await mkdir(join(folder, 'mine'));
    await writeFile(join(folder, 'mine/thesis.txt'), 'years of work');
    const { code, stderr } = await palkit('data', 'build', 'sound-world', '--dir', 'mine');
    expect(code).toBe(2);
    expect(stderr).toContain('mine is there already and is not a build of sound-world');
    expect(await readdir(join(folder, 'mine'))).toEqual(['thesis.txt']);
  });
});

test('a reader that goes away ends palkit quietly', async () => {
  const { code, stderr } = await run('bash', ['-c', `set -o pipefail; "${tsx}" "${main}" --help | true`]);
  expect({ code, stderr }).toEqual({ code: 0, stderr: '' });
});
