import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { random } from '../../src/config/random.ts';
import { plain } from '../../src/engine/engine.ts';
import { onnxEngine } from '../../src/engine/onnx/engine.ts';
import { tfjsEngine } from '../../src/engine/tfjs/engine.ts';
import { gradients } from '../../src/tensor/gradients.ts';
import { castTensor } from '../../src/tensor/halfPrecision.ts';
import { interpret } from '../../src/tensor/interpret.ts';
import * as ops from '../../src/tensor/operations.ts';
import { type HalfType, halfTypes } from '../../src/tensor/precision.ts';
import type { Value } from '../../src/tensor/program.ts';
import { float32 } from '../../src/tensor/tensor.ts';
import { trace, withPrecision } from '../../src/tensor/trace.ts';
import { gradientProgram, lossScaleInput } from '../../src/train/step.ts';
import { cases } from '../tensor/arbitrary.ts';
import { drawCase } from './primitiveCase.ts';
import { batch, relative, type Step, smallOptions, smallStep } from './smallStep.ts';

const engine = onnxEngine();
afterAll(() => engine.dispose());

/** Half a unit in the last place, relative: what one rounding may do. */
const rounding: Readonly<Record<HalfType, number>> = { float16: 2 ** -11, bfloat16: 2 ** -8 };

/** What a tensor is when every number is rounded to the half type. */
function rounded(values: Float32Array, half: HalfType): Float32Array {
  const narrow = castTensor(float32([values.length], values), half);
  return (narrow && castTensor(narrow, 'float32'))?.data as Float32Array;
}

describe.each(halfTypes)('%s on the cpu', (half) => {
  // Inputs enter in the half type, so that every rule of the policy sees it; the numbers of the cases are near one.
  it.each(Object.entries(cases))(
    '%s and its gradient, against the float64 reference',
    async (primitive, draw) => {
      for (let seed = 0; seed < 2; seed++) {
        const drawn = draw(random(seed, primitive));
        const { program: plainProgram, feeds } = drawCase(draw, random(seed, primitive));
        const inputs = Object.fromEntries(
          [...plainProgram.inputs].map(([name, { dtype, shape }]) => [name, { dtype, shape }]),
        );
        const program = trace<string>(inputs, (values) =>
          withPrecision(half, () => {
            const entered = Object.fromEntries(
              Object.entries(values).map(([name, value]) => [
                name,
                value.dtype === 'float32' ? ops.cast(value, half) : value,
              ]),
            );
            const y = ops.cast(drawn.model(entered), 'float32');
            const of = drawn.differentiable.map((name) => values[name] as Value);
            const parts = gradients(ops.sum(ops.multiply(y, y)), of);
            return { y, ...Object.fromEntries(parts.map((part, at) => [`d${at}`, part])) };
          }),
        );
        const expected = interpret(program, feeds);
        const executable = await engine.compile(program);
        const outputs = await executable.run(feeds);
        await executable.dispose();
        for (const [name, { data }] of Object.entries(expected)) {
          const found = plain(outputs, name);
          expect(found.dtype).toBe('float32');
          const largest = data.reduce((most, value) => Math.max(most, Math.abs(value)), 1);
          for (const [at, value] of data.entries())
            expect(Math.abs(Number(found.data[at]) - value)).toBeLessThan(12 * rounding[half] * largest);
        }
      }
    },
  );

  it.each(['disabled', 'all'] as const)(
    'rounds every factor and every product, with optimization %s',
    async (optimization) => {
      const rows = 5;
      const stream = random('product');
      const draw = () => Float32Array.from({ length: rows * rows }, () => stream.normal());
      const [a, b] = [draw(), draw()];
      const own = onnxEngine({ optimization });
      const shape = [rows, rows] as const;
      const program = trace({ a: { dtype: 'float32', shape }, b: { dtype: 'float32', shape } }, (values) =>
        withPrecision(half, () => {
          const product = ops.matmul(values.a, values.b);
          return {
            product: ops.cast(product, 'float32'),
            doubled: ops.cast(ops.multiply(product, product), 'float32'),
          };
        }),
      );
      const outputs = await (await own.compile(program)).run({ a: float32(shape, a), b: float32(shape, b) });
      await own.dispose();
      const [product, doubled] = ['product', 'doubled'].map(
        (name) => plain(outputs, name).data as Float32Array,
      ) as [Float32Array, Float32Array];
      const [wideA, wideB] = [rounded(a, half), rounded(b, half)];
      for (const [at, value] of product.entries()) {
        let total = 0;
        for (let k = 0; k < rows; k++)
          total +=
            (wideA[Math.floor(at / rows) * rows + k] as number) * (wideB[k * rows + (at % rows)] as number);
        expect(Math.abs(value - total)).toBeLessThanOrEqual(rounding[half] * Math.abs(total) * 1.001 + 1e-6);
      }
      expect(product).toEqual(rounded(product, half));
      expect(doubled).toEqual(
        rounded(
          product.map((value) => value * value),
          half,
        ),
      );
    },
  );
});

