import * as tf from '@tensorflow/tfjs-core';
import fc from 'fast-check';
import { afterAll, describe, expect, it } from 'vitest';
import { random } from '../../src/config/random.ts';
import { type DeviceTensor, type Engine, type Feed, plain } from '../../src/engine/engine.ts';
import { onnxEngine } from '../../src/engine/onnx/engine.ts';
import { tfjsEngine } from '../../src/engine/tfjs/engine.ts';
import { interpret } from '../../src/tensor/interpret.ts';
import * as ops from '../../src/tensor/operations.ts';
import type { Value } from '../../src/tensor/program.ts';
import { float32, int32, type Tensor, tensor } from '../../src/tensor/tensor.ts';
import { trace } from '../../src/tensor/trace.ts';
import { cases } from '../tensor/arbitrary.ts';
import { drawCase } from './primitiveCase.ts';
import { relative, smallStep } from './smallStep.ts';

const witness = onnxEngine({ threads: 1 });
const engines = { wasm: await tfjsEngine({ backend: 'wasm' }), cpu: await tfjsEngine({ backend: 'cpu' }) };
afterAll(() => Promise.all([witness, ...Object.values(engines)].map((engine) => engine.dispose())));

describe.each(Object.entries(engines))(
  'every primitive on %s against the float64 reference and ONNX',
  (_, engine) => {
    for (const [primitive, draw] of Object.entries(cases)) {
      it(primitive, async () => {
        const check = async (seed: number) => {
          const { program, feeds } = drawCase(draw, random(seed));
          const results = [];
          for (const one of [engine, witness]) {
            const executable = await one.compile(program);
            results.push(plain(await executable.run(feeds), 'y'));
            await executable.dispose();
          }
          const [actual, other] = results as [Tensor, Tensor];
          expect(actual.shape).toEqual(other.shape);
          const expected = interpret(program, feeds).y?.data ?? [];
          expect(actual.data).toHaveLength(expected.length);
          for (const [at, value] of expected.entries()) {
            expect(actual.data[at]).toBeCloseTo(value, 4);
            expect(actual.data[at]).toBeCloseTo(other.data[at] as number, 4);
          }
        };
        await fc.assert(fc.asyncProperty(fc.integer(), check), { numRuns: 12, seed: 11 });
      });
    }
  },
);

/** Runs a model of some plain inputs on an engine; the outputs' data as numbers. */
async function evaluated<Name extends string>(
  engine: Engine,
  feeds: Readonly<Record<Name, Tensor>>,
  model: (inputs: Readonly<Record<Name, Value>>) => Record<string, Value>,
): Promise<Record<string, number[]>> {
  const executable = await engine.compile(trace(feeds, model));
  const outputs = await executable.run(feeds);
  await executable.dispose();
  return Object.fromEntries(
    Object.keys(outputs).map((name) => [
      name,
      // Without the sign of zeros, which integers do not have.
      Array.from(plain(outputs, name).data as Float32Array, (value) => Number(value) + 0),
    ]),
  );
}

/** Checks a model of exact numbers against the reference. */
async function agree<Name extends string>(
  engine: Engine,
  feeds: Readonly<Record<Name, Tensor>>,
  model: (inputs: Readonly<Record<Name, Value>>) => Record<string, Value>,
): Promise<void> {
  const expected = interpret(trace(feeds, model), feeds);
  const numbers = Object.entries(expected).map(([name, { data }]) => [name, Array.from(data, (x) => x + 0)]);
  expect(await evaluated(engine, feeds, model)).toEqual(Object.fromEntries(numbers));
}

const bool = (shape: number[], data: number[]) => tensor('bool', shape, Uint8Array.from(data));
const int64 = (shape: number[], data: number[]) => tensor('int64', shape, BigInt64Array.from(data, BigInt));
const sequence = (size: number) => Array.from({ length: size }, (_, at) => ((at * 37) % 23) - 11);

