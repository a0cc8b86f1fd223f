import { describe, expect, it } from 'vitest';
import { onnxEngine } from '../../src/engine/onnx/engine.ts';
import { runError } from '../../src/engine/onnx/failure.ts';
import { exp, matmul, sum } from '../../src/tensor/operations.ts';
import { float32 } from '../../src/tensor/tensor.ts';
import { scope, trace } from '../../src/tensor/trace.ts';

const told = (reason: string) => runError(new Error(reason), { values: new Map() }).message;

describe('a run that fails', () => {
  it('for want of memory names the value, the cause and what to do', async () => {
    const size = 2_000_000;
    const program = trace(
      { a: { dtype: 'float32', shape: [size, 1] }, b: { dtype: 'float32', shape: [1, size] } },
      ({ a, b }) => ({ y: scope('huge', () => sum(exp(matmul(a, b)))) }),
    );
    const engine = onnxEngine();
    const executable = await engine.compile(program);
    const column = new Float32Array(size);
    const run = executable.run({ a: float32([size, 1], column), b: float32([1, size], column) });
    await expect(run).rejects.toThrow(
      'the program failed at "huge.matmul" (matmul): out of memory; lower train.batchSize',
    );
    await engine.dispose();
  });

  it.each([
    ['wgpu::MapAsyncStatus value: 4, message: [Device] is lost.', 'the GPU device was lost'],
    ['[ONNXRuntimeError] : 1 : FAIL : Failed to wait for the operation:2', 'the GPU device was lost'],
    ['No cached or pending pipeline for deferred dispatch: RotaryEmbedding', 'did not compile a shader'],
    ['Too many storage buffers in shader. Current: 20, Max is 12', 'one buffer'],
    ['Array buffer allocation failed', 'out of memory; lower'],
    ['WebGPU validation failed. Buffer size (2500000000) exceeds the max buffer size limit', 'one buffer'],
    ['WebGPU validation failed. [Invalid Buffer (unlabeled)] is invalid due to a previous error.', 'refused'],
    ['CUDA failure 2: out of memory ; GPU=0', 'out of memory; lower'],
  ])('"%s" is explained', (reason, explained) => {
    expect(told(reason)).toContain(explained);
    expect(told(reason)).toContain(reason);
  });

  it('for a reason that is not known is told in the words of ONNX Runtime', () => {
    expect(told('something else')).toBe('the program failed: something else');
  });
});
