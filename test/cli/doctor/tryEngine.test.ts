import { createRequire } from 'node:module';
import { pathToFileURL } from 'node:url';
import { describe, expect, it } from 'vitest';
import { tryEngine } from '../../../src/cli/doctor/tryEngine.ts';

/** Node's options under which the child reads TypeScript, which the command line's own process has already. */
const typescript = `--import ${pathToFileURL(createRequire(import.meta.url).resolve('tsx')).href}`;
const dying = `${typescript} --import ${new URL('./dieAfterAnswer.ts', import.meta.url).href}`;

describe.each([
  ['onnx', 'cpu'],
  ['tfjs', 'cpu'],
] as const)('%s on %s', (kind, name) => {
  it('computes, and says in what', async () => {
    const { ok, reason, types } = await tryEngine(kind, name, { NODE_OPTIONS: typescript });
    expect({ ok, reason }).toEqual({ ok: true, reason: '' });
    expect(types[0]).toBe('float32');
    expect(types.join()).not.toContain('could not be tried');
  });

  it('whose process dies at the half types still computes in float32, and says that it died', async () => {
    expect(await tryEngine(kind, name, { NODE_OPTIONS: dying })).toEqual({
      ok: true,
      reason: '',
      types: ['float32 (the half types could not be tried: the process ended at it)'],
    });
  });
});

it('an engine that is not there is no answer of float32', async () => {
  const { ok, reason, types } = await tryEngine('onnx', 'none', { NODE_OPTIONS: typescript });
  expect(ok).toBe(false);
  expect(reason).not.toBe('');
  expect(types).toEqual([]);
});
