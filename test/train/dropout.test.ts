import { expect, it } from 'vitest';
import { random } from '../../src/config/random.ts';
import type { Executable } from '../../src/engine/engine.ts';
import { multiply } from '../../src/tensor/operations.ts';
import type { Value } from '../../src/tensor/program.ts';
import type { Tensor } from '../../src/tensor/tensor.ts';
import { dropoutMask, trace, withDropout } from '../../src/tensor/trace.ts';
import { maskBytes, withMasks } from '../../src/train/dropout.ts';

const dropout = (x: Value, name: string) => {
  const mask = dropoutMask(name, x.shape);
  return mask === undefined ? x : multiply(x, mask);
};
const program = trace({ x: { dtype: 'float32', shape: [100, 100] } }, ({ x }) => {
  const [a, b] = withDropout(() => [dropout(x as Value, 'a'), dropout(x as Value, 'b')]);
  return { a, b, plain: dropout(x as Value, 'a') } as Record<string, Value>;
});
const { feedsOf } = withMasks({} as Executable, program, 0.2);
const batch = { feeds: {}, supervisedTokens: 1, tokens: 1 };
const draw = (micro: number) => {
  const feeds = feedsOf({ ...batch, random: (name) => random(7, 'dropout', micro, name) });
  return Object.fromEntries(
    Object.entries(feeds).map(([name, { data }]: [string, Tensor]) => [name, [...(data as Float32Array)]]),
  );
};

it('masks drop the share that they should, and keep the mean', () => {
  const masks = draw(0);
  expect(Object.keys(masks)).toEqual(['dropout.a', 'dropout.b']);
  for (const values of Object.values(masks)) {
    expect(new Set(values)).toEqual(new Set([0, 1.25]));
    expect(values.filter((value) => value === 0).length / values.length).toBeCloseTo(0.2, 1.5);
  }
  expect(maskBytes(program)).toBe(2 * 4 * 100 * 100);
});

it('masks depend on micro-batch and name alone', () => {
  const first = draw(0);
  expect(first['dropout.a']).not.toEqual(first['dropout.b']);
  expect(draw(1)['dropout.a']).not.toEqual(first['dropout.a']);
  expect(draw(0)).toEqual(first);
});

it('a batch without random numbers cannot be dropped from', () => {
  expect(() => feedsOf(batch)).toThrow('"dropout.a": the batch brings no random numbers');
});
