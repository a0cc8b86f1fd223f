import { spawnSync } from 'node:child_process';
import { existsSync, mkdtempSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { relative, type Step } from './smallStep.ts';

/** Debian's chromium package ships a Vulkan device in software. */
const softwareDevice = '/usr/lib/chromium/vk_swiftshader_icd.json';

/** What a module of this folder prints on a provider, or why it does not. */
function run<T>(module: string, ...given: readonly string[]): T | string {
  const software = existsSync(softwareDevice) && process.env.VK_ICD_FILENAMES === undefined;
  const child = spawnSync(
    process.execPath,
    ['node_modules/tsx/dist/cli.mjs', `test/engine/${module}.ts`, ...given],
    {
      encoding: 'utf8',
      maxBuffer: 2 ** 28,
      timeout: 110_000,
      env: {
        ...process.env,
        XDG_RUNTIME_DIR: process.env.XDG_RUNTIME_DIR ?? mkdtempSync(join(tmpdir(), 'palkit-')),
        ...(software && { VK_ICD_FILENAMES: softwareDevice }),
      },
    },
  );
  return child.status === 0
    ? (JSON.parse(child.stdout) as T)
    : `${child.stderr}`.trim().split('\n').at(-1) || 'no device';
}

describe('a training step on webgpu', () => {
  const found = run<Step>('trainingStep', 'webgpu');
  if (typeof found === 'string') {
    console.warn(`webgpu is skipped: ${found}`);
    it.skip(`no WebGPU device here (${found}); on Debian, apt-get install chromium libvulkan1 gives one in software`, () =>
      undefined);
    return;
  }
  const cpu = run<Step>('trainingStep', 'cpu') as Step;

  it('gives the loss and the gradients of the cpu to 1e-3', () => {
    expect(Object.keys(found.gradients)).toEqual(Object.keys(cpu.gradients));
    const deviations = Object.entries(cpu.gradients).map(([name, values]) =>
      relative(values, found.gradients[name] as number[]),
    );
    expect(Math.max(...deviations)).toBeLessThan(1e-3);
    expect(deviations.length).toBeGreaterThan(50);
  });

  it('keeps parameters and moments on the device over several steps', () => {
    for (const [step, loss] of cpu.losses.entries()) expect(found.losses[step]).toBeCloseTo(loss, 3);
    expect(cpu.losses[2]).toBeLessThan(cpu.losses[0] as number);
    for (const [name, values] of Object.entries(cpu.parameters)) {
      expect(relative(values, found.parameters[name] as number[])).toBeLessThan(1e-2);
    }
  });

  it('computes every primitive as the reference does, on the device', () => {
    type Report = Record<string, { deviation: number; elsewhere: string[] }>;
    const report = run<Report>('primitivesOnProvider', 'webgpu') as Report;
    expect(Object.keys(report).length).toBeGreaterThan(25);
    for (const { deviation } of Object.values(report)) expect(deviation).toBeLessThan(1e-5);
    const elsewhere = Object.entries(report).filter((entry) => entry[1].elsewhere.length > 0);
    // The case turns topK's 64-bit indices into floats; WebGPU has no 64-bit numbers.
    expect(elsewhere.map(([primitive, own]) => [primitive, own.elsewhere])).toEqual([
      ['topK', ['Cast float']],
    ]);
  });

  it('computes in float16 as float32 does, or says that the device has none; bfloat16 it has never', () => {
    const { float16, bfloat16 } = run<Record<string, string>>('halfOnProvider', 'webgpu') as Record<
      string,
      string
    >;
    expect(bfloat16).toContain('ONNX Runtime (webgpu) does not take the program');
    if (float16 !== 'native') {
      expect(float16).toContain('the device does not support it');
      return;
    }
    const half = run<Step>('trainingStep', 'webgpu', 'float16') as Step;
    const [loss = 0] = cpu.gradients.loss as number[];
    expect(Math.abs((half.gradients.loss?.[0] as number) / loss - 1)).toBeLessThan(1e-3);
    for (const [name, values] of Object.entries(cpu.gradients))
      expect(relative(values, half.gradients[name] as number[])).toBeLessThan(0.03);
  });
});
