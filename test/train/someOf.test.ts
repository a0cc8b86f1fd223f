import { expect, it } from 'vitest';
import { someOf } from '../../src/train/evaluateRun.ts';

it('a limit asks questions from everywhere in the dataset, the same ones each time, in their order', () => {
  const all = [...Array(1000).keys()];
  const some = someOf(all, 100);
  expect(some).toHaveLength(100);
  expect(someOf(all, 100)).toEqual(some);
  expect([...some].sort((a, b) => a - b)).toEqual(some);
  expect(new Set(some).size).toBe(100);
  for (const start of [0, 250, 500, 750]) {
    expect(some.filter((at) => at >= start && at < start + 250).length).toBeGreaterThan(10);
  }
  expect(someOf(all, 2000)).toEqual(all);
});
