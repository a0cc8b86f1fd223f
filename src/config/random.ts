import { createHash } from 'node:crypto';
import { uniformFloat64 } from 'pure-rand/distribution/uniformFloat64';
import { uniformInt } from 'pure-rand/distribution/uniformInt';
import { xoroshiro128plusFromState } from 'pure-rand/generator/xoroshiro128plus';
import type { RandomGenerator } from 'pure-rand/types/RandomGenerator';

/** A stream of random numbers that is the same on every machine and can be saved and restored. */
export interface Random {
  /** Uniform in [0, 1). */
  uniform(): number;
  /** Standard normal (Box-Muller, one number per call). */
  normal(): number;
  /** Uniform in 0 .. below - 1. */
  integer(below: number): number;
  /** One of the items. */
  pick<T>(items: readonly T[]): T;
  /** A new array in random order (Fisher-Yates). */
  shuffle<T>(items: readonly T[]): T[];
  /** What `randomFrom` restores. */
  state(): readonly number[];
}

/**
 * A stream named by a seed and a path, so that streams never share numbers by accident:
 * `random(7, 'scene', 12)` does not depend on how many numbers any other stream has drawn.
 */
export function random(seed: number | string, ...path: (string | number)[]): Random {
  const digest = createHash('sha256')
    .update(JSON.stringify([seed, ...path]))
    .digest();
  return randomFrom([0, 4, 8, 12].map((offset) => digest.readInt32LE(offset)));
}

/** Restores a stream from `state()`. */
export function randomFrom(state: readonly number[]): Random {
  return stream(xoroshiro128plusFromState(state));
}

function stream(generator: RandomGenerator): Random {
  const uniform = () => uniformFloat64(generator);
  const integer = (below: number) => uniformInt(generator, 0, below - 1);
  return {
    uniform,
    normal: () => Math.sqrt(-2 * Math.log(1 - uniform())) * Math.cos(2 * Math.PI * uniform()),
    integer,
    pick: (items) => {
      const item = items[integer(items.length)];
      if (items.length === 0) throw new RangeError('pick needs at least one item');
      return item as (typeof items)[number];
    },
    shuffle: (items) => {
      const shuffled = [...items];
      for (let last = shuffled.length - 1; last > 0; last--) {
        const other = integer(last + 1);
        [shuffled[last], shuffled[other]] = [
          shuffled[other] as (typeof items)[number],
          shuffled[last] as (typeof items)[number],
        ];
      }
      return shuffled;
    },
    state: () => generator.getState(),
  };
}
