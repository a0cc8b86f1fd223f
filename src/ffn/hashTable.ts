/** Blocks by token: the fixed tables of hash layers (Roller et al. 2021, arXiv 2106.04426). */
import type { Random } from '../config/random.ts';
import { float32, type Shape, type Tensor } from '../tensor/tensor.ts';
import type { FeedForwardLayer, SparseLayer } from './config.ts';
import { hashTableName } from './parameters.ts';

/** Audio rows that are told apart; those further on begin anew. */
const audioRows = 256;

/** The row of the table by which a row of an audio stream chooses: it is no token of the vocabulary. */
export function audioRowToken(vocabularySize: number, row: number): number {
  return vocabularySize + (row % audioRows);
}

/** Rows of the table: the vocabulary, and the audio rows behind it. */
export function hashTableRows(vocabularySize: number): number {
  return vocabularySize + audioRows;
}

/** Names and shapes of the tables of hash layers. */
export function hashTableShapes(
  layers: readonly FeedForwardLayer[],
  vocabularySize: number,
): Map<string, Shape> {
  return new Map(
    layers.flatMap((layer, at): [string, Shape][] =>
      layer.kind === 'sparse' && layer.select === 'hash'
        ? [[hashTableName(at), [hashTableRows(vocabularySize), layer.active]]]
        : [],
    ),
  );
}

/**
 * The blocks [tokens, active] of every token, different ones for each token. Balanced, tokens take the blocks that
 * have least to do so far, the most frequent token first; else any.
 * @param frequencies how often tokens occur; one that is missing occurs never
 */
export function hashTable(
  {
    blocks,
    active,
    ...layer
  }: Pick<SparseLayer, 'blocks' | 'active'> & { readonly balance: 'frequency' | 'none' },
  vocabularySize: number,
  frequencies: ReadonlyMap<number, number>,
  random: Random,
): Tensor & { dtype: 'float32' } {
  const rows = hashTableRows(vocabularySize);
  const table = new Float32Array(rows * active);
  // What never occurs is spread as well.
  const frequency = (token: number) => (frequencies.get(token) ?? 0) + 1;
  const tokens = [...Array(rows).keys()];
  if (layer.balance === 'frequency') tokens.sort((a, b) => frequency(b) - frequency(a) || a - b);
  const load = new Float64Array(blocks);
  for (const token of tokens) {
    const chosen = new Set<number>();
    while (chosen.size < active) {
      const drawn = random.integer(blocks);
      const block = layer.balance === 'frequency' ? leastLoaded(load, chosen, drawn) : drawn;
      if (chosen.has(block)) continue;
      table[token * active + chosen.size] = block;
      chosen.add(block);
    }
    for (const block of chosen) load[block] = (load[block] as number) + frequency(token);
  }
  return float32([rows, active], table);
}

/** The block with least to do that is not chosen yet, the first of them from `start` on. */
function leastLoaded(load: Float64Array, chosen: ReadonlySet<number>, start: number): number {
  let [best, least] = [start, Number.POSITIVE_INFINITY];
  for (let step = 0; step < load.length; step++) {
    const block = (start + step) % load.length;
    if ((load[block] as number) >= least || chosen.has(block)) continue;
    best = block;
    least = load[block] as number;
  }
  return best;
}
