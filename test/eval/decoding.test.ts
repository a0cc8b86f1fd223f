import { expect, it } from 'vitest';
import { describeDecoding } from '../../src/eval/decoding.ts';

const open = {
  maxNewTokens: 24,
  decoding: 'greedy',
  temperature: 1,
  topK: null,
  topP: 1,
  minP: 0,
  repetitionPenalty: 1,
  stop: [],
} as const;

it('says all that decides an open answer', () => {
  expect(describeDecoding({ ...open, stop: [] })).toBe('greedy, at most 24 tokens');
  const drawn = { ...open, decoding: 'sample', temperature: 0.7, topK: 5, repetitionPenalty: 1.1 } as const;
  expect(describeDecoding({ ...drawn, stop: ['\n', '.'] })).toBe(
    'sample, temperature 0.7, topK 5, repetitionPenalty 1.1, at most 24 tokens, up to "\\n", up to "."',
  );
});