describe.each(Object.entries(engines))('what the kernels of %s must be made to do', (_, engine) => {
  it.each([
    ['int32', int32([2, 3, 2], sequence(12)), int32([3, 1], [5, -2, 0])],
    ['int64', int64([2, 3, 2], sequence(12)), int64([3, 1], [5, -2, 0])],
    [
      'bool',
      bool(
        [2, 3, 2],
        sequence(12).map((value) => value & 1),
      ),
      bool([3, 1], [1, 0, 1]),
    ],
  ])('moves and compares %s', async (_, x, y) => {
    const feeds = { x, y, condition: bool([2, 1, 1], [1, 0]), ids: int32([2], [2, -1]) };
    const model = ({ x, y, condition, ids }: Readonly<Record<string, Value>>) => {
      const [data, other] = [x as Value, y as Value];
      return {
        where: ops.where(condition as Value, data, other),
        equal: ops.equal(data, other),
        expand: ops.expand(other, [2, 3, 2]),
        transpose: ops.transpose(data, [2, 0, 1]),
        slice: ops.slice(data, 1, 1, 3),
        concat: ops.concat([data, data], 2),
        gather: ops.gather(data, ids as Value, 1),
        elements: ops.gatherElements(ops.reshape(data, [4, 3]), ops.expand(ids as Value, [4, 2]), 1),
        floats: ops.cast(data, 'float32'),
        flags: ops.cast(data, 'bool'),
        less: ops.less(ops.cast(data, 'int32'), ops.cast(other, 'int32')),
        ...(data.dtype !== 'bool' && {
          sum: ops.sum(data, [0, 2]),
          max: ops.max(data, [1]),
          add: ops.add(data, other),
          product: ops.multiply(ops.subtract(data, other), other),
        }),
      };
    };
    await agree(engine, feeds, model);
  });

  it('broadcasts up to six axes', async () => {
    const a = float32([2, 1, 3, 1, 2, 1], sequence(12));
    const b = float32([2, 2, 1, 2, 1, 3], sequence(24));
    const feeds = { a, b };
    const model = ({ a, b }: Readonly<Record<string, Value>>) => ({
      sum: ops.add(a as Value, b as Value),
      less: ops.less(a as Value, b as Value),
      where: ops.where(ops.less(a as Value, 0), a as Value, b as Value),
      moved: ops.transpose(ops.multiply(a as Value, b as Value), [5, 3, 1, 4, 2, 0]),
      reduced: ops.sum(ops.multiply(a as Value, b as Value), [1, 4]),
      padded: ops.pad(a as Value, 4, 1, 2),
    });
    await agree(engine, feeds, model);
  });

  it('casts numbers to booleans by whether they are zero, and cuts fractions off', async () => {
    const x = float32([5], [0, 0.4, -0.4, 256, -2.9]);
    const { flags, whole } = await evaluated(engine, { x }, ({ x }) => ({
      flags: ops.cast(x, 'bool'),
      whole: ops.cast(x, 'int32'),
    }));
    expect(flags).toEqual([0, 1, 1, 1, 1]);
    expect(whole?.map((value) => value + 0)).toEqual([0, 0, 0, 256, -2]);
  });

  it('gives the lower index of a tie in topK', async () => {
    const x = float32([2, 9], [3, 7, 7, 1, 7, 3, 7, 0, 7, ...new Array<number>(9).fill(2)]);
    for (const k of [1, 3, 6, 9]) {
      const { indices } = await evaluated(engine, { x }, ({ x }) => ({ indices: ops.topK(x, k).indices }));
      expect(indices).toEqual(
        [[1, 2, 4, 6, 8, 0, 5, 3, 7].slice(0, k), [...Array(9).keys()].slice(0, k)].flat(),
      );
    }
  });

  it('adds up repeated indices', async () => {
    const [rows, width, tokens] = [64, 16, 2048];
    const ids = Int32Array.from({ length: tokens }, (_, at) => (at % 2 === 0 ? 3 : (at * 7) % rows));
    const updates = Float32Array.from({ length: tokens * width }, (_, at) => at % 8);
    const expected = new Array<number>(rows * width).fill(0);
    for (let at = 0; at < updates.length; at++) {
      const target = (ids[Math.floor(at / width)] as number) * width + (at % width);
      expected[target] = (expected[target] as number) + (updates[at] as number);
    }
    const feeds = { ids: int32([tokens, 1], ids), updates: float32([tokens, width], updates) };
    const { sums } = await evaluated(engine, feeds, ({ ids, updates }) => ({
      sums: ops.scatterAdd(
        ops.filled('float32', [rows, width], 0),
        ops.expand(ids, [tokens, width]),
        updates,
        0,
      ),
    }));
    expect(sums).toEqual(expected);
  });

  it('multiplies large stacks, each factor transposed or shared', async () => {
    const stream = random('matmul');
    const numbers = (size: number) => Float32Array.from({ length: size }, () => stream.normal());
    for (const [transposeA, transposeB] of [
      [false, false],
      [false, true],
      [true, false],
      [true, true],
    ] as const) {
      const a = float32(transposeA ? [3, 1, 70, 50] : [3, 1, 50, 70], numbers(3 * 50 * 70));
      const b = float32(transposeB ? [2, 60, 70] : [2, 70, 60], numbers(2 * 70 * 60));
      const one = float32(transposeB ? [1, 60, 70] : [1, 70, 60], numbers(70 * 60));
      const model = ({ a, b, one }: Readonly<Record<string, Value>>) => ({
        product: ops.matmul(a as Value, b as Value, { transposeA, transposeB, scale: 0.5 }),
        shared: ops.matmul(a as Value, one as Value, { transposeA, transposeB }),
      });
      const [own, other] = [
        await evaluated(engine, { a, b, one }, model),
        await evaluated(witness, { a, b, one }, model),
      ];
      for (const name of ['product', 'shared']) {
        expect(relative(other[name] as number[], own[name] as number[])).toBeLessThan(1e-5);
      }
    }
  });

  it('takes shapes without elements', async () => {
    const feeds = { x: float32([2, 0, 3], []), y: float32([2, 1, 3], sequence(6)), none: int32([0], []) };
    const model = ({ x, y, none }: Readonly<Record<string, Value>>) => ({
      sum: ops.sum(x as Value, [1]),
      joined: ops.concat([x as Value, y as Value], 1),
      exp: ops.exp(x as Value),
      product: ops.matmul(x as Value, x as Value, { transposeA: true }),
      rows: ops.gather(y as Value, none as Value, 2),
      same: ops.scatterAdd(ops.reshape(y as Value, [6]), none as Value, ops.reshape(x as Value, [0]), 0),
    });
    await agree(engine, feeds, model);
  });
});

