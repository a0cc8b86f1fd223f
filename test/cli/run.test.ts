import { readFile } from 'node:fs/promises';
import type { ArgsDef } from 'citty';
import { afterEach, beforeEach, describe, expect, test, vi } from 'vitest';
import { checkArguments, repeated } from '../../src/cli/arguments.ts';
import { runCommand, UsageError } from '../../src/cli/run.ts';
import { ConfigError } from '../../src/config/configError.ts';
import { EngineError } from '../../src/engine/engine.ts';

let stdout = '';
let stderr = '';
beforeEach(() => {
  stdout = '';
  stderr = '';
  vi.spyOn(process.stdout, 'write').mockImplementation((text) => {
    stdout += text;
    return true;
  });
  vi.spyOn(process.stderr, 'write').mockImplementation((text) => {
    stderr += text;
    return true;
  });
});
afterEach(() => vi.restoreAllMocks());

const failing = (error: unknown, json = false) => runCommand(() => Promise.reject(error), { json });

describe('exit codes and messages', () => {
  test('what the body gives, or 0', async () => {
    expect(await runCommand(async () => undefined, { json: false })).toBe(0);
    expect(await runCommand(async () => 130, { json: false })).toBe(130);
    expect(stdout + stderr).toBe('');
  });

  test.each([
    [new ConfigError('experiment.yaml:1:1  seed: wrong'), 2],
    [new UsageError('there is no such option'), 2],
    [new EngineError('no device'), 1],
  ])('%s', async (error, code) => {
    expect(await failing(error)).toBe(code);
    expect(stderr).toBe(`${error.message}\n`);
    expect(stdout).toBe('');
  });

  test('an error of the system names the file and says what to do', async () => {
    const error = Object.assign(new Error("EACCES: permission denied, open '/root/x'"), {
      code: 'EACCES',
      syscall: 'open',
    });
    expect(await failing(error)).toBe(1);
    expect(stderr).toBe(
      "EACCES: permission denied, open '/root/x'\nChange the permissions, or choose another folder.\n",
    );
  });

  test('a missing file of the real system', async () => {
    expect(await runCommand(async () => Number(await readFile('/no/such/file')), { json: false })).toBe(1);
    expect(stderr).toBe("ENOENT: no such file or directory, open '/no/such/file'\n");
  });

  test('anything else is a bug and shows where', async () => {
    expect(await failing(new TypeError('x is not a function'))).toBe(1);
    expect(stderr).toContain('TypeError: x is not a function\n    at ');
    expect(stderr).toContain('This is a bug in palkit');
  });

  test('something thrown that is no error', async () => {
    expect(await failing('just text')).toBe(1);
    expect(stderr).toContain('just text');
  });

  test('under --json one document on standard output', async () => {
    expect(await failing(new EngineError('\u001b[31mno device'), true)).toBe(1);
    expect(JSON.parse(stdout)).toEqual({ error: { name: 'EngineError', message: 'no device' } });
    expect(stderr).toBe('no device\n');
  });
});

describe('arguments', () => {
  const declared: ArgsDef = {
    file: { type: 'positional' },
    extra: { type: 'positional', required: false },
    set: { type: 'string' },
    mode: { type: 'enum', options: ['fast', 'slow'] },
    eval: { type: 'boolean', default: true },
    verbose: { type: 'boolean', alias: 'v' },
  };
  const check = (...given: string[]) => checkArguments('try', given, declared);

  test.each([
    [['a']],
    [['a', 'b', '--set', 'x=1', '--set=y=2', '--no-eval', '-v', '--mode', 'slow']],
    [['a', '--', '--set']],
  ])('%j is taken', (given) => {
    expect(() => check(...given)).not.toThrow();
  });

  test.each([
    [[], 'FILE is missing'],
    [['a', 'b', 'c'], '"c" is one argument too many'],
    [['a', '--sett', 'x'], 'there is no option --sett (did you mean "--set"?)'],
    [['a', '--no-evl'], 'there is no option --no-evl (did you mean "--no-eval"?)'],
    [['a', '-x'], 'there is no option -x'],
    [['a', '--set', '--no-eval'], '--set needs a value'],
    [['a', '--mode', 'slw'], '--mode takes one of fast, slow, not "slw" (did you mean "slow"?)'],
    [['a', '--__proto__=1'], 'there is no option --__proto__'],
  ])('%j is refused', (given, expected) => {
    expect(() => check(...given)).toThrow(UsageError);
    expect(() => check(...given)).toThrow(expected);
  });

  test('an option given several times keeps every value in order', () => {
    expect(repeated(['a', '--set', 'x=1', '--json', '--set=y=a b', '--', '--set', 'z=1'], 'set')).toEqual([
      'x=1',
      'y=a b',
    ]);
    expect(repeated(['a'], 'set')).toEqual([]);
  });
});
