import { readFileSync } from 'node:fs';
import { describe, expect, it } from 'vitest';
import { random } from '../../src/config/random.ts';
import {
  geometryOf,
  linearCka,
  localNeighbourhoodSimilarity,
  neighboursOf,
} from '../../src/probe/similarity.ts';
import { float32, type Tensor } from '../../src/tensor/tensor.ts';
import { fill } from '../llm/formula.ts';

type States = Tensor & { dtype: 'float32' };

interface Golden {
  readonly items: number;
  readonly left: number;
  readonly right: number;
  readonly neighbours: number;
  readonly cka: number;
  readonly lns: number;
}

const golden = JSON.parse(readFileSync('test/golden/similarity.json', 'utf8')) as Golden[];

const cka = (a: States, b: States) => linearCka(geometryOf(a), geometryOf(b));
const lns = (a: States, b: States) => localNeighbourhoodSimilarity(geometryOf(a), geometryOf(b));

function draws(name: string, items: number, width: number): States {
  const draw = random(name);
  return float32(
    [items, width],
    Array.from({ length: items * width }, () => draw.normal()),
  );
}

const mapped = ({ shape, data }: States, change: (value: number, at: number) => number): States =>
  float32(shape, data.map(change));

describe.each(golden)('against numpy: $items items, widths $left and $right', (expected) => {
  const left = mapped(fill('left_embed', [expected.items, expected.left]), (value) => value + 0.3);
  const right = mapped(fill('right_embed', [expected.items, expected.right]), (value, at) => {
    const [item, column] = [Math.floor(at / expected.right), at % expected.right];
    return column < 5 ? value + 2.5 * (left.data[item * expected.left + column] as number) : value;
  });

  it('CKA, LNS and the size of a neighbourhood', () => {
    expect(cka(left, right)).toBeCloseTo(expected.cka, 6);
    expect(lns(left, right)).toBeCloseTo(expected.lns, 12);
    expect(neighboursOf(expected.items)).toBe(expected.neighbours);
  });
});

describe('linear CKA', () => {
  const states = draws('states', 40, 6);

  it('is 1 for what is the same, and symmetric', () => {
    expect(cka(states, states)).toBeCloseTo(1, 12);
    const others = draws('others', 40, 9);
    expect(cka(states, others)).toBeCloseTo(cka(others, states), 12);
    expect(cka(states, others)).toBeLessThan(0.5);
  });

  it('does not change where one is rotated, scaled, or moved', () => {
    const others = draws('others', 40, 6);
    const width = 6;
    // A rotation of two columns by 0.7 after the other, and a reflection of the last.
    const rotated = mapped(others, (_, at) => {
      const [row, column] = [Math.floor(at / width) * width, at % width];
      const partner = column % 2 === 0 ? column + 1 : column - 1;
      const [own, other] = [others.data[row + column] as number, others.data[row + partner] as number];
      const turned = Math.cos(0.7) * own + (column % 2 === 0 ? -1 : 1) * Math.sin(0.7) * other;
      return 17 * (column === 5 ? -turned : turned) + column;
    });
    expect(cka(states, rotated)).toBeCloseTo(cka(states, others), 6);
  });

  it('changes where one is stretched along an axis', () => {
    const stretched = mapped(states, (value, at) => (at % 6 === 0 ? 5 * value : value));
    expect(cka(states, stretched)).toBeLessThan(0.9);
  });

  it('of independent states is width / (width + items), in the limit', () => {
    for (const [items, width] of [
      [100, 288],
      [200, 64],
    ] as const)
      expect(cka(draws('one', items, width), draws('other', items, width))).toBeCloseTo(
        width / (width + items),
        1,
      );
  });

  it('is no number for what does not vary', () => {
    const flat = mapped(states, () => 2);
    expect(cka(states, flat)).toBeNaN();
  });
});

describe('local neighbourhood similarity', () => {
  const states = draws('states', 60, 4);

  it('is 1 for what is the same, whatever its scale, and symmetric', () => {
    const others = draws('others', 60, 4);
    expect(lns(states, states)).toBe(1);
    expect(
      lns(
        states,
        mapped(states, (value) => -3 * value),
      ),
    ).toBe(1);
    expect(lns(states, others)).toBe(lns(others, states));
    expect(lns(states, others)).toBeLessThan(0.3);
  });

  it('finds the neighbours that one finds by looking at every pair', () => {
    const row = (item: number) => Array.from(states.data.subarray(4 * item, 4 * item + 4));
    const dot = (a: number[], b: number[]) =>
      a.reduce((total, value, at) => total + value * (b[at] as number), 0);
    for (const [item, found] of geometryOf(states).neighbours.entries()) {
      const cosine = (other: number) =>
        dot(row(item), row(other)) / Math.sqrt(dot(row(item), row(item)) * dot(row(other), row(other)));
      const left = [...Array(60).keys()].filter((other) => other !== item);
      const slow: number[] = [];
      while (slow.length < 3) {
        const best = left.reduce((most, other) => (cosine(other) > cosine(most) ? other : most));
        slow.push(best);
        left.splice(left.indexOf(best), 1);
      }
      expect(found).toEqual(slow);
    }
  });

  it('takes the lower item of a tie', () => {
    const same = float32([4, 2], [1, 0, 1, 0, 1, 0, 1, 0]);
    expect(geometryOf(same).neighbours).toEqual([[1], [0], [0], [0]]);
  });
});

it('what cannot be compared', () => {
  expect(() => geometryOf(draws('few', 2, 4))).toThrow(/2 items: there must be three/);
  expect(() => cka(draws('a', 5, 4), draws('b', 6, 4))).toThrow(/representations of 5 and of 6 items/);
});
