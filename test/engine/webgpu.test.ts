import { describe, expect, it } from 'vitest';
import { howToGetADevice, isAbsence, runOnDevice } from './onDevice.ts';
import { relative, type Step } from './smallStep.ts';
import type { Traffic } from './stepTraffic.ts';

describe('a training step on webgpu', () => {
  const found = runOnDevice<Step>('trainingStep', ['webgpu']);
  if (typeof found === 'string') {
    const absent = isAbsence(found);
    it.skipIf(absent)(`(no WebGPU device here: ${found}; ${howToGetADevice})`, () => {
      throw new Error(found);
    });
    return;
  }
  const cpu = runOnDevice<Step>('trainingStep', ['cpu']) as Step;

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

  it.each([1, 2])(
    'takes up nothing but the batch and the scalars, and down nothing but loss and norm, with %d micro-batches',
    (accumulate) => {
      const traffic = runOnDevice<Traffic>('stepTraffic', ['webgpu', String(accumulate)]) as Traffic;
      expect(traffic.up).toEqual(
        [...traffic.batch, 'correction1', 'correction2', 'learningRate', 'scale'].sort(),
      );
      expect(traffic.down).toEqual(['gradientNorm', 'loss']);
      expect(traffic.runs).toBe(accumulate === 1 ? 1 : accumulate + 1);
      expect(traffic.stateBytes).toBeGreaterThan(10 * traffic.upBytes);
    },
  );

  it('computes every primitive as the reference does, on the device', () => {
    type Report = Record<string, { deviation: number; elsewhere: string[] }>;
    const report = runOnDevice<Report>('primitivesOnProvider', ['webgpu']) as Report;
    expect(Object.keys(report).length).toBeGreaterThan(25);
    for (const { deviation } of Object.values(report)) expect(deviation).toBeLessThan(1e-5);
    const elsewhere = Object.entries(report).filter((entry) => entry[1].elsewhere.length > 0);
    // The case turns topK's 64-bit indices into floats; WebGPU has no 64-bit numbers.
    expect(elsewhere.map(([primitive, own]) => [primitive, own.elsewhere])).toEqual([
      ['topK', ['Cast float']],
    ]);
  });

  it('computes in float16 as float32 does, or says that the device has none; bfloat16 it has never', () => {
    const { float16, bfloat16 } = runOnDevice<Record<string, string>>('halfOnProvider', ['webgpu']) as Record<
      string,
      string
    >;
    expect(bfloat16).toContain('ONNX Runtime (webgpu) does not take the program');
    if (float16 !== 'native') {
      expect(float16).toContain('the device does not support it');
      return;
    }
    const half = runOnDevice<Step>('trainingStep', ['webgpu', 'float16']) as Step;
    const [loss = 0] = cpu.gradients.loss as number[];
    expect(Math.abs((half.gradients.loss?.[0] as number) / loss - 1)).toBeLessThan(1e-3);
    for (const [name, values] of Object.entries(cpu.gradients))
      expect(relative(values, half.gradients[name] as number[])).toBeLessThan(0.03);
  });
});
