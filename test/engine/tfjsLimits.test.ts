/** What TensorFlow.js cannot represent or hold is an error, never another number. */
import * as tf from '@tensorflow/tfjs-core';
import { afterAll, describe, expect, it } from 'vitest';
import { random } from '../../src/config/random.ts';
import { type Engine, plain } from '../../src/engine/engine.ts';
import { tfjsEngine } from '../../src/engine/tfjs/engine.ts';
import { interpret } from '../../src/tensor/interpret.ts';
import * as ops from '../../src/tensor/operations.ts';
import type { Value } from '../../src/tensor/program.ts';
import { float32, int32, type Tensor, tensor } from '../../src/tensor/tensor.ts';
import { trace } from '../../src/tensor/trace.ts';
import { cases } from '../tensor/arbitrary.ts';
import { drawCase } from './primitiveCase.ts';

const engines = { wasm: await tfjsEngine({ backend: 'wasm' }), cpu: await tfjsEngine({ backend: 'cpu' }) };
afterAll(() => Promise.all(Object.values(engines).map((engine) => engine.dispose())));

const int64 = (data: readonly number[]) => tensor('int64', [data.length], BigInt64Array.from(data, BigInt));
const [inf, nan] = [Number.POSITIVE_INFINITY, Number.NaN];

/** Runs a model of one output. */
async function run<Name extends string>(
  engine: Engine,
  feeds: Readonly<Record<Name, Tensor>>,
  model: (inputs: Readonly<Record<Name, Value>>) => Value,
): Promise<Tensor> {
  const executable = await engine.compile(trace(feeds, (inputs) => ({ result: model(inputs) })));
  try {
    return plain(await executable.run(feeds), 'result');
  } finally {
    await executable.dispose();
  }
}

it.each(Object.entries(cases))('the case of %s is a program with that primitive', (primitive, draw) => {
  // A few draws do nothing: a slice of all.
  const drawn = Array.from({ length: 20 }, (_, seed) => drawCase(draw, random(seed)).program);
  expect(drawn.flatMap(({ nodes }) => nodes.map((node) => node.primitive))).toContain(primitive);
});

