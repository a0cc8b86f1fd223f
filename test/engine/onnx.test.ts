import { mkdtemp, readdir, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import fc from 'fast-check';
import { InferenceSession, Tensor as OrtTensor } from 'onnxruntime-node';
import { afterAll, describe, expect, it } from 'vitest';
import { random } from '../../src/config/random.ts';
import { plain } from '../../src/engine/engine.ts';
import { onnxEngine } from '../../src/engine/onnx/engine.ts';
import { programToOnnx } from '../../src/engine/onnx/lower.ts';
import { gradients } from '../../src/tensor/gradients.ts';
import { interpret } from '../../src/tensor/interpret.ts';
import * as ops from '../../src/tensor/operations.ts';
import { simplify } from '../../src/tensor/passes.ts';
import { isLeaf, type Value } from '../../src/tensor/program.ts';
import { schedule } from '../../src/tensor/schedule.ts';
import { float32, int32, sizeOf, type Tensor } from '../../src/tensor/tensor.ts';
import { trace } from '../../src/tensor/trace.ts';
import { cases } from '../tensor/arbitrary.ts';
import { drawCase } from './primitiveCase.ts';

const engine = onnxEngine({ threads: 2 });
afterAll(() => engine.dispose());

describe('every primitive on ONNX Runtime against the float64 reference', () => {
  for (const [primitive, draw] of Object.entries(cases)) {
    it(primitive, async () => {
      const check = async (seed: number) => {
        const { program, feeds } = drawCase(draw, random(seed));
        const expected = interpret(program, feeds).y?.data ?? [];
        const executable = await engine.compile(program);
        const actual = plain(await executable.run(feeds), 'y').data as Float32Array;
        await executable.dispose();
        expect(actual).toHaveLength(expected.length);
        for (const [at, value] of expected.entries()) expect(actual[at]).toBeCloseTo(value, 4);
      };
      await fc.assert(fc.asyncProperty(fc.integer(), check), { numRuns: 6, seed: 11 });
    });
  }
});

describe('sizes that reach the threaded kernels', () => {
  it('scatterAdd with repeated indices is right every time at a million elements', async () => {
    const [rows, width, tokens] = [4096, 256, 4096];
    const stream = random('scatter');
    const ids = Int32Array.from({ length: tokens }, (_, at) => (at % 2 === 0 ? 3 : stream.integer(rows)));
    const updates = Float32Array.from({ length: tokens * width }, () => stream.integer(8));
    const expected = new Float32Array(rows * width);
    for (let token = 0; token < tokens; token++) {
      for (let column = 0; column < width; column++) {
        const target = (ids[token] as number) * width + column;
        expected[target] = (expected[target] as number) + (updates[token * width + column] as number);
      }
    }
    const program = trace(
      { ids: { dtype: 'int32', shape: [tokens, 1] }, updates: { dtype: 'float32', shape: [tokens, width] } },
      ({ ids, updates }) => ({
        sums: ops.scatterAdd(
          ops.filled('float32', [rows, width], 0),
          ops.expand(ids, [tokens, width]),
          updates,
          0,
        ),
      }),
    );
    const executable = await engine.compile(program);
    for (let run = 0; run < 20; run++) {
      const { sums } = await executable.run({
        ids: int32([tokens, 1], ids),
        updates: float32([tokens, width], updates),
      });
      expect(Buffer.compare(Buffer.from((sums as Tensor).data.buffer), Buffer.from(expected.buffer))).toBe(0);
    }
  });

  it('matmul, softmax, sum and transpose agree with plain loops at a million elements', async () => {
    const [m, k] = [1024, 1024];
    const stream = random('large');
    const a = Float32Array.from({ length: m * k }, () => stream.normal());
    const program = trace({ a: { dtype: 'float32', shape: [m, k] } }, ({ a }) => ({
      product: ops.matmul(a, a, { transposeB: true, scale: 0.5 }),
      softmax: ops.softmax(a),
      columns: ops.sum(a, [0]),
      transposed: ops.transpose(ops.multiply(a, 1), [1, 0]),
    }));
    const executable = await engine.compile(program);
    const feeds = { a: float32([m, k], a) };
    const first = await executable.run(feeds);
    const data = (name: string) => plain(first, name).data as Float32Array;
    for (const [row, column] of [
      [0, 0],
      [17, 923],
      [1023, 1],
      [512, 512],
    ] as const) {
      let [dot, total, top] = [0, 0, Number.NEGATIVE_INFINITY];
      for (let at = 0; at < k; at++) dot += (a[row * k + at] as number) * (a[column * k + at] as number);
      expect(data('product')[row * m + column]).toBeCloseTo(0.5 * dot, 3);
      for (let at = 0; at < k; at++) top = Math.max(top, a[row * k + at] as number);
      for (let at = 0; at < k; at++) total += Math.exp((a[row * k + at] as number) - top);
      expect(data('softmax')[row * k + column]).toBeCloseTo(
        Math.exp((a[row * k + column] as number) - top) / total,
        6,
      );
      let sum = 0;
      for (let at = 0; at < m; at++) sum += a[at * k + column] as number;
      expect(data('columns')[column]).toBeCloseTo(sum, 3);
      expect(data('transposed')[column * m + row]).toBe(a[row * k + column]);
    }
    for (let run = 0; run < 5; run++) {
      const again = await executable.run(feeds);
      for (const name of Object.keys(first)) {
        const bytes = (value: Tensor) =>
          Buffer.from(value.data.buffer, value.data.byteOffset, value.data.byteLength);
        expect(Buffer.compare(bytes(plain(again, name)), bytes(plain(first, name)))).toBe(0);
      }
    }
  });
});

describe('the engine', () => {
  const program = trace({ x: { dtype: 'float32', shape: [2, 2] } }, ({ x }) => ({
    y: ops.matmul(ops.exp(x), x, { transposeA: true, scale: 2 }),
    z: ops.sum(x, [1]),
  }));
  const x = float32([2, 2], [0.1, -0.2, 0.3, 0.4]);

  it('gives the same numbers at every optimization level', async () => {
    const results = new Map<string, Float32Array>();
    for (const optimization of ['disabled', 'basic', 'extended', 'all'] as const) {
      const other = onnxEngine({ optimization });
      const executable = await other.compile(program);
      results.set(optimization, plain(await executable.run({ x }), 'y').data as Float32Array);
      await other.dispose();
    }
    for (const result of results.values()) expect(result).toEqual(results.get('disabled'));
  });

  it('writes outputs where the caller wants them, run after run', async () => {
    const executable = await engine.compile(program);
    const fresh = await executable.run({ x });
    const y = float32([2, 2], [9, 9, 9, 9]);
    const outputs = await executable.run({ x }, { y });
    expect(plain(outputs, 'y').data).toBe(y.data);
    expect(outputs).toEqual(fresh);
    await executable.run({ x: float32([2, 2], [0, 0, 0, 0]) }, { y });
    expect([...y.data]).toEqual([0, 0, 0, 0]);
    // What was returned without a place of its own is not written over.
    expect(plain(fresh, 'y').data).not.toBe(y.data);
    await expect(executable.run({ x }, { w: y })).rejects.toThrow('the program has no output "w"');
    await expect(executable.run({ x }, { z: y })).rejects.toThrow(
      'output "z" is float32[2], it does not fit float32[2, 2]',
    );
  });

  it('adds into a feed where it lies, and refuses to write over one that is still read', async () => {
    const rows = { dtype: 'float32', shape: [2 ** 16] } as const;
    const numbers = () =>
      float32(
        rows.shape,
        Float32Array.from({ length: 2 ** 16 }, (_, at) => at),
      );
    const sums = await engine.compile(
      trace({ sum: rows, x: rows }, ({ sum, x }) => ({ y: ops.add(sum, ops.exp(x)) })),
    );
    const total = numbers();
    const zero = float32(rows.shape, new Float32Array(2 ** 16));
    await sums.run({ sum: total, x: zero }, { y: total });
    await sums.run({ sum: total, x: zero }, { y: total });
    expect(total.data.every((value, at) => value === at + 2)).toBe(true);

    const programs = [
      trace({ sum: rows, x: rows }, ({ sum, x }) => ({ y: ops.add(sum, x), z: ops.exp(sum) })),
      trace({ sum: rows, x: rows }, ({ sum, x }) => ({ y: ops.add(x, sum) })),
      trace({ sum: rows, x: rows }, ({ sum, x }) => ({ y: ops.add(ops.exp(sum), x) })),
    ];
    for (const program of programs) {
      const executable = await engine.compile(program);
      const before = numbers();
      await expect(executable.run({ sum: before, x: zero }, { y: before })).rejects.toThrow(
        'output "y" cannot be written over input "sum"',
      );
      expect(before.data).toEqual(numbers().data);
      await executable.dispose();
    }
    await sums.dispose();
  });

  it('runs the nodes in the order that decides the memory', async () => {
    const folder = await mkdtemp(join(tmpdir(), 'palkit-order-'));
    const deep = trace({ x: { dtype: 'float32', shape: [8, 8] } }, ({ x }) => {
      let hidden = x;
      for (let layer = 0; layer < 4; layer++) hidden = ops.softmax(ops.matmul(ops.silu(hidden), x));
      const [dx] = gradients(ops.sum(ops.multiply(hidden, hidden)), [x]);
      return { dx: dx as Value, hidden };
    });
    const session = await InferenceSession.create(programToOnnx(deep), {
      graphOptimizationLevel: 'disabled',
      enableProfiling: true,
      profileFilePrefix: join(folder, 'profile'),
    });
    await session.run({ x: new OrtTensor('float32', new Float32Array(64).fill(0.1), [8, 8]) });
    session.endProfiling();
    const [file] = await readdir(folder);
    const events = JSON.parse(await readFile(join(folder, file as string), 'utf8')) as {
      cat: string;
      name: string;
    }[];
    await rm(folder, { recursive: true });
    const ran = events
      .filter(({ cat, name }) => cat === 'Node' && name.endsWith('_kernel_time'))
      .map(({ name }) => name.slice(0, -'_kernel_time'.length));
    const expected = schedule(simplify(deep)).nodes.filter((node) => !isLeaf(node));
    const outputs = new Map([...simplify(deep).outputs].map(([name, { id }]) => [id, name]));
    expect(ran).toEqual(expected.map(({ outputs: [value] }) => outputs.get(value?.id ?? -1) ?? value?.name));
    await session.release();
  });

  it('keeps outputs on the device and reads them back', async () => {
    const step = trace({ state: { dtype: 'float32', shape: [3] } }, ({ state }) => ({
      next: ops.multiply(state, 2),
    }));
    const executable = await engine.compile(step, { keepOnDevice: ['next'] });
    let state: Awaited<ReturnType<typeof executable.run>>[string] = float32([3], [1, 2, 3]);
    for (let run = 0; run < 4; run++) state = (await executable.run({ state })).next as typeof state;
    expect(() => plain({ state }, 'state')).toThrow('stayed on the device');
    const read = await engine.read({ value: state as never });
    expect(read.value?.data).toEqual(Float32Array.of(16, 32, 48));
  });

  it('names the input that is missing, unknown or of another shape', async () => {
    const executable = await engine.compile(program);
    await expect(executable.run({})).rejects.toThrow('input "x" is missing');
    await expect(executable.run({ x: float32([4], [1, 2, 3, 4]) })).rejects.toThrow(
      'input "x" is float32[4], the program takes float32[2, 2]',
    );
    await expect(executable.run({ x, other: x })).rejects.toThrow('no input "other"');
  });

  it('names the program value at which a run fails', async () => {
    const lookup = trace(
      { ids: { dtype: 'int32', shape: [1] }, table: { dtype: 'float32', shape: [2, 1] } },
      (v) => ({
        y: ops.exp(ops.gather(v.table, v.ids, 0)),
      }),
    );
    const executable = await engine.compile(lookup);
    const run = executable.run({ ids: int32([1], [9]), table: float32([2, 1], [1, 2]) });
    await expect(run).rejects.toThrow(/at "gather" \(gather\)/);
  });

  it('refuses an input and an output of one name', async () => {
    const clash = trace({ w: { dtype: 'float32', shape: [1] } }, ({ w }: { w: Value }) => ({
      w: ops.exp(w),
    }));
    await expect(engine.compile(clash)).rejects.toThrow('"w" is the name of an input and of an output');
  });

  it('runs programs whose size is that of a scalar', async () => {
    const scalar = trace({ x: { dtype: 'float32', shape: [] } }, ({ x }) => ({
      y: ops.max(ops.expand(x, [2, 2])),
    }));
    const executable = await engine.compile(scalar);
    const y = plain(await executable.run({ x: float32([], [3]) }), 'y');
    expect([y.shape, sizeOf(y.shape), ...(y.data as Float32Array)]).toEqual([[], 1, 3]);
  });
});
