import { describe, expect, it } from 'vitest';
import { gradients } from '../../src/tensor/gradients.ts';
import { halfFromFloat32 } from '../../src/tensor/halfPrecision.ts';
import * as ops from '../../src/tensor/operations.ts';
import { simplify } from '../../src/tensor/passes.ts';
import { halfTypes } from '../../src/tensor/precision.ts';
import { printProgram } from '../../src/tensor/print.ts';
import type { NodeOf, Program, Value, ValueType } from '../../src/tensor/program.ts';
import { type DType, float32, type Shape } from '../../src/tensor/tensor.ts';
import { trace, withPrecision } from '../../src/tensor/trace.ts';

const type = (dtype: DType, shape: Shape): ValueType => ({ dtype, shape });

/** The types that a function of some inputs gives under a precision. */
function typesUnder(
  precision: 'float16' | 'bfloat16' | 'float32',
  inputs: Readonly<Record<string, ValueType>>,
  model: (inputs: Readonly<Record<string, Value>>) => Readonly<Record<string, Value>>,
): Record<string, DType> {
  const { outputs } = trace<string>(inputs, (values) => withPrecision(precision, () => model(values)));
  return Object.fromEntries([...outputs].map(([name, { dtype }]) => [name, dtype]));
}

const casts = ({ nodes }: Program) => nodes.filter(({ primitive }) => primitive === 'cast');

describe('under mixed precision', () => {
  for (const half of halfTypes) {
    it(`${half}: products are computed in it, sums and exponentials in float32, the rest in the widest type`, () => {
      const matrix = type('float32', [4, 4]);
      const found = typesUnder(half, { x: matrix, bias: type('float32', [4]) }, ({ x, bias }) => {
        const product = ops.matmul(x as Value, x as Value);
        return {
          product,
          moved: ops.transpose(ops.reshape(product, [2, 2, 4]), [1, 0, 2]),
          activated: ops.multiply(ops.silu(product), product),
          scaled: ops.multiply(product, 0.5),
          biased: ops.add(product, bias as Value),
          probabilities: ops.softmax(product),
          total: ops.sum(product),
          powers: ops.exp(product),
          normed: ops.rmsNorm(product, bias as Value, 1e-5),
        };
      });
      expect(found).toEqual({
        product: half,
        moved: half,
        activated: half,
        scaled: half,
        biased: 'float32',
        probabilities: 'float32',
        total: 'float32',
        powers: 'float32',
        normed: 'float32',
      });
    });
  }

  it('float64, which gradient checks use, and indices are left alone', () => {
    const inputs = { x: type('float64', [2, 2]), table: type('float32', [5, 2]), ids: type('int32', [2]) };
    const found = typesUnder('bfloat16', inputs, ({ x, table, ids }) => ({
      product: ops.matmul(x as Value, x as Value),
      rows: ops.gather(table as Value, ids as Value, 0),
    }));
    expect(found).toEqual({ product: 'float64', rows: 'float32' });
  });

  it('float32 as precision is the program without one, and what surrounds the body is too', () => {
    const model = ({ x }: Readonly<Record<string, Value>>) => ({
      y: ops.softmax(ops.matmul(x as Value, x as Value)),
    });
    const inputs = { x: type('float32', [3, 3]) };
    const plain = printProgram(trace<string>(inputs, model));
    expect(
      printProgram(trace<string>(inputs, (values) => withPrecision('float32', () => model(values)))),
    ).toBe(plain);
    const after = trace<string>(inputs, (values) => {
      withPrecision('float16', () => ops.matmul(values.x as Value, values.x as Value));
      return model(values);
    });
    expect(casts(after)).toHaveLength(2);
    expect(casts(simplify(after))).toHaveLength(0);
  });

  it('gradients of activations stay in the half type, those of parameters come out as float32', () => {
    const inputs = { x: type('float32', [4, 3]), w1: type('float32', [3, 3]), w2: type('float32', [3, 3]) };
    const program = trace<string>(inputs, (values) =>
      withPrecision('float16', () => {
        const [x, w1, w2] = [values.x, values.w1, values.w2] as [Value, Value, Value];
        const loss = ops.sum(ops.matmul(ops.silu(ops.matmul(x, w1)), w2));
        const [dw1, dw2] = gradients(loss, [w1, w2]) as [Value, Value];
        return { loss, dw1, dw2 };
      }),
    );
    for (const value of program.outputs.values()) expect(value.dtype).toBe('float32');
    const products = simplify(program).nodes.filter(({ primitive }) => primitive === 'matmul');
    // Two forward, two for the weights, one for what lies between them.
    expect(products).toHaveLength(5);
    for (const { inputs: factors, outputs } of products) {
      for (const { dtype } of [...factors, ...outputs]) expect(dtype).toBe('float16');
    }
    const backward = simplify(program).nodes.flatMap(({ outputs }) => outputs);
    const between = backward.filter(({ name }) => name.startsWith('gradient.silu.'));
    expect(between.length).toBeGreaterThan(3);
    for (const { dtype } of between) expect(dtype).toBe('float16');
  });

  it('a value is cast once, however often it is used', () => {
    const program = trace<string>({ x: type('float32', [3, 3]), y: type('float32', [3, 3]) }, ({ x, y }) =>
      withPrecision('bfloat16', () => ({
        a: ops.matmul(x as Value, y as Value),
        b: ops.matmul(x as Value, y as Value, { transposeB: true }),
        c: ops.matmul(y as Value, x as Value, { transposeA: true }),
      })),
    );
    expect(casts(program)).toHaveLength(6);
    expect(casts(simplify(program))).toHaveLength(2);
  });

  it('frozen weights become constants of the half type, rounded once', () => {
    const weight = float32(
      [12, 12],
      Float32Array.from({ length: 144 }, (_, at) => Math.sin(at)),
    );
    const program = simplify(
      trace<string>({ x: type('float32', [2, 12]) }, ({ x }) =>
        withPrecision('float16', () => ({
          y: ops.linear(ops.linear(x as Value, ops.constant(weight)), ops.constant(weight)),
        })),
      ),
    );
    const constants = program.nodes.filter(
      (node): node is NodeOf<'constant'> & typeof node => node.primitive === 'constant',
    );
    expect(constants.map(({ attributes }) => attributes.tensor)).toEqual([
      { dtype: 'float16', shape: [12, 12], data: halfFromFloat32(weight.data) },
    ]);
    expect(casts(program)).toHaveLength(1);
  });
});