describe('a whole training step in a half type', () => {
  let whole: Step;
  beforeAll(async () => {
    whole = await smallStep(engine);
  });
  const cosine = (a: readonly number[], b: readonly number[]) => {
    const dot = (x: readonly number[], y: readonly number[]) =>
      x.reduce((total, value, at) => total + value * (y[at] as number), 0);
    return dot(a, b) / Math.sqrt(dot(a, a) * dot(b, b));
  };
  // Products of eight layers' worth of roundings: a few of them, relative to the loss.
  it.each([
    { half: 'float16', loss: 1e-3, each: 0.9995 },
    { half: 'bfloat16', loss: 5e-3, each: 0.995 },
  ] as const)('$half: the loss and the gradients of float32', async ({ half, loss, each }) => {
    const found = await smallStep(engine, half);
    const { loss: [expected = 0] = [], ...gradient } = whole.gradients;
    expect(Math.abs((found.gradients.loss?.[0] as number) / expected - 1)).toBeLessThan(loss);
    const all = Object.keys(gradient);
    expect(all.length).toBeGreaterThan(50);
    for (const name of all)
      expect(cosine(gradient[name] as number[], found.gradients[name] as number[])).toBeGreaterThan(each);
    const joined = (step: Step) => all.flatMap((name) => step.gradients[name] as number[]);
    expect(cosine(joined(whole), joined(found))).toBeGreaterThan(0.999);
  });

  it('bfloat16: three steps of training stay beside those of float32', async () => {
    const found = await smallStep(engine, 'bfloat16');
    for (const [step, loss] of whole.losses.entries())
      expect(Math.abs((found.losses[step] as number) / loss - 1)).toBeLessThan(5e-3);
    // Biases begin at zero: what they are after three steps of Adam is mostly the sign of noise.
    for (const [name, values] of Object.entries(whole.parameters))
      if (name.endsWith('proj.weight'))
        expect(relative(values, found.parameters[name] as number[])).toBeLessThan(5e-2);
  });
});

it.each(halfTypes)('%s: activations that are computed again give the same bits', async (half) => {
  const options = smallOptions(engine, 1, half);
  const scale = half === 'float16' ? { [lossScaleInput]: float32([], [8]) } : {};
  const feeds = { ...Object.fromEntries(options.trainable), ...scale, ...batch.feeds };
  const gradientsOf = async (recompute: readonly number[]) => {
    const program = gradientProgram({ ...options, recompute });
    const executable = await engine.compile(program);
    const outputs = await executable.run(feeds);
    await executable.dispose();
    return { nodes: program.nodes.length, outputs };
  };
  const [held, again] = [await gradientsOf([]), await gradientsOf([1, 2, 3])];
  expect(again.nodes).toBeGreaterThan(held.nodes);
  expect(again.outputs).toEqual(held.outputs);
});

describe('what an engine says of half types', () => {
  it('the cpu emulates them', async () => {
    for (const half of halfTypes) expect(await engine.arithmetic(half)).toBe('emulated');
  });

  it('TensorFlow.js has none', async () => {
    const tfjs = await tfjsEngine({ backend: 'cpu' });
    await expect(tfjs.arithmetic('float16')).rejects.toThrow('TensorFlow.js does not have float16');
    await tfjs.dispose();
  });
});
