import { InferenceSession, Tensor as OrtTensor } from 'onnxruntime-node';
import { afterAll, describe, expect, it } from 'vitest';
import { random } from '../../src/config/random.ts';
import { plain } from '../../src/engine/engine.ts';
import { onnxEngine } from '../../src/engine/onnx/engine.ts';
import { initializers } from '../../src/engine/onnx/initializers.ts';
import { lowerProgram } from '../../src/engine/onnx/lower.ts';
import { interpret } from '../../src/tensor/interpret.ts';
import * as ops from '../../src/tensor/operations.ts';
import { float32, int32, type Tensor, tensor } from '../../src/tensor/tensor.ts';
import { trace } from '../../src/tensor/trace.ts';

const engine = onnxEngine();
afterAll(() => engine.dispose());

const draw = random('external');
const normals = (size: number) => Float32Array.from({ length: size }, () => draw.normal());

/** Constants of several dtypes, shapes and uses: factors on either side, a table, positions, a mask. */
function example(size: number) {
  const weight = float32([size, size], normals(size * size));
  const table = float32([size, 8], normals(size * 8));
  // A view into a larger buffer: its offset counts.
  const shifted = float32([size], new Float32Array(normals(size + 3).buffer, 12, size));
  const order = tensor(
    'int64',
    [size],
    BigInt64Array.from({ length: size }, (_, at) => BigInt(size - 1 - at)),
  );
  const mask = tensor(
    'bool',
    [size],
    Uint8Array.from({ length: size }, (_, at) => at % 2),
  );
  const program = trace({ x: { dtype: 'float32', shape: [2, size] } }, ({ x }) => {
    const projected = ops.add(ops.matmul(x, ops.constant(weight)), ops.constant(shifted));
    const turned = ops.gather(projected, ops.constant(order), 1);
    const kept = ops.where(ops.constant(mask), turned, 0);
    return {
      y: ops.matmul(kept, ops.constant(table)),
      z: ops.matmul(kept, ops.constant(weight), { transposeB: true }),
    };
  });
  return { program, weight, x: float32([2, size], normals(2 * size)) };
}

function expectClose(actual: Tensor, expected: Tensor): void {
  expect(actual.shape).toEqual(expected.shape);
  for (const [at, value] of (expected.data as Float32Array).entries())
    expect((actual.data as Float32Array)[at]).toBeCloseTo(value, 3);
}

describe('constants beside the model', () => {
  it('give the numbers of constants inside it', async () => {
    const { program, x, weight } = example(12);
    const inside = lowerProgram(program, 'cpu');
    const beside = lowerProgram(program, 'cpu', { externalFrom: 1 });
    expect(inside.external).toEqual([]);
    expect(new Set(beside.external.map(({ path }) => path)).size).toBe(beside.external.length);
    // Not a copy: the tensor's own memory.
    expect(beside.external.map(({ data }) => data.buffer)).toContain(weight.data.buffer);
    const results: Record<string, Tensor>[] = [];
    for (const { model, external } of [inside, beside]) {
      const session = await InferenceSession.create(model, {
        graphOptimizationLevel: 'disabled',
        ...(external.length > 0 && { externalData: external }),
      });
      const { y, z } = await session.run({ x: new OrtTensor('float32', x.data, x.shape) });
      results.push({
        y: float32([2, 8], y?.data as Float32Array),
        z: float32([2, 12], z?.data as Float32Array),
      });
      await session.release();
    }
    expect(results[1]).toEqual(results[0]);
    const expected = interpret(program, { x });
    for (const name of ['y', 'z']) expectClose(results[1]?.[name] as Tensor, expected[name] as Tensor);
  });

  it('leave a model of a few kilobytes, at every optimization level', async () => {
    const { program, x } = example(256);
    const { model, external } = lowerProgram(program, 'cpu', { externalFrom: 65_536 });
    expect(external.map(({ data }) => data.byteLength)).toEqual([256 * 256 * 4]);
    expect(model.byteLength).toBeLessThan(16_384 + 256 * 8 * 4);
    const expected = interpret(program, { x });
    for (const optimization of ['disabled', 'all'] as const) {
      const other = onnxEngine({ optimization });
      const executable = await other.compile(program);
      const outputs = await executable.run({ x });
      for (const name of ['y', 'z']) expectClose(plain(outputs, name), expected[name] as Tensor);
      await other.dispose();
    }
  });

  it('are ONNX Runtime’s own once the program is compiled', async () => {
    const { program, weight, x } = example(256);
    const executable = await engine.compile(program);
    const before = await executable.run({ x });
    weight.data.fill(0);
    expect(await executable.run({ x })).toEqual(before);
    await executable.dispose();
  });
});

describe('what ONNX cannot say is named', () => {
  it('a constant of more than 2 GiB', () => {
    // Memory that nobody touches is not taken.
    const huge = float32([2 ** 19, 2 ** 10], new Float32Array(2 ** 29));
    for (const externalFrom of [1, Number.POSITIVE_INFINITY]) {
      expect(() => initializers(externalFrom).add('model.embed_tokens.weight', huge)).toThrow(
        'the constant "model.embed_tokens.weight", float32[524288, 1024], has 2147483648 bytes',
      );
    }
  });

  it('a file of more than 2 GiB', () => {
    const large = float32([2 ** 27], new Float32Array(2 ** 27));
    const inside = initializers(Number.POSITIVE_INFINITY);
    for (const name of ['a', 'b', 'c']) inside.add(name, large);
    expect(() => inside.add('d', large)).toThrow(
      'do not fit into one ONNX file of 2 GiB ("d" is the first that does not)',
    );
    const beside = initializers(1024);
    for (const name of ['a', 'b', 'c', 'd', 'e']) beside.add(name, large);
    beside.add('small', int32([1], [3]));
    expect(beside.external).toHaveLength(5);
    expect(beside.tensors).toHaveLength(6);
  });
});
