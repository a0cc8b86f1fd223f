/** Statistics of choices against counts made one by one. */
import { expect, it } from 'vitest';
import { random } from '../../src/config/random.ts';
import { loadOf } from '../../src/ffn/dispatch.ts';
import { choiceStatistics } from '../../src/ffn/statistics.ts';
import { interpret } from '../../src/tensor/interpret.ts';
import type { Value } from '../../src/tensor/program.ts';
import { float32, int32 } from '../../src/tensor/tensor.ts';
import { trace } from '../../src/tensor/trace.ts';

const [tokens, each, blocks] = [40, 3, 8];
const draw = random(3);
const chosen = Array.from({ length: tokens * each }, () => draw.integer(blocks - 1));
const valid = Array.from({ length: tokens }, () => Number(draw.integer(4) > 0));
const audio = Array.from({ length: tokens }, (_, at) => Number(at % 5 < 2));

function statistics(withAudio: boolean): Record<string, number> {
  const feeds = {
    chosen: int32([tokens, each], chosen),
    valid: float32([tokens], valid),
    audio: float32([tokens], audio),
  };
  const types = {
    chosen: { dtype: 'int32', shape: [tokens, each] },
    valid: { dtype: 'float32', shape: [tokens] },
    audio: { dtype: 'float32', shape: [tokens] },
  } as const;
  const program = trace<string>(types, (inputs) => {
    const choices = {
      blocksTC: inputs.chosen as Value,
      validT: inputs.valid,
      audioT: withAudio ? inputs.audio : undefined,
    };
    return choiceStatistics(choices, loadOf(choices, blocks));
  });
  return Object.fromEntries(
    Object.entries(interpret(program, feeds)).map(([name, { data }]) => [name, Number(data[0])]),
  );
}

/** Shares of the blocks among the choices of some rows. */
function sharesOf(isWanted: (token: number) => boolean): number[] {
  const load = new Array<number>(blocks).fill(0);
  for (const [at, block] of chosen.entries()) {
    const token = Math.floor(at / each);
    if (valid[token] === 1 && isWanted(token)) load[block] = (load[block] as number) + 1;
  }
  const total = load.reduce((sum, own) => sum + own, 0);
  return load.map((own) => own / total);
}

const evenness = (shares: readonly number[]) => ({
  load: Math.max(...shares) * blocks,
  entropy: shares.reduce((sum, own) => sum - (own === 0 ? 0 : own * Math.log(own)), 0) / Math.log(blocks),
});

it('counts text and audio apart', () => {
  const found = statistics(true);
  const [text, heard] = [sharesOf((token) => audio[token] === 0), sharesOf((token) => audio[token] === 1)];
  const expected = {
    ...evenness(sharesOf(() => true)),
    deadBlocks: 1,
    'text.load': evenness(text).load,
    'text.entropy': evenness(text).entropy,
    'audio.load': evenness(heard).load,
    'audio.entropy': evenness(heard).entropy,
    textAudioOverlap: text.reduce((sum, own, at) => sum + Math.min(own, heard[at] as number), 0),
  };
  expect(Object.keys(found).sort()).toEqual(Object.keys(expected).sort());
  for (const [name, value] of Object.entries(expected)) expect(found[name], name).toBeCloseTo(value, 7);
});

it('tells of no kinds where no audio row passes', () => {
  expect(Object.keys(statistics(false)).sort()).toEqual(['deadBlocks', 'entropy', 'load']);
});
