import { mkdtempSync, readdirSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, expect, it, vi } from 'vitest';
import { onnxEngine } from '../../src/engine/onnx/engine.ts';
import { lowerProgram, type Provider } from '../../src/engine/onnx/lower.ts';
import { type ProgramProfile, readProfile } from '../../src/engine/onnx/profile.ts';
import * as ops from '../../src/tensor/operations.ts';
import { float32 } from '../../src/tensor/tensor.ts';
import { scope, trace } from '../../src/tensor/trace.ts';

const size = 64;
const shape = [size, size] as const;

function example() {
  return trace({ a: { dtype: 'float32', shape }, b: { dtype: 'float32', shape } }, ({ a, b }) => ({
    y: scope('head', () => ops.logSoftmax(ops.matmul(ops.exp(a), b, { transposeB: true, scale: 0.5 }))),
  }));
}

const event = (name: string, ts: number, dur: number, args: Record<string, unknown> = {}, cat = 'Node') => ({
  cat,
  name,
  ts,
  dur,
  pid: 1,
  tid: 1,
  ph: 'X',
  args,
});

describe('a profile of ONNX Runtime', () => {
  it('tells for each kernel the value that it computes and the time of every run', async () => {
    const folder = mkdtempSync(join(tmpdir(), 'palkit-'));
    vi.stubEnv('TMPDIR', folder);
    const profiles: ProgramProfile[] = [];
    const engine = onnxEngine({ onProfile: (profile) => profiles.push(profile) });
    const executable = await engine.compile(example());
    const matrix = float32(shape, new Float32Array(size * size).fill(0.1));
    for (let run = 0; run < 3; run++) await executable.run({ a: matrix, b: matrix });
    expect(profiles).toEqual([]);
    await executable.dispose();
    await engine.dispose();
    const [profile] = profiles as [ProgramProfile];
    expect(profiles).toHaveLength(1);
    expect(profile.runsMs).toHaveLength(3);
    expect(profile.kernels.map(({ value }) => value?.name)).toEqual([
      'head.exp',
      'head.matmul',
      'head.logSoftmax',
    ]);
    expect(profile.kernels.map(({ operator }) => operator)).toEqual(['Exp', 'FusedMatMul', 'LogSoftmax']);
    for (const { runsMs, provider, types, outputBytes } of profile.kernels) {
      expect({ provider, types, outputBytes }).toEqual({
        provider: 'cpu',
        types: ['float'],
        outputBytes: 4 * size * size,
      });
      expect(runsMs).toHaveLength(3);
    }
    const inKernels = profile.kernels.reduce((total, { runsMs }) => total + (runsMs[1] ?? 0), 0);
    expect(inKernels).toBeLessThanOrEqual((profile.runsMs[1] as number) + 0.1);
    expect(readdirSync(folder).filter((name) => name.startsWith('palkit-'))).toEqual([]);
    vi.unstubAllEnvs();
  });

  it('gives nodes that the optimizer renamed or added to the value that they begin with, or to none', () => {
    const lowered = lowerProgram(example(), 'cpu');
    const text = JSON.stringify([
      event('model_run', 0, 100, {}, 'Session'),
      event('head.matmul/MatMulScaleFusion/_kernel_time', 10, 5, { op_name: 'FusedMatMul' }),
      event('head.matmulother_kernel_time', 20, 5, { op_name: 'Exp' }),
      event('Memcpy_token_3_kernel_time', 30, 5, { op_name: 'MemcpyToHost' }),
    ]);
    expect(readProfile(text, lowered).kernels.map(({ value }) => value?.name)).toEqual([
      'head.matmul',
      undefined,
      undefined,
    ]);
  });

  it("takes the GPU's own time where it is told", () => {
    const lowered = lowerProgram(example(), 'webgpu');
    const args = { op_name: 'Exp', provider: 'WebGpuExecutionProvider' };
    const text = JSON.stringify([
      event('model_run', 0, 100, {}, 'Session'),
      event('model_run', 200, 100, {}, 'Session'),
      event('head.exp_kernel_time', 10, 1, args),
      event('head.exp_kernel_time', 210, 1, args),
      event('head.exp&Exp&Exp', 5000, 7000, {}, 'Api'),
      event('head.exp&Exp&Exp', 5200, 9000, {}, 'Api'),
    ]);
    expect(readProfile(text, lowered).kernels).toMatchObject([{ provider: 'webgpu', runsMs: [7, 9] }]);
  });

  it('that cannot be read is an error', () => {
    expect(() => readProfile('[{"cat": "Node"}]', lowerProgram(example(), 'cpu'))).toThrow(
      'ONNX Runtime left a profile that cannot be read',
    );
  });
});

describe('every node of a lowered graph', () => {
  it.each(['cpu', 'webgpu'] satisfies Provider[])('belongs to a value, on %s', (provider) => {
    const { values } = lowerProgram(example(), provider);
    expect(new Set([...values.values()].map(({ name }) => name))).toEqual(
      new Set(['head.exp', 'head.matmul', 'head.logSoftmax']),
    );
  });
});
