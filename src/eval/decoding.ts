import type { Random } from '../config/random.ts';
import type { Experiment } from '../config/schema.ts';
import type { Decoding } from '../llm/sampling.ts';

/** How open questions are to be answered, as `eval.open` says it. */
export function decodingOf(open: Experiment['eval']['open'], random: Random): Decoding {
  const { decoding, temperature, topK, topP, minP, repetitionPenalty } = open;
  return decoding === 'greedy'
    ? { decoding, repetitionPenalty }
    : { decoding, repetitionPenalty, temperature, topK, topP, minP, random };
}

/** For people: `greedy, at most 24 tokens`, `sample, temperature 0.7, topP 0.9, at most 24 tokens, up to "\n"`. */
export function describeDecoding(open: Experiment['eval']['open']): string {
  const { decoding, temperature, maxNewTokens, stop, ...settings } = open;
  const usual = { topK: null, topP: 1, minP: 0, repetitionPenalty: 1 } as const;
  const unusual = Object.entries(usual)
    .map(([name, value]) => [name, value, settings[name as keyof typeof usual]] as const)
    .filter(([, value, own]) => own !== value)
    .map(([name, , own]) => `${name} ${own}`);
  const drawn = decoding === 'sample' ? [`temperature ${temperature}`] : [];
  const ends = [`at most ${maxNewTokens} tokens`, ...stop.map((text) => `up to ${JSON.stringify(text)}`)];
  return [decoding, ...drawn, ...unusual, ...ends].join(', ');
}
