/** How the choices of a layer fall, as scalars of its program; of real rows alone. */
import {
  add,
  cast,
  divide,
  filled,
  less,
  log,
  max,
  multiply,
  negate,
  subtract,
  sum,
  where,
} from '../tensor/operations.ts';
import type { Value } from '../tensor/program.ts';
import { withPrecision } from '../tensor/trace.ts';
import { type Choices, loadOf } from './dispatch.ts';

/**
 * `load`: choices of the busiest block, as a multiple of its fair share. `entropy`: of the blocks' shares, by the
 * largest possible. `deadBlocks`: those that nobody chose. With audio rows `load` and `entropy` of text and audio apart
 * (`text.load`), and `textAudioOverlap`, the sum over the blocks of the smaller of both shares: one less the total
 * variation distance, 1 where both fall alike.
 * @param loadB choices of each block, [B], float32
 */
export function choiceStatistics(choices: Choices, loadB: Value): Record<string, Value> {
  return withPrecision('float32', () => {
    const shareB = sharesOf(loadB);
    const all = { ...evenness(shareB), deadBlocks: sum(cast(less(loadB, 0.5), 'float32')) };
    const { audioT, validT } = choices;
    if (audioT === undefined) return all;
    const isCounted = validT === undefined ? audioT : multiply(validT, audioT);
    const audioLoadB = loadOf({ ...choices, validT: isCounted }, loadB.shape[0] as number);
    const [textB, audioB] = [sharesOf(subtract(loadB, audioLoadB)), sharesOf(audioLoadB)];
    return {
      ...all,
      ...prefixed('text', evenness(textB)),
      ...prefixed('audio', evenness(audioB)),
      textAudioOverlap: sum(where(less(textB, audioB), textB, audioB)),
    };
  });
}

function sharesOf(loadB: Value): Value {
  return divide(loadB, sum(loadB));
}

function evenness(shareB: Value): Record<'load' | 'entropy', Value> {
  const blocks = shareB.shape[0] as number;
  // A block that nobody chose adds nothing: 0 * log of something positive.
  const entropy = negate(sum(multiply(shareB, log(add(shareB, 1e-30)))));
  return {
    load: multiply(max(shareB), blocks),
    entropy: blocks === 1 ? filled('float32', [], 1) : multiply(entropy, 1 / Math.log(blocks)),
  };
}

function prefixed(kind: string, values: Readonly<Record<string, Value>>): Record<string, Value> {
  return Object.fromEntries(Object.entries(values).map(([name, value]) => [`${kind}.${name}`, value]));
}
