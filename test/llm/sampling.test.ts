import { readFileSync } from 'node:fs';
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { random } from '../../src/config/random.ts';
import { candidatesOf, chooseTokens, type Sampling } from '../../src/llm/sampling.ts';

interface Golden {
  readonly seen: number[];
  readonly cases: {
    readonly settings: Partial<Sampling> & { readonly repetitionPenalty?: number };
    readonly probabilities: Record<string, number>;
  }[];
}

const golden = JSON.parse(readFileSync('test/golden/sampling.json', 'utf8')) as Golden;
/** The formula of test/golden/sampling.py. */
const logits = () => Float32Array.from({ length: 40 }, (_, at) => 4 * Math.sin(1 + 1.7 * at));

describe('sampling', () => {
  for (const { settings, probabilities } of golden.cases) {
    it(`draws what transformers draws: ${JSON.stringify(settings)}`, () => {
      const { repetitionPenalty = 1, ...sampling } = settings;
      const penalized = logits();
      // Penalties are written into the logits.
      chooseTokens(penalized, [golden.seen], { decoding: 'greedy', repetitionPenalty });
      const candidates = candidatesOf(penalized, sampling);
      const total = candidates.reduce((sum, { weight }) => sum + weight, 0);
      const found = Object.fromEntries(candidates.map(({ id, weight }) => [String(id), weight / total]));
      expect(Object.keys(found).sort()).toEqual(Object.keys(probabilities).sort());
      for (const [id, probability] of Object.entries(probabilities)) {
        expect(found[id]).toBeCloseTo(probability, 6);
      }
    });
  }

  it.each([Number.NaN, Number.POSITIVE_INFINITY])('makes no token of logits that are %f', (value) => {
    const broken = new Float32Array(40).fill(value);
    for (const decoding of [
      { decoding: 'greedy' },
      { decoding: 'sample', random: random(1), topP: 0.9 },
    ] as const)
      expect(() => chooseTokens(broken, [[1, 2]], decoding)).toThrow(/logits are no numbers behind 2 tokens/);
  });

  it('keeps what the slow obvious version keeps', () => {
    // Logits that differ have probabilities that differ.
    const logit = fc.integer({ min: -2560, max: 2560 }).map((value) => value / 64);
    const numbers = fc.array(logit, { minLength: 1, maxLength: 60 });
    const settings = {
      topK: fc.option(fc.integer({ min: 1, max: 70 })),
      topP: fc.integer({ min: 1, max: 999 }).map((value) => value / 1000),
    };
    fc.assert(
      fc.property(numbers, fc.record(settings), (values, { topK, topP }) => {
        const own = Float32Array.from(values);
        const sorted = [...own.keys()]
          .sort((a, b) => (own[b] as number) - (own[a] as number) || a - b)
          .slice(0, topK ?? own.length);
        const weights = sorted.map((id) =>
          Math.exp((own[id] as number) - (own[sorted[0] as number] as number)),
        );
        const total = weights.reduce((sum, weight) => sum + weight, 0);
        const expected = sorted.filter(
          (_, at) => weights.slice(0, at).reduce((sum, weight) => sum + weight, 0) < topP * total,
        );
        expect(candidatesOf(own, { topK, topP }).map(({ id }) => id)).toEqual(expected);
      }),
    );
  });

  it('draws in proportion to the probabilities, the same for the same seed', () => {
    const scores = Float32Array.from([Math.log(0.1), Math.log(0.6), Math.log(0.3)]);
    const draws = (seed: number) => {
      const stream = random(seed);
      return Array.from(
        { length: 3000 },
        () => chooseTokens(scores, [[]], { decoding: 'sample', random: stream })[0],
      );
    };
    expect(draws(1)).toEqual(draws(1));
    const shares = [0, 1, 2].map((id) => draws(1).filter((other) => other === id).length / 3000);
    for (const [id, share] of [0.1, 0.6, 0.3].entries()) expect(shares[id]).toBeCloseTo(share, 1);
  });
});
