import { describe, expect, it } from 'vitest';
import { gradients } from '../../src/tensor/gradients.ts';
import { liveness } from '../../src/tensor/liveness.ts';
import * as ops from '../../src/tensor/operations.ts';
import { simplify } from '../../src/tensor/passes.ts';
import type { Program, Value } from '../../src/tensor/program.ts';
import { schedule } from '../../src/tensor/schedule.ts';
import { trace } from '../../src/tensor/trace.ts';

const kilobyte = { dtype: 'float32', shape: [16, 16] } as const;
const names = (program: Program) => program.nodes.map((node) => node.outputs[0]?.name);

describe('liveness', () => {
  it('a chain holds what is read and what is written', () => {
    const program = trace({ x: kilobyte }, ({ x }) => ({ y: ops.exp(ops.negate(ops.exp(x))) }));
    expect(liveness(program)).toMatchObject({ peakBytes: 2048, timeline: [0, 1024, 1024, 1024] });
  });

  it('a value is held until its last reader', () => {
    const program = trace({ x: kilobyte }, ({ x }) => {
      const early = ops.exp(x);
      return { y: ops.add(ops.negate(ops.negate(early)), early) };
    });
    // early, the second negation and the sum
    expect(liveness(program).peakBytes).toBe(3072);
  });

  it('a view takes no memory and keeps its source', () => {
    const program = trace({ x: kilobyte }, ({ x }) => {
      const view = ops.reshape(ops.exp(x), [256]);
      return { y: ops.sum(ops.add(view, view)) };
    });
    expect(liveness(program).peakBytes).toBe(2048);
  });

  it('softmax writes over what dies with it, and only over that', () => {
    const over = trace({ x: kilobyte }, ({ x }) => ({ y: ops.softmax(ops.exp(x)) }));
    expect(liveness(over).peakBytes).toBe(1024);
    const kept = trace({ x: kilobyte }, ({ x }) => {
      const scores = ops.exp(x);
      return { y: ops.softmax(scores), scores };
    });
    expect(liveness(kept).peakBytes).toBe(2048);
  });
});

describe('schedule', () => {
  const program = simplify(
    trace({ x: kilobyte, a: kilobyte, b: kilobyte }, ({ x, a, b }) => {
      const loss = ops.sum(ops.softmax(ops.matmul(ops.silu(ops.matmul(x, a)), b)));
      const [da, db] = gradients(loss, [a, b]);
      return { loss, da: da as Value, db: db as Value };
    }),
  );

  it('has the same nodes, each after what it reads, and scheduling again changes nothing', () => {
    const scheduled = schedule(program);
    expect(names(scheduled).toSorted()).toEqual(names(program).toSorted());
    const seen = new Set<Value>();
    for (const node of scheduled.nodes) {
      for (const value of node.inputs) expect(seen.has(value)).toBe(true);
      for (const value of node.outputs) seen.add(value);
    }
    expect(names(schedule(scheduled))).toEqual(names(scheduled));
  });

  it('computes late what is read late', () => {
    const late = trace({ x: kilobyte }, ({ x }) => {
      const waiting = ops.exp(x);
      let value = x;
      for (let step = 0; step < 5; step++) value = ops.negate(value);
      return { y: ops.add(value, waiting) };
    });
    expect(liveness(schedule(late)).peakBytes).toBeLessThanOrEqual(liveness(late).peakBytes);
    const order = names(schedule(late));
    expect(order.at(-1)).toBe('add');
  });
});
