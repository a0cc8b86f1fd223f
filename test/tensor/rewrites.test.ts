import { describe, expect, it } from 'vitest';
import { gradients } from '../../src/tensor/gradients.ts';
import { interpret } from '../../src/tensor/interpret.ts';
import * as ops from '../../src/tensor/operations.ts';
import { mergeCommonSubexpressions, removeDeadCode, simplify } from '../../src/tensor/passes.ts';
import type { Program, Value } from '../../src/tensor/program.ts';
import { trace } from '../../src/tensor/trace.ts';

const matrix = { dtype: 'float64', shape: [3, 4] } as const;
const ids = { dtype: 'int32', shape: [2] } as const;
const feeds = {
  x: { shape: [3, 4], data: Float64Array.from({ length: 12 }, (_, at) => Math.sin(at + 1)) },
  y: { shape: [3, 4], data: Float64Array.from({ length: 12 }, (_, at) => Math.cos(at + 1)) },
  ids: { shape: [2], data: Float64Array.of(2, 2) },
};

const count = (program: Program, primitive: string) =>
  program.nodes.filter((node) => node.primitive === primitive).length;

/** The outputs before and after, which must be the same numbers. */
function mustAgree(program: Program): Program {
  const simple = simplify(program);
  const own = Object.fromEntries([...program.inputs.keys()].map((name) => [name, feeds[name as 'x']]));
  const [before, after] = [removeDeadCode(mergeCommonSubexpressions(program)), simple].map((each) =>
    interpret(each, own),
  );
  for (const [name, { shape, data }] of Object.entries(before ?? {})) {
    expect(after?.[name]?.shape).toEqual(shape);
    for (const [at, value] of data.entries()) expect(after?.[name]?.data[at]).toBeCloseTo(value, 12);
  }
  return simple;
}

describe('rewrites', () => {
  it('a factor of one is dropped, where nothing is repeated by it', () => {
    const one = (shape: readonly number[]) => ops.filled('float64', shape, 1);
    const simple = mustAgree(
      trace({ x: matrix }, ({ x }) => ({
        a: ops.exp(ops.multiply(x, one([]))),
        b: ops.exp(ops.multiply(one([3, 4]), x)),
        c: ops.multiply(ops.sum(x, [0]), one([3, 4])),
      })),
    );
    expect(count(simple, 'multiply')).toBe(1);
  });

  it('nothing is computed only to be waited for', () => {
    const simple = mustAgree(
      trace({ x: matrix, y: matrix }, ({ x, y }) => {
        const [needed, unneeded] = [ops.exp(y), ops.log(ops.exp(y))];
        return {
          a: ops.after(ops.negate(x), [unneeded]),
          b: ops.exp(ops.after(ops.negate(x), [unneeded, needed])),
          c: needed,
        };
      }),
    );
    expect(count(simple, 'log')).toBe(0);
    expect(
      simple.nodes.filter(({ primitive }) => primitive === 'after').map(({ inputs }) => inputs.length),
    ).toEqual([2]);
  });

  it('an operand that arithmetic repeats by itself is not written out', () => {
    const simple = mustAgree(
      trace({ x: matrix, y: matrix }, ({ x, y }) => ({
        z: ops.multiply(ops.expand(ops.sum(x, [0]), [3, 4]), y),
      })),
    );
    expect(count(simple, 'expand')).toBe(0);
  });

  it('it is written out where nothing else has the shape of the result', () => {
    const simple = mustAgree(
      trace({ x: matrix }, ({ x }) => {
        const row = ops.sum(x, [0]);
        return { z: ops.multiply(ops.expand(row, [3, 4]), ops.expand(row, [3, 4])) };
      }),
    );
    expect(count(simple, 'expand')).toBe(1);
    expect(simple.outputs.get('z')?.shape).toEqual([3, 4]);
  });

  it('reshapes of reshapes become one, and none where the shape comes back', () => {
    const simple = mustAgree(
      trace({ x: matrix }, ({ x }) => {
        const flat = ops.reshape(ops.reshape(ops.exp(x), [12]), [4, 3]);
        return { z: ops.sum(ops.reshape(ops.reshape(flat, [2, 6]), [3, 4])), flat };
      }),
    );
    expect(count(simple, 'reshape')).toBe(1);
  });

  it('a gradient that is scattered over zeros and added is scattered over the other term', () => {
    const simple = mustAgree(
      trace({ x: matrix, ids }, ({ x, ids }) => {
        const loss = ops.add(ops.sum(ops.exp(ops.gather(x, ids, 0))), ops.sum(ops.multiply(x, x)));
        return { dx: gradients(loss, [x])[0] as Value };
      }),
    );
    expect(count(simple, 'scatterAdd')).toBe(1);
    // x + x of the square is the one addition left.
    expect(count(simple, 'add')).toBe(1);
  });

  it('a scattered value that others read as well stays as it is', () => {
    const simple = mustAgree(
      trace({ x: matrix, y: matrix, ids }, ({ x, y, ids }) => {
        const rows = ops.expand(ops.reshape(ops.cast(ids, 'int32'), [2, 1]), [2, 4]);
        const scattered = ops.scatterAdd(ops.filled('float64', [3, 4], 0), rows, ops.slice(y, 0, 0, 2), 0);
        return { sum: ops.add(x, scattered), scattered };
      }),
    );
    expect(count(simple, 'add')).toBe(1);
  });
});
