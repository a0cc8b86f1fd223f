import { describe, expect, it } from 'vitest';
import { flameSvg } from '../../../src/cli/profile/flame.ts';
import { formatProfile } from '../../../src/cli/profile/table.ts';
import { gradients } from '../../../src/tensor/gradients.ts';
import { matmul, sum } from '../../../src/tensor/operations.ts';
import type { Value } from '../../../src/tensor/program.ts';
import { scope, trace } from '../../../src/tensor/trace.ts';
import type { StepProfile } from '../../../src/train/profile.ts';
import { summarizeProfile } from '../../../src/train/profileParts.ts';

const shape = [100, 100] as const;
const program = trace({ a: { dtype: 'float32', shape }, b: { dtype: 'float32', shape } }, ({ a, b }) => {
  const product = scope('layers.0.attention', () => matmul(a, b));
  const loss = scope('loss', () => sum(product));
  return { loss, gradient: gradients(loss, [a])[0] as Value };
});
const valueCalled = (name: string) =>
  program.nodes.flatMap(({ outputs }) => outputs).find((value) => value.name === name);
const kernel = (name: string, ms: number, provider = 'cpu') => ({
  node: name,
  operator: 'MatMul',
  provider,
  value: valueCalled(name),
  types: ['float'],
  outputBytes: 40_000,
  stepsMs: [ms, 2 * ms, 30 * ms],
});
const profile: StepProfile = {
  experiment: 'small',
  stage: 'closed',
  engine: 'onnx (cpu, 2 threads)',
  provider: 'cpu',
  warmUps: 1,
  stepsMs: [12, 22, 400],
  updatesMs: [0.25, 0.5, 1],
  programs: [
    {
      program,
      runsPerStep: 1,
      stepsMs: [10, 20, 350],
      kernels: [
        kernel('layers.0.attention.matmul', 2),
        kernel('gradient.layers.0.attention.matmul.matmul', 4),
        kernel('Memcpy_token_1', 1, 'webgpu'),
      ],
    },
  ],
};

describe('a profile as a table', () => {
  it('shows the median step by parts, forward and backward, and what belongs to no part', () => {
    const lines = formatProfile(summarizeProfile(profile)).split('\n');
    const row = (part: string) =>
      lines
        .find((line) => line.startsWith(part))
        ?.slice(part.length)
        .trim()
        .split(/\s{2,}/);
    // 2 * 100^3 operations each way; 40 kB each way, made in 4 + 8 ms.
    expect(row('layers.*.attention')).toEqual(['4', '8', '0', '54.5 %', '0.004', '0.3', '0.08']);
    expect(row('engine, between kernels')?.[0]).toBe('6');
    expect(row('outside the engine: batches, feeds')?.[0]).toBe('1.5');
    expect(row('update')?.slice(0, 3)).toEqual(['0', '0', '0.5']);
    expect(lines.at(-2)).toContain('A step takes 22.0 ms');
    expect(lines.at(-1)).toContain('1 kernel ran on another provider');
  });
});

describe('a profile as a picture', () => {
  it('nests the scopes down to the primitive, each with its time', () => {
    const picture = flameSvg(profile);
    expect(picture).toContain('<title>step: 14.5 ms, 100.0 %, 4 kernels</title>');
    expect(picture).toContain(
      '<title>step › forward › layers › 0 › attention › matmul: 4.00 ms, 27.6 %, 1 kernel</title>',
    );
    expect(picture).toContain('<title>step › backward › layers › 0 › attention › matmul: 8.00 ms');
    expect(picture).toContain('<title>step › update: 0.500 ms');
    expect(picture).toContain('<title>step › other');
    const count = (what: RegExp) => picture.match(what)?.length;
    expect(count(/<g>/g)).toBe(count(/<\/g>/g));
  });

  it('is one file without scripts or links, whatever the names are', () => {
    const picture = flameSvg({ ...profile, experiment: '<b> & "c"\u001b[31m' });
    expect(picture).toContain('&lt;b&gt; &amp; &quot;c&quot;, stage &quot;closed&quot;');
    expect(picture).not.toContain('\u001b');
    expect(picture).not.toMatch(/<script|href|url\(/);
  });
});
