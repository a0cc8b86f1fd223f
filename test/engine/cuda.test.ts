import { afterEach, describe, expect, it } from 'vitest';
import { EngineError } from '../../src/engine/engine.ts';
import { chooseTf32, cudaProvider, tf32Variable } from '../../src/engine/onnx/cuda.ts';
import { onnxEngine } from '../../src/engine/onnx/engine.ts';

describe('the options of CUDA', () => {
  const before = process.env[tf32Variable];
  afterEach(() => {
    if (before === undefined) delete process.env[tf32Variable];
    else process.env[tf32Variable] = before;
  });

  it('name a device, the first when none is named', () => {
    expect(cudaProvider({ device: 3 })).toEqual({ name: 'cuda', deviceId: 3 });
    expect(cudaProvider({})).toEqual({ name: 'cuda', deviceId: 0 });
  });

  it('forbid TF32 before the first session, and leave the environment alone otherwise', () => {
    const environment: NodeJS.ProcessEnv = {};
    chooseTf32({}, environment);
    chooseTf32({ tf32: true }, environment);
    expect(environment).toEqual({});
    chooseTf32({ tf32: false }, environment);
    expect(environment).toEqual({ [tf32Variable]: '0' });
    onnxEngine({ provider: 'cuda', tf32: false });
    expect(process.env[tf32Variable]).toBe('0');
  });

  it('are an error where the environment forbids what they ask for', () => {
    expect(() => chooseTf32({ tf32: true }, { [tf32Variable]: '0' })).toThrow(
      `${tf32Variable}=0 forbids it in this process`,
    );
  });

  it('are an error with another provider', () => {
    for (const provider of ['cpu', 'webgpu'] as const) {
      expect(() => onnxEngine({ provider, device: 0 })).toThrow(EngineError);
      expect(() => onnxEngine({ provider, tf32: true })).toThrow(
        `engine.tf32 has no effect on ${provider}, only on cuda`,
      );
    }
  });
});
