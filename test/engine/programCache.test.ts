import { describe, expect, it } from 'vitest';
import { type CompileOptions, plain } from '../../src/engine/engine.ts';
import { onnxEngine } from '../../src/engine/onnx/engine.ts';
import { programCache } from '../../src/engine/programCache.ts';
import { programKey } from '../../src/engine/programKey.ts';
import * as ops from '../../src/tensor/operations.ts';
import type { Program } from '../../src/tensor/program.ts';
import { float32, type Tensor } from '../../src/tensor/tensor.ts';
import { trace } from '../../src/tensor/trace.ts';

const weights = () => float32([2], [3, 4]);

function example(
  weight: Tensor,
  { size = 2, output = 'y', transposeB = false, name = 'product' } = {},
): Program {
  return trace({ x: { dtype: 'float32', shape: [size, 2] } }, ({ x }) => {
    const square = ops.matmul(x, ops.constant(float32([2, 2], [1, 2, 3, 4])), { transposeB });
    return { [output]: ops.multiply(square, ops.constant(weight)), [name]: square };
  });
}

describe('the key of a program', () => {
  const key = programKey(example(weights()));

  it('is the same for the same program traced again, with other arrays of the same content', () => {
    expect(programKey(example(weights()))).toBe(key);
  });

  it('tells programs apart that differ in anything', () => {
    const others = [
      programKey(example(float32([2], [3, 5]))),
      programKey(example(float32([1, 2], [3, 4]))),
      programKey(example(weights(), { size: 3 })),
      programKey(example(weights(), { output: 'z' })),
      programKey(example(weights(), { transposeB: true })),
      programKey(example(weights()), { keepOnDevice: ['y'] }),
      programKey({ ...example(weights()), outputs: new Map([...example(weights()).outputs].reverse()) }),
    ];
    expect(new Set([key, ...others]).size).toBe(others.length + 1);
  });

  it('sees that a constant was written to', () => {
    const weight = weights();
    const program = example(weight);
    weight.data.fill(9);
    expect(programKey(program)).not.toBe(key);
  });

  it('does not depend on the order of the options', () => {
    const keys = [
      ['y', 'product'],
      ['product', 'y'],
    ].map((keepOnDevice) => programKey(example(weights()), { keepOnDevice }));
    expect(keys[0]).toBe(keys[1]);
  });
});

/** Compiles nothing, and counts. */
function counting() {
  const counts = { compiled: 0, disposed: 0 };
  const compile = async (_program: Program, _options?: CompileOptions) => {
    counts.compiled++;
    return {
      run: async () => ({}),
      dispose: async () => {
        counts.disposed++;
      },
    };
  };
  return { counts, compile };
}

describe('the cache', () => {
  it('compiles equal programs once, and ends one with its last user', async () => {
    const { counts, compile } = counting();
    const cache = programCache(compile);
    const [one, two] = await Promise.all([
      cache.compile(example(weights())),
      cache.compile(example(weights())),
    ]);
    const other = await cache.compile(example(weights(), { size: 5 }));
    expect(counts).toEqual({ compiled: 2, disposed: 0 });
    await one.dispose();
    await one.dispose();
    expect(counts.disposed).toBe(0);
    await expect(one.run({})).rejects.toThrow('the program was disposed');
    expect(await two.run({})).toEqual({});
    await two.dispose();
    expect(counts.disposed).toBe(1);
    await cache.compile(example(weights()));
    expect(counts).toEqual({ compiled: 3, disposed: 1 });
    await other.dispose();
  });

  it('keeps small programs while they are reused, and no longer', async () => {
    const { counts, compile } = counting();
    const cache = programCache(compile);
    await cache.reuse(async () => {
      for (let time = 0; time < 3; time++) await (await cache.compile(example(weights()))).dispose();
      expect(counts).toEqual({ compiled: 1, disposed: 0 });
      // Memory that nobody touches is not taken: a run of 400 MB is too large to be kept.
      const large = trace({ x: { dtype: 'float32', shape: [100_000_000] } }, ({ x }) => ({ y: ops.exp(x) }));
      for (let time = 0; time < 2; time++) await (await cache.compile(large)).dispose();
      expect(counts).toEqual({ compiled: 3, disposed: 2 });
      await (await cache.compile(example(weights()))).dispose();
      expect(counts.compiled).toBe(3);
    });
    expect(counts.disposed).toBe(3);
  });

  it('forgets a program that does not compile', async () => {
    let attempts = 0;
    const cache = programCache(async () => {
      attempts++;
      throw new Error('no device');
    });
    const refused = [cache.compile(example(weights())), cache.compile(example(weights()))];
    for (const one of refused) await expect(one).rejects.toThrow('no device');
    await expect(cache.compile(example(weights()))).rejects.toThrow('no device');
    expect(attempts).toBe(2);
  });
});

it('one user of a session goes, the other computes on', async () => {
  const engine = onnxEngine();
  const [one, two] = [await engine.compile(example(weights())), await engine.compile(example(weights()))];
  const x = float32([2, 2], [1, 0, 0, 1]);
  const before = plain(await one.run({ x }), 'y');
  await one.dispose();
  expect(plain(await two.run({ x }), 'y')).toEqual(before);
  expect([...(before.data as Float32Array)]).toEqual([3, 8, 9, 16]);
  await engine.dispose();
});
