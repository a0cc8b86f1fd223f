/** Measures of choices, on cases whose values are known. */
import { expect, it } from 'vitest';
import { random } from '../../src/config/random.ts';
import type { RoutedRows } from '../../src/probe/choices.ts';
import {
  busiest,
  type Chosen,
  evenness,
  layerOverlap,
  loadPerBlock,
  normalizedMutualInformation,
  shareOverlap,
} from '../../src/probe/routing.ts';

const tokens = 4000;
const draw = random(11);

function drawn(blocks: number, active = 1): Chosen {
  const chosen = Int32Array.from({ length: tokens * active }, () => draw.integer(blocks));
  return { blocks, active, chosen };
}

it('counts', () => {
  const layer = { blocks: 4, active: 2, chosen: Int32Array.from([0, 1, 1, 3, 0, 1]) };
  expect(loadPerBlock(layer)).toEqual([2, 3, 0, 1]);
  expect(loadPerBlock(layer, (token) => token !== 1)).toEqual([2, 2, 0, 0]);
  expect(busiest([2, 3, 0, 1])).toBeCloseTo(4 * 0.5, 12);
  expect(evenness([5, 5, 0, 0])).toBeCloseTo(0.5, 12);
  expect(evenness([3, 3, 3])).toBeCloseTo(1, 12);
  expect(evenness([7])).toBe(1);
  expect([busiest([0, 0]), evenness([0, 0]), shareOverlap([0, 0], [1, 0])]).toEqual([null, null, null]);
  expect(shareOverlap([1, 3, 0], [2, 2, 0])).toBeCloseTo(0.75, 12);
  expect(shareOverlap([1, 0], [0, 9])).toBe(0);
});

it('is 1 where one layer determines the other', () => {
  const layer = drawn(6);
  const permuted = { ...layer, chosen: layer.chosen.map((block) => (block * 5 + 2) % 6) };
  const coarser = { blocks: 3, active: 1, chosen: layer.chosen.map((block) => block >> 1) };
  for (const other of [layer, permuted, coarser])
    expect(normalizedMutualInformation(layer, other)).toBeCloseTo(1, 12);
});

it('is about 0 where layers are independent, and null where there is nothing to tell', () => {
  const [one, other] = [drawn(6), drawn(5)];
  const found = normalizedMutualInformation(one, other) as number;
  expect(found).toBeGreaterThanOrEqual(0);
  // The expected bias is (blocks - 1)(blocks' - 1) / (2 tokens) nats.
  expect(found).toBeLessThan((4 * (5 * 4)) / (2 * tokens) / Math.log(5));
  const constant = { blocks: 5, active: 1, chosen: new Int32Array(tokens) };
  expect(normalizedMutualInformation(one, constant)).toBeNull();
});

it('weighs all pairs of several choices alike', () => {
  // Two tokens that choose {0, 1} and {2, 3} in both layers: which pair is certain, 1 bit of 2; which of it is not.
  const layer = { blocks: 4, active: 2, chosen: Int32Array.from([0, 1, 3, 2]) };
  expect(normalizedMutualInformation(layer, layer)).toBeCloseTo(0.5, 12);
  // And against a layer with one choice, which is determined.
  const single = { blocks: 2, active: 1, chosen: Int32Array.from([0, 1]) };
  expect(normalizedMutualInformation(layer, single)).toBeCloseTo(1, 12);
  // The slow obvious version of an uneven case.
  const [a, b] = [drawn(5, 2), drawn(4, 3)];
  const joint = new Map<string, number>();
  const add = (key: string) => joint.set(key, (joint.get(key) ?? 0) + 1 / (tokens * 6));
  for (let token = 0; token < tokens; token++)
    for (const own of a.chosen.slice(token * 2, token * 2 + 2))
      for (const other of b.chosen.slice(token * 3, token * 3 + 3)) add(`${own} ${other}`);
  const marginal = (at: number, value: string) =>
    [...joint].reduce((sum, [key, share]) => sum + (key.split(' ')[at] === value ? share : 0), 0);
  let information = 0;
  for (const [key, share] of joint) {
    const [own, other] = key.split(' ') as [string, string];
    information += share * Math.log(share / (marginal(0, own) * marginal(1, other)));
  }
  const entropies = [a, b].map((layer) => (evenness(loadPerBlock(layer)) as number) * Math.log(layer.blocks));
  expect(normalizedMutualInformation(a, b)).toBeCloseTo(information / Math.min(...entropies), 10);
});

it('compares the rows that pass both layers, and tells what chance gives', () => {
  const layerOf = (row: readonly number[], chosen: readonly number[]): RoutedRows => ({
    layer: 0,
    blocks: 4,
    active: 1,
    chosen: Int32Array.from(chosen),
    row: Float64Array.from(row),
    text: new Int32Array(row.length),
    audio: new Uint8Array(row.length),
    dropped: 0,
  });
  const all = Array.from({ length: 1000 }, (_, at) => at);
  const blocks = all.map(() => draw.integer(4));
  const even = all.filter((row) => row % 2 === 0);
  const one = layerOf(all, blocks);
  const other = layerOf(
    even,
    even.map((row) => 3 - (blocks[row] as number)),
  );
  const found = layerOverlap(one, other, random(1));
  expect(found?.measured).toBeCloseTo(1, 12);
  expect(found?.shuffled).toBeGreaterThan(0);
  expect(found?.shuffled).toBeLessThan(0.05);
  expect(layerOverlap({ ...one, blocks: 5000 }, { ...other, blocks: 5000 }, random(1))).toBeUndefined();
});
