/** How choices fall on blocks, and how much the choice in one layer tells of that in another. Counts in float64. */
import type { Random } from '../config/random.ts';
import type { RoutedRows } from './choices.ts';

/** The choices of some tokens. */
export interface Chosen {
  readonly blocks: number;
  readonly active: number;
  /** [tokens, active] */
  readonly chosen: Int32Array;
}

/** How often each block was chosen. @param isCounted whether a token counts; all do when left out */
export function loadPerBlock(
  { blocks, active, chosen }: Chosen,
  isCounted: (token: number) => boolean = () => true,
): number[] {
  const load = new Array<number>(blocks).fill(0);
  for (let token = 0; token * active < chosen.length; token++) {
    if (!isCounted(token)) continue;
    for (let at = token * active; at < (token + 1) * active; at++) {
      const block = chosen[at] as number;
      load[block] = (load[block] as number) + 1;
    }
  }
  return load;
}

/** Each block's share; null where nothing was chosen. */
function sharesOf(load: readonly number[]): number[] | null {
  const total = load.reduce((sum, own) => sum + own, 0);
  return total === 0 ? null : load.map((own) => own / total);
}

/** Choices of the busiest block, as a multiple of its fair share; null where nothing was chosen. */
export function busiest(load: readonly number[]): number | null {
  const shares = sharesOf(load);
  return shares && shares.length * shares.reduce((most, own) => Math.max(most, own), 0);
}

/** Entropy of the blocks' shares by the largest possible, log(blocks); null where nothing was chosen. */
export function evenness(load: readonly number[]): number | null {
  const shares = sharesOf(load);
  if (shares === null) return null;
  return load.length === 1 ? 1 : entropy(shares) / Math.log(load.length);
}

/**
 * The sum over the blocks of the smaller share, which is one less the total variation distance: 1 where both fall
 * alike, 0 where they have no block in common; null where one of them chose nothing.
 */
export function shareOverlap(one: readonly number[], other: readonly number[]): number | null {
  const [a, b] = [sharesOf(one), sharesOf(other)];
  return a && b && a.reduce((sum, own, block) => sum + Math.min(own, b[block] as number), 0);
}

/** In nats. */
function entropy(shares: Iterable<number>): number {
  let total = 0;
  for (const share of shares) if (share > 0) total -= share * Math.log(share);
  return total;
}

/**
 * Normalised mutual information of two layers' choices: of a token, drawn at random, and one of its blocks in each
 * layer, drawn independently, so that P(a, b) = mean over the tokens of [a among its k_A] [b among its k_B] / (k_A k_B);
 *
 *     sum P(a, b) log(P(a, b) / (P(a) P(b))) / min(H(A), H(B))
 *
 * 0: the blocks of one layer tell nothing of those of the other; 1: one layer's block determines the other's. With k
 * above 1 a layer and itself have less than 1: one of a token's blocks does not tell which other one is drawn.
 * @param one and `other` of the same tokens in the same order
 * @returns null where a layer uses one block alone, so that there is nothing to tell
 */
export function normalizedMutualInformation(one: Chosen, other: Chosen): number | null {
  const joint = new Float64Array(one.blocks * other.blocks);
  const tokens = one.chosen.length / one.active;
  for (let token = 0; token < tokens; token++) {
    for (let a = token * one.active; a < (token + 1) * one.active; a++) {
      const row = (one.chosen[a] as number) * other.blocks;
      for (let b = token * other.active; b < (token + 1) * other.active; b++)
        (joint[row + (other.chosen[b] as number)] as number) += 1;
    }
  }
  const pairs = tokens * one.active * other.active;
  for (let at = 0; at < joint.length; at++) (joint[at] as number) /= pairs;
  const [ofOne, ofOther] = [one, other].map((layer) => entropy(sharesOf(loadPerBlock(layer)) ?? [])) as [
    number,
    number,
  ];
  const least = Math.min(ofOne, ofOther);
  // I(A; B) = H(A) + H(B) - H(A, B), whose rounding may go below nothing.
  return least === 0 ? null : Math.max(0, (ofOne + ofOther - entropy(joint)) / least);
}

/** Pairs of choices and of blocks beyond which two layers are not compared: they take too long, and too much memory. */
export const mostPairs = { ofChoices: 2 ** 27, ofBlocks: 2 ** 24 };

export interface LayerOverlap {
  /** Normalised mutual information. */
  readonly measured: number | null;
  /** The same after the tokens of one layer are shuffled: what so few tokens give by chance. */
  readonly shuffled: number | null;
}

/**
 * How much two layers' choices for the same rows tell of each other; rows that pass one of them alone do not count.
 * @returns undefined beyond `mostPairs`
 */
export function layerOverlap(one: RoutedRows, other: RoutedRows, draw: Random): LayerOverlap | undefined {
  const [inOne, inOther] = commonRows(one, other);
  const ofChoices = inOne.length * one.active * other.active;
  if (ofChoices > mostPairs.ofChoices || one.blocks * other.blocks > mostPairs.ofBlocks) return undefined;
  const first = { ...one, chosen: pickTokens(one, inOne) };
  const second = { ...other, chosen: pickTokens(other, inOther) };
  const apart = { ...other, chosen: pickTokens(other, draw.shuffle(inOther)) };
  return {
    measured: normalizedMutualInformation(first, second),
    shuffled: normalizedMutualInformation(first, apart),
  };
}

/** Where the rows that pass both layers stand in each. */
function commonRows(one: RoutedRows, other: RoutedRows): [number[], number[]] {
  const [inOne, inOther]: [number[], number[]] = [[], []];
  for (let a = 0, b = 0; a < one.row.length && b < other.row.length; ) {
    const difference = (one.row[a] as number) - (other.row[b] as number);
    if (difference === 0) {
      inOne.push(a);
      inOther.push(b);
    }
    if (difference <= 0) a++;
    if (difference >= 0) b++;
  }
  return [inOne, inOther];
}

function pickTokens({ active, chosen }: Chosen, tokens: readonly number[]): Int32Array {
  const picked = new Int32Array(tokens.length * active);
  for (const [at, token] of tokens.entries())
    picked.set(chosen.subarray(token * active, (token + 1) * active), at * active);
  return picked;
}