describe('a training step on wasm and on ONNX Runtime', async () => {
  const [own, other] = [await smallStep(engines.wasm), await smallStep(witness)];

  it('gives the same loss and gradients', () => {
    expect(Object.keys(own.gradients)).toEqual(Object.keys(other.gradients));
    const deviations = Object.entries(other.gradients).map(([name, values]) =>
      relative(values, own.gradients[name] as number[]),
    );
    expect(deviations.length).toBeGreaterThan(50);
    expect(Math.max(...deviations)).toBeLessThan(1e-4);
  });

  it('gives the same three steps with state that stays on the device', () => {
    for (const [step, loss] of other.losses.entries()) expect(own.losses[step]).toBeCloseTo(loss, 4);
    for (const [name, values] of Object.entries(other.parameters)) {
      expect(relative(values, own.parameters[name] as number[])).toBeLessThan(1e-4);
    }
  });
});

describe('the tfjs engine', () => {
  const engine = engines.wasm;
  const program = trace({ x: { dtype: 'float32', shape: [2, 2] } }, ({ x }) => ({
    y: ops.matmul(ops.exp(x), x, { transposeA: true, scale: 2 }),
    z: ops.sum(x, [1]),
    same: x,
    fixed: ops.constant(float32([2], [1, 2])),
  }));
  const x = float32([2, 2], [0.1, -0.2, 0.3, 0.4]);

  it('keeps outputs on the device, takes them again without a copy, and reads them back', async () => {
    const step = trace({ state: { dtype: 'float32', shape: [3] } }, ({ state }) => ({
      next: ops.multiply(state, 2),
    }));
    const executable = await engine.compile(step, { keepOnDevice: ['next'] });
    let state: Feed = float32([3], [1, 2, 3]);
    const before = tf.memory().numTensors;
    for (let run = 0; run < 4; run++) {
      const { next } = (await executable.run({ state })) as Record<string, DeviceTensor>;
      if ('location' in state) state.dispose();
      state = next as DeviceTensor;
      expect(tf.memory().numTensors).toBe(before + 1);
    }
    expect(() => plain({ state }, 'state')).toThrow('stayed on the device');
    expect((await engine.read({ value: state as DeviceTensor })).value?.data).toEqual(
      Float32Array.of(16, 32, 48),
    );
    (state as DeviceTensor).dispose();
    await expect(executable.run({ state })).rejects.toThrow('"state" is a device tensor that was disposed');
    expect(tf.memory().numTensors).toBe(before);
  });

  it('gives back outputs that are inputs or constants as tensors of their own', async () => {
    const executable = await engine.compile(program, { keepOnDevice: ['same', 'fixed'] });
    const first = await executable.run({ x });
    const again = (await executable.run({ x: first.same as DeviceTensor })) as Record<string, DeviceTensor>;
    (first.same as DeviceTensor).dispose();
    (first.fixed as DeviceTensor).dispose();
    const read = await engine.read({ same: again.same as DeviceTensor, fixed: again.fixed as DeviceTensor });
    expect(read.same?.data).toEqual(x.data);
    expect(read.fixed?.data).toEqual(Float32Array.of(1, 2));
    expect(plain(await executable.run({ x }), 'z').data).toEqual(plain(first, 'z').data);
    await executable.dispose();
  });

  it('is not touched by what its caller writes into arrays later', async () => {
    for (const one of Object.values(engines)) {
      const [constant, input] = [Float32Array.of(1, 2), Float32Array.of(3, 4)];
      const sums = trace({ x: { dtype: 'float32', shape: [2] } }, ({ x }) => ({
        sum: ops.add(x, ops.constant(float32([2], constant))),
        same: x,
      }));
      const executable = await one.compile(sums, { keepOnDevice: ['same'] });
      constant.fill(100);
      const { sum, same } = (await executable.run({ x: float32([2], input) })) as {
        sum: Tensor;
        same: DeviceTensor;
      };
      input.fill(100);
      expect(sum.data).toEqual(Float32Array.of(4, 6));
      const read = await one.read({ same });
      read.same?.data.fill(0 as never);
      expect((await one.read({ same })).same?.data).toEqual(Float32Array.of(3, 4));
      same.dispose();
      await executable.dispose();
    }
  });

  it('writes outputs to the memory that is given', async () => {
    const executable = await engine.compile(program);
    const z = float32([2], [0, 0]);
    const outputs = await executable.run({ x }, { z });
    expect(outputs.z).toBe(z);
    expect(z.data[0]).toBeCloseTo(-0.1, 6);
    await expect(executable.run({ x }, { z: x })).rejects.toThrow(
      'output "z" is float32[2], it does not fit',
    );
    await expect(executable.run({ x }, { w: x })).rejects.toThrow('no output "w"');
  });

  it('holds no tensor more after many runs, failing ones too, and none after dispose', async () => {
    const before = tf.memory();
    const lookup = trace(
      { ids: { dtype: 'int32', shape: [2] }, table: { dtype: 'float32', shape: [3, 2] } },
      ({ ids, table }) => {
        const rows = ops.gather(ops.exp(table), ids, 0);
        const { values } = ops.topK(ops.softmax(ops.add(rows, ops.constant(float32([2], [1, 2])))), 1);
        return { values, rows: ops.rmsNorm(ops.silu(rows), ops.filled('float32', [2], 1), 1e-5) };
      },
    );
    const executable = await engine.compile(lookup);
    const table = float32([3, 2], [1, 2, 3, 4, 5, 6]);
    await executable.run({ ids: int32([2], [0, 2]), table });
    const { numTensors, numBytes } = tf.memory();
    for (let run = 0; run < 5; run++) {
      await executable.run({ ids: int32([2], [1, -1]), table });
      await expect(executable.run({ ids: int32([2], [1, 3]), table })).rejects.toThrow('index 3');
      expect(tf.memory()).toMatchObject({ numTensors, numBytes });
    }
    await executable.dispose();
    expect(tf.memory()).toMatchObject({ numTensors: before.numTensors, numBytes: before.numBytes });
    await expect(executable.run({ ids: int32([2], [1, 1]), table })).rejects.toThrow('was disposed');
  });

  it('computes on its own backend while another engine has set another one', async () => {
    const executables = await Promise.all(Object.values(engines).map((one) => one.compile(program)));
    const runs = await Promise.all(
      [...executables, ...executables].map((executable) => executable.run({ x })),
    );
    for (const outputs of runs) expect(plain(outputs, 'z').data).toEqual(plain(runs[0] ?? {}, 'z').data);
    for (const executable of executables) await executable.dispose();
  });

  it('names the input that is missing, unknown, of another shape, or of another engine', async () => {
    const executable = await engine.compile(program);
    await expect(executable.run({})).rejects.toThrow('input "x" is missing');
    await expect(executable.run({ x: float32([4], [1, 2, 3, 4]) })).rejects.toThrow(
      'input "x" is float32[4], the program takes float32[2, 2]',
    );
    await expect(executable.run({ x, other: x })).rejects.toThrow('no input "other"');
    await expect(engine.compile(program, { keepOnDevice: ['w'] })).rejects.toThrow('no output "w"');
    const elsewhere = await witness.compile(program, { keepOnDevice: ['same'] });
    const { same } = (await elsewhere.run({ x })) as Record<string, DeviceTensor>;
    await expect(executable.run({ x: same as DeviceTensor })).rejects.toThrow(
      '"x" is a device tensor of another engine',
    );
    const own = await engine.compile(program, { keepOnDevice: ['same'] });
    const kept = (await own.run({ x })).same as DeviceTensor;
    await expect(elsewhere.run({ x: kept })).rejects.toThrow('"x" is a device tensor of another engine');
    kept.dispose();
  });

  it('names the program value at which a run fails', async () => {
    for (const take of [
      (table: Value, ids: Value) => ops.gather(table, ids, 0),
      (table: Value, ids: Value) => ops.gatherElements(table, ids, 0),
      (table: Value, ids: Value) => ops.scatterAdd(table, ids, ops.cast(ids, 'float32'), 0),
    ]) {
      const lookup = trace(
        { ids: { dtype: 'int32', shape: [1, 1] }, table: { dtype: 'float32', shape: [2, 1] } },
        ({ ids, table }) => ({ y: ops.exp(take(table, ids)) }),
      );
      const executable = await engine.compile(lookup);
      const run = executable.run({ ids: int32([1, 1], [-3]), table: float32([2, 1], [1, 2]) });
      await expect(run).rejects.toThrow(/failed at "(\w+)" \(\1\): index -3 is outside of 0\.\.\d/);
      await executable.dispose();
    }
  });

  it.each(['float64', 'float16', 'bfloat16'] as const)('names a value that is %s', async (dtype) => {
    const input = trace({ x: { dtype, shape: [2] } }, ({ x }) => ({ y: ops.exp(x) }));
    await expect(engine.compile(input)).rejects.toThrow(`cannot compute "x" (input): it is ${dtype}`);
    const inside = trace({ x: { dtype: 'float32', shape: [2] } }, ({ x }) => ({
      y: ops.cast(ops.exp(ops.cast(x, dtype)), 'float32'),
    }));
    await expect(engine.compile(inside)).rejects.toThrow(`cannot compute "cast" (cast): it is ${dtype}`);
  });

  it('names a value with too many axes, and a division of integers', async () => {
    const deep = trace({ x: { dtype: 'float32', shape: [2] } }, ({ x }) => ({
      y: ops.reshape(x, [1, 1, 1, 1, 1, 1, 2]),
    }));
    await expect(engine.compile(deep)).rejects.toThrow(
      'cannot compute "reshape" (reshape): [1, 1, 1, 1, 1, 1, 2] has 7 axes; there are at most 6',
    );
    const quotient = trace({ x: { dtype: 'int64', shape: [2] } }, ({ x }) => ({ y: ops.divide(x, x) }));
    await expect(engine.compile(quotient)).rejects.toThrow('"divide" (divide): it divides integers');
  });

  it('takes int64 that fits into int32, and names what does not', async () => {
    const wide = trace({ x: { dtype: 'int64', shape: [2] } }, ({ x }) => ({
      y: ops.add(x, ops.constant(tensor('int64', [2], BigInt64Array.of(1n, -1n)))),
    }));
    const executable = await engine.compile(wide);
    const edges = tensor('int64', [2], BigInt64Array.of(2n ** 31n - 2n, -(2n ** 31n) + 1n));
    expect(plain(await executable.run({ x: edges }), 'y').data).toEqual(
      BigInt64Array.of(2n ** 31n - 1n, -(2n ** 31n)),
    );
    const beyond = tensor('int64', [2], BigInt64Array.of(0n, 2n ** 31n));
    await expect(executable.run({ x: beyond })).rejects.toThrow(
      'input "x": 2147483648 at 1 does not fit into int32',
    );
    const { numTensors } = tf.memory();
    const large = trace({}, () => ({
      small: ops.filled('float32', [2], 1),
      y: ops.constant(tensor('int64', [1], BigInt64Array.of(-(2n ** 31n) - 1n))),
    }));
    await expect(engine.compile(large)).rejects.toThrow(
      /the constant "constant_2": -2147483649 at 0 does not fit/,
    );
    expect(tf.memory().numTensors).toBe(numTensors);
  });
});