describe.each(Object.entries(engines))('on %s', (_, engine) => {
  it.each<[string, (x: Value) => Value, number[]]>([
    ['a sum of two', (x) => ops.add(x, x), [1, 2 ** 30]],
    ['a difference', (x) => ops.subtract(x, 2 ** 31 - 1), [0, -3]],
    ['a product', (x) => ops.multiply(x, x), [1, 70_000]],
    ['a product far beyond', (x) => ops.multiply(x, x), [1, 2 ** 31 - 1]],
    ['a sum of many', (x) => ops.sum(x, [0]), [2 ** 30, 2 ** 30, 1]],
    ['a cast', (x) => ops.cast(ops.multiply(ops.cast(x, 'float32'), 4), 'int64'), [1, 2 ** 30]],
    ['a cast of what is no number', (x) => ops.cast(ops.log(ops.cast(x, 'float32')), 'int64'), [1, -1]],
  ])('%s that int32 cannot hold is an error', async (_, model, data) => {
    await expect(run(engine, { x: int64(data) }, ({ x }) => model(x))).rejects.toThrow(
      /the program failed at "\w+" \(\w+\): an int64 does not fit into int32/,
    );
  });

  it('int64 is exact up to the edges of int32', async () => {
    const x = int64([16_777_217, 46_340, -46_340]);
    expect((await run(engine, { x }, ({ x }) => ops.multiply(x, 127))).data).toEqual(
      BigInt64Array.of(2_130_706_559n, 5_885_180n, -5_885_180n),
    );
    expect((await run(engine, { x }, ({ x }) => ops.sum(x, [0]))).data).toEqual(
      BigInt64Array.of(16_777_217n),
    );
    const edges = await run(engine, { x: int64([2 ** 31 - 1, -(2 ** 31)]) }, ({ x }) => ops.max(x, [0]));
    expect(edges.data).toEqual(BigInt64Array.of(2n ** 31n - 1n));
  });

  it('a cast gives numbers of its own dtype, rounded to it', async () => {
    const floats = await run(engine, { x: int32([2], [16_777_217, -1]) }, ({ x }) => ops.cast(x, 'float32'));
    expect(floats.data).toEqual(Float32Array.of(16_777_216, -1));
    const flags = await run(engine, { x: float32([3], [0, -0.5, nan]) }, ({ x }) => ops.cast(x, 'bool'));
    expect(flags.data).toEqual(Uint8Array.of(0, 1, 1));
    const none = await run(engine, { x: int32([2, 0], []) }, ({ x }) => ops.sum(x, [1]));
    expect(none.data).toEqual(Int32Array.of(0, 0));
  });

  it.each<[string, (x: Value) => Value]>([
    ['max', (x) => ops.max(x, [1])],
    ['sum', (x) => ops.sum(x, [1])],
    ['softmax', (x) => ops.softmax(x)],
    ['logSoftmax', (x) => ops.logSoftmax(x)],
    ['expand', (x) => ops.expand(ops.slice(x, 1, 0, 1), [4, 3])],
    ['matmul', (x) => ops.matmul(x, x, { transposeB: true })],
    ['rmsNorm', (x) => ops.rmsNorm(x, ops.filled('float32', [3], 1), 1e-6)],
    ['where', (x) => ops.where(ops.less(x, 0), ops.negate(x), x)],
    ['less', (x) => ops.less(x, 1)],
    ['equal', (x) => ops.equal(x, x)],
    ['silu', (x) => ops.silu(x)],
  ])('%s of NaN and infinities is what the reference says', async (_, model) => {
    const x = float32([4, 3], [1, nan, 3, -inf, 0, 1, inf, 1, 2, 0, -200, 200]);
    const expected = interpret(
      trace({ x }, ({ x }) => ({ result: model(x) })),
      { x },
    ).result;
    const { data } = await run(engine, { x }, ({ x }) => model(x));
    for (const [at, value] of (expected?.data ?? []).entries()) {
      // toBeCloseTo takes equal infinities for far apart.
      if (Number.isFinite(value)) expect(data[at]).toBeCloseTo(value, 4);
      else expect(data[at]).toBe(value);
    }
  });

  it('takes scalars, and six axes in every primitive that looks along one', async () => {
    const numbers = Float32Array.from({ length: 72 }, (_, at) => ((at * 37) % 23) - 11);
    const shape = [2, 1, 3, 2, 2, 3];
    const feeds = {
      x: float32(shape, numbers),
      odd: int32(
        shape,
        Int32Array.from(numbers, (value) => value & 1),
      ),
      last: int32([], [-1]),
      scalar: float32([], [2]),
    };
    const model = ({ x, odd, last, scalar }: Readonly<Record<keyof typeof feeds, Value>>) =>
      ops.concat(
        [
          ops.slice(x, 3, 1, 2),
          ops.reshape(ops.gather(x, last, 3), [2, 1, 3, 1, 2, 3]),
          ops.gatherElements(x, odd, 3),
          ops.scatterAdd(x, odd, x, 3),
          ops.softmax(x),
          ops.topK(x, 3).values,
          ops.expand(ops.max(x, [3], { keepDimensions: true }), shape),
          ops.multiply(x, ops.exp(ops.sum(scalar))),
          ops.multiply(x, ops.reshape(ops.max(ops.expand(scalar, [1]), [0]), [])),
        ],
        3,
      );
    const expected = interpret(
      trace(feeds, (inputs) => ({ result: model(inputs) })),
      feeds,
    ).result;
    const { data } = await run(engine, feeds, model);
    expect(data).toHaveLength(expected?.data.length ?? -1);
    for (const [at, value] of (expected?.data ?? []).entries()) expect(data[at]).toBeCloseTo(value, 3);
  });
});

describe('memory of WebAssembly that is full', () => {
  it('is an error that says what to do, not a tensor written over another', async () => {
    const engine = engines.wasm;
    const x = float32([250_000], new Float32Array(250_000).fill(1));
    const before = await run(engine, { x }, ({ x }) => ops.add(x, 1));
    const { wasm } = tf.backend() as unknown as {
      wasm: { _malloc(bytes: number): number; _free(address: number): void };
    };
    // Pages that nobody writes to take no memory of the machine.
    const taken: number[] = [];
    for (let bytes = 2 ** 30; bytes >= 2 ** 16; bytes /= 2) {
      for (;;) {
        try {
          taken.push(wasm._malloc(bytes));
        } catch {
          break;
        }
      }
    }
    const { numTensors } = tf.memory();
    try {
      await expect(run(engine, { x }, ({ x }) => ops.add(x, 1))).rejects.toThrow(
        /the program failed at input "x": out of memory; lower train.batchSize .*\nWebAssembly has no 1000000 bytes left/,
      );
      expect(tf.memory().numTensors).toBe(numTensors);
    } finally {
      for (const address of taken) wasm._free(address);
    }
    expect((await run(engine, { x }, ({ x }) => ops.add(x, 1))).data).toEqual(before.data);
  });
});

describe('a backend of another version', () => {
  it.each([
    ['wasm', { version_wasm: '4.20.0' }],
    ['cpu', { version_cpu: '4.20.0' }],
  ] as const)('is refused by name: %s', async (backend, module) => {
    const load = (name: string) => (name.endsWith(backend) ? Promise.resolve(module) : import(name));
    await expect(tfjsEngine({ backend, load })).rejects.toThrow(
      /tfjs-backend-\w+ 4\.20\.0 does not belong to the installed @tensorflow\/tfjs-core 4\.22\.0\nInstall the same version/,
    );
  });
});
