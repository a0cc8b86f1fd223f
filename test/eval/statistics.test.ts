import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { random } from '../../src/config/random.ts';
import { shuffleClips } from '../../src/eval/controls.ts';
import { majorityAnswers, normalizedMatch, tokenF1, wilsonInterval } from '../../src/eval/statistics.ts';

describe('wilsonInterval', () => {
  it('agrees with published values', () => {
    // Newcombe 1998, table I, method 3.
    const published: [number, number, number, number][] = [
      [81, 263, 0.2553, 0.3662],
      [15, 148, 0.0624, 0.1605],
      [0, 20, 0, 0.1611],
      [1, 29, 0.0061, 0.1718],
    ];
    for (const [successes, trials, low, high] of published) {
      const interval = wilsonInterval(successes, trials);
      expect(interval[0]).toBeCloseTo(low, 4);
      expect(interval[1]).toBeCloseTo(high, 4);
    }
  });

  it('holds the share and stays within 0 and 1', () => {
    fc.assert(
      fc.property(fc.nat(1000), fc.nat(1000), (a, b) => {
        const [successes, trials] = [Math.min(a, b), Math.max(a, b)];
        const [low, high] = wilsonInterval(successes, trials);
        expect(low).toBeGreaterThanOrEqual(0);
        expect(high).toBeLessThanOrEqual(1);
        if (trials > 0) {
          expect(low).toBeLessThanOrEqual(successes / trials + 1e-12);
          expect(high).toBeGreaterThanOrEqual(successes / trials - 1e-12);
        }
      }),
    );
    expect(wilsonInterval(0, 0)).toEqual([0, 1]);
  });
});

describe('scores of open answers', () => {
  it('match words in order, whatever case and punctuation', () => {
    expect(normalizedMatch('A bell, then a drum.', 'a bell then a drum')).toBe(true);
    expect(normalizedMatch('a drum then a bell', 'a bell then a drum')).toBe(false);
    expect(normalizedMatch('', 'a')).toBe(false);
  });

  it('count shared words once each', () => {
    expect(tokenF1('a bell', 'a bell')).toBe(1);
    expect(tokenF1('bell bell bell', 'a bell')).toBeCloseTo((2 * 1) / 5);
    expect(tokenF1('drum', 'a bell')).toBe(0);
    expect(tokenF1('', 'a bell')).toBe(0);
  });
});

describe('baselines and controls', () => {
  it('the majority is the most frequent answer of each template', () => {
    const of = (template: string, ...answers: string[]) => answers.map((answer) => ({ template, answer }));
    const majority = majorityAnswers([...of('a', 'yes', 'no', 'no'), ...of('b', 'two', 'one')]);
    expect(majority).toEqual(
      new Map([
        ['a', 'no'],
        ['b', 'one'],
      ]),
    );
  });

  it('shuffling gives every item another clip, always the same for one seed', () => {
    fc.assert(
      fc.property(fc.integer(), fc.integer({ min: 2, max: 40 }), (seed, count) => {
        const clips = Array.from({ length: 3 * count }, (_, at) => `clip-${at % count}`);
        const shuffled = shuffleClips(clips, random(seed));
        expect(shuffled).toEqual(shuffleClips(clips, random(seed)));
        for (const [at, clip] of shuffled.entries()) expect(clip).not.toBe(clips[at]);
        expect(new Set(shuffled).size).toBe(count);
      }),
    );
  });
});
