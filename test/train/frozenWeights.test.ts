import { expect, it } from 'vitest';
import { gradients } from '../../src/tensor/gradients.ts';
import { constant, gather, matmul, sum } from '../../src/tensor/operations.ts';
import { simplify } from '../../src/tensor/passes.ts';
import type { Value } from '../../src/tensor/program.ts';
import { float32 } from '../../src/tensor/tensor.ts';
import { trace } from '../../src/tensor/trace.ts';
import { constantCopiesBytes, copiesPerProgram, ownConstantsBytes } from '../../src/train/frozenWeights.ts';

const weight = float32([64, 32], new Float32Array(2048).fill(0.5));
const types = { x: { dtype: 'float32', shape: [8, 64] }, ids: { dtype: 'int64', shape: [3] } } as const;

it('a weight is packed for its product going forward and for the one going back', () => {
  const program = trace(types, ({ x }) => {
    const loss = sum(matmul(x, constant(weight)));
    return { loss, dx: gradients(loss, [x])[0] as Value };
  });
  const own = ownConstantsBytes(program, [weight]);
  expect(constantCopiesBytes(simplify(program))).toBeCloseTo(copiesPerProgram * 8192, -2);
  expect(own).toBeLessThan(100);
  expect(ownConstantsBytes(program, [])).toBe(own + 8192);
});

it('a weight that is looked up, or stands first in a product, is held once as it is', () => {
  const holes = copiesPerProgram - 2;
  const lookedUp = trace(types, ({ ids }) => ({ rows: gather(constant(weight), ids, 0) }));
  expect(constantCopiesBytes(lookedUp)).toBeCloseTo((1 + holes) * 8192, 6);
  const both = trace(types, ({ x, ids }) => {
    const table = constant(weight);
    return { rows: gather(table, ids, 0), first: matmul(table, x, { transposeA: true, transposeB: true }) };
  });
  expect(constantCopiesBytes(both)).toBeCloseTo((1 + holes) * 8192, 6);
});
