import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { random } from '../../src/config/random.ts';
import { gradients } from '../../src/tensor/gradients.ts';
import { interpret, type Numbers } from '../../src/tensor/interpret.ts';
import * as ops from '../../src/tensor/operations.ts';
import { simplify } from '../../src/tensor/passes.ts';
import type { Value } from '../../src/tensor/program.ts';
import { sizeOf } from '../../src/tensor/tensor.ts';
import { trace } from '../../src/tensor/trace.ts';
import { type Case, cases } from './arbitrary.ts';

/** A scalar that weighs every element differently, so that no error cancels. */
function weighted(y: Value): Value {
  const weights = Array.from({ length: sizeOf(y.shape) }, (_, index) => Math.sin(index + 1));
  const table = ops.constant({ dtype: 'float64', shape: y.shape, data: Float64Array.from(weights) });
  return ops.sum(ops.multiply(y, table));
}

function numbersOf(drawn: Case): Record<string, Numbers> {
  return Object.fromEntries(
    Object.entries(drawn.inputs).map(([name, { shape }]) => [
      name,
      { shape, data: Float64Array.from(drawn.feeds[name] as number[]) },
    ]),
  );
}

describe('gradient of every primitive against central differences in float64', () => {
  for (const [primitive, draw] of Object.entries(cases)) {
    it(primitive, () => {
      let seen = false;
      fc.assert(
        fc.property(fc.integer(), (seed) => {
          const drawn = draw(random(seed));
          const program = trace(drawn.inputs, (inputs) => {
            const loss = weighted(drawn.model(inputs));
            const of = drawn.differentiable.map((name) => inputs[name] as Value);
            const parts = gradients(loss, of).map((value, index) => [drawn.differentiable[index], value]);
            return { loss, ...Object.fromEntries(parts) };
          });
          seen ||= program.nodes.some((node) => node.primitive === primitive);
          const feeds = numbersOf(drawn);
          const result = interpret(simplify(program), feeds);
          for (const name of drawn.differentiable) {
            const data = (feeds[name] as Numbers).data;
            for (let at = 0; at < data.length; at++) {
              const step = 1e-5;
              const lossAt = (offset: number) => {
                const moved = data.slice();
                moved[at] = (moved[at] as number) + offset;
                const loss = interpret(program, {
                  ...feeds,
                  [name]: { ...(feeds[name] as Numbers), data: moved },
                });
                return loss.loss?.data[0] as number;
              };
              const expected = (lossAt(step) - lossAt(-step)) / (2 * step);
              const actual = result[name]?.data[at] as number;
              expect(Math.abs(actual - expected)).toBeLessThan(1e-6 * Math.max(1, Math.abs(expected)));
            }
          }
        }),
        { numRuns: 25, seed: 7 },
      );
      expect(seen).toBe(true);
    });
  }

  it('of a gradient: second derivatives', () => {
    const program = trace({ x: { dtype: 'float64', shape: [3] } }, ({ x }) => {
      const [first] = gradients(ops.sum(ops.multiply(ops.multiply(x, x), x)), [x]);
      return { second: gradients(ops.sum(first as Value), [x])[0] as Value };
    });
    const { second } = interpret(program, { x: { shape: [3], data: Float64Array.of(1, -2, 0.5) } });
    expect([...(second?.data ?? [])]).toEqual([6, -12, 3]);
  });

  it('stops at what is not asked for', () => {
    const inputs = {
      x: { dtype: 'float32', shape: [4, 4] },
      w: { dtype: 'float32', shape: [4, 4] },
    } as const;
    const program = trace(inputs, ({ x, w }) => ({
      dw: gradients(ops.sum(ops.tanh(ops.matmul(ops.exp(x), w))), [w])[0] as Value,
    }));
    expect(simplify(program).nodes.filter((node) => node.primitive === 'matmul')).toHaveLength(2);
    expect(simplify(program).nodes.filter((node) => node.primitive === 'exp')).toHaveLength(1);
  });

  it('names a value that the loss does not depend on', () => {
    const inputs = { x: { dtype: 'float32', shape: [] }, unused: { dtype: 'float32', shape: [] } } as const;
    expect(() => trace(inputs, ({ x, unused }) => ({ d: gradients(x, [unused])[0] as Value }))).toThrow(
      '"x" does not depend on "unused"',
    );
  });
});