describe('the choice of a backend', () => {
  const missing = (name: string) =>
    Promise.reject(
      Object.assign(new Error(`Cannot find package '${name}'`), { code: 'ERR_MODULE_NOT_FOUND' }),
    );
  const without =
    (...absent: string[]) =>
    (name: string): Promise<unknown> =>
      absent.some((end) => name.endsWith(end)) ? missing(name) : import(name);

  it('takes the first that is there and says why', async () => {
    const auto = await tfjsEngine({ load: without('node', 'node-gpu') });
    expect(auto.description).toBe(
      'tfjs (wasm: @tensorflow/tfjs-node-gpu is not installed; @tensorflow/tfjs-node is not installed)',
    );
    const plainJs = await tfjsEngine({ load: without('node', 'node-gpu', 'wasm') });
    expect(plainJs.description).toContain('tfjs (cpu: ');
    expect(engines.wasm.description).toBe('tfjs (wasm: as asked for)');
  });

  it('never replaces one that was asked for', async () => {
    for (const backend of ['node-gpu', 'node', 'wasm', 'cpu'] as const) {
      const load = without('node', 'node-gpu', 'wasm', 'cpu');
      await expect(tfjsEngine({ backend, load })).rejects.toThrow(
        /is not installed\nInstall it: npm install @tensor/,
      );
    }
    await expect(tfjsEngine({ load: without('core') })).rejects.toThrow(
      '@tensorflow/tfjs-core is not installed',
    );
    await expect(tfjsEngine({ load: without('node', 'node-gpu', 'wasm', 'cpu') })).rejects.toThrow(
      'no backend of TensorFlow.js works here: @tensorflow/tfjs-node-gpu is not installed; ',
    );
  });

  it('tells a package that does not load or belongs to another version from one that is missing', async () => {
    const broken = (name: string) =>
      name.endsWith('node')
        ? Promise.reject(new Error('libtensorflow.so.2: cannot open\nmore'))
        : import(name);
    await expect(tfjsEngine({ backend: 'node', load: broken })).rejects.toThrow(
      '@tensorflow/tfjs-node is installed, but does not load: libtensorflow.so.2: cannot open',
    );
    const foreign = (name: string) => (name.endsWith('node') ? Promise.resolve({}) : import(name));
    await expect(tfjsEngine({ backend: 'node', load: foreign })).rejects.toThrow(
      /tfjs-node does not belong to the installed @tensorflow\/tfjs-core 4\./,
    );
  });

  it('refuses the GPU package where it computes on the CPU', async () => {
    // What tfjs-node-gpu registers, without its native code.
    const gpu = (name: string) => {
      if (!name.endsWith('node-gpu')) return import(name);
      const Backend = Object(tf.findBackend('cpu')).constructor as new () => tf.KernelBackend;
      tf.registerBackend('tensorflow', () => new Backend());
      return Promise.resolve({});
    };
    try {
      await expect(tfjsEngine({ backend: 'node-gpu', load: gpu })).rejects.toThrow(
        'tfjs-node-gpu finds no GPU',
      );
    } finally {
      tf.removeBackend('tensorflow');
    }
  });
});
