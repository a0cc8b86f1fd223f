/** The choice of the next token from its logits. */
import type { Random } from '../config/random.ts';
import { ModelError } from './modelError.ts';

export interface Sampling {
  /** Divides the logits. */
  readonly temperature: number;
  /** Only so many of the likeliest tokens; null: all. */
  readonly topK: number | null;
  /** Only the likeliest tokens that together reach this probability (Holtzman et al. 2020, arXiv 1904.09751). */
  readonly topP: number;
  /** Only tokens at least this times as likely as the likeliest (Nguyen et al. 2024, arXiv 2407.01082). */
  readonly minP: number;
}

export type Decoding = {
  /** What was seen before, prompt and answer, has its logit divided by this, or multiplied if negative (Keskar et al. 2019, arXiv 1909.05858). */
  readonly repetitionPenalty?: number;
} & (
  | { readonly decoding: 'greedy' }
  | ({ readonly decoding: 'sample'; readonly random: Random } & Partial<Sampling>)
);

/**
 * The next token of each sequence.
 * @param logitsBV [B, V]; penalties are written into them
 * @param seen the tokens of each sequence so far
 * @throws ModelError when the largest logit is no number
 */
export function chooseTokens(
  logitsBV: Float32Array,
  seen: readonly (readonly number[])[],
  decoding: Decoding,
): number[] {
  const size = logitsBV.length / seen.length;
  return seen.map((ids, row) => {
    const logits = logitsBV.subarray(row * size, (row + 1) * size);
    if (!Number.isFinite(logits[argmax(logits)])) {
      throw new ModelError(
        `the model's logits are no numbers behind ${ids.length} tokens: its weights are broken, or training diverged`,
      );
    }
    penalize(logits, ids, decoding.repetitionPenalty ?? 1);
    if (decoding.decoding === 'greedy') return argmax(logits);
    return draw(candidatesOf(logits, decoding), decoding.random);
  });
}

function penalize(logits: Float32Array, seen: readonly number[], penalty: number): void {
  if (penalty === 1) return;
  for (const id of new Set(seen)) {
    const logit = logits[id] as number;
    logits[id] = logit < 0 ? logit * penalty : logit / penalty;
  }
}

/** NaN at the beginning stays the largest. */
function argmax(logits: Float32Array): number {
  let best = 0;
  for (let at = 1; at < logits.length; at++) if ((logits[at] as number) > (logits[best] as number)) best = at;
  return best;
}

/** A token and its probability up to a common factor: 1 for the likeliest. */
export interface Candidate {
  readonly id: number;
  readonly weight: number;
}

/**
 * The tokens that may be drawn. Temperature, top-k, top-p and min-p work one after the other, as in transformers; the
 * lower id wins a tie.
 * @throws RangeError for a temperature or a top-k that is not above 0
 */
export function candidatesOf(
  logits: Float32Array,
  { temperature = 1, topK = null, topP = 1, minP = 0 }: Partial<Sampling>,
): Candidate[] {
  if (!(temperature > 0)) {
    throw new RangeError(
      `temperature: ${temperature}: expected a number above 0; decoding: 'greedy' takes the likeliest token`,
    );
  }
  if (topK !== null && topK < 1) throw new RangeError(`topK: ${topK}: expected a number above 0, or null`);
  const top = logits[argmax(logits)] as number;
  const weights = Float64Array.from(logits, (logit) => Math.exp((logit - top) / temperature));
  let candidates =
    topK === null && topP === 1 ? all(weights) : likeliest(weights, topK ?? weights.length, topP);
  if (minP > 0) candidates = candidates.filter(({ weight }) => weight >= minP);
  return candidates;
}

function all(weights: Float64Array): Candidate[] {
  return Array.from(weights, (weight, id) => ({ id, weight }));
}

/**
 * The k likeliest tokens and, of those, the ones that together reach the probability. Sorting a whole vocabulary for a
 * handful of tokens is what takes the time: so only those above a threshold are sorted, lowered until they suffice.
 */
function likeliest(weights: Float64Array, k: number, topP: number): Candidate[] {
  for (let threshold = 1e-2; ; threshold = threshold < 1e-12 ? 0 : threshold / 100) {
    const sorted = all(weights)
      .filter(({ weight }) => weight >= threshold)
      .sort((a, b) => b.weight - a.weight || a.id - b.id);
    const kept = sorted.slice(0, k);
    const isWhole = kept.length === k || threshold === 0;
    // Without the k there is a total to reach all the same: that of the whole vocabulary.
    const total = k < weights.length ? sum(kept.map(({ weight }) => weight)) : sum(weights);
    const nucleus = untilReached(kept, topP * total);
    if (isWhole || (k >= weights.length && nucleus !== undefined)) return nucleus ?? kept;
  }
}

/** The first candidates, up to the one with which their weights reach a sum; undefined when they never do. */
function untilReached(candidates: readonly Candidate[], wanted: number): Candidate[] | undefined {
  let reached = 0;
  for (const [at, { weight }] of candidates.entries()) {
    reached += weight;
    if (reached >= wanted) return candidates.slice(0, at + 1);
  }
  return undefined;
}

function sum(numbers: Iterable<number>): number {
  let total = 0;
  for (const number of numbers) total += number;
  return total;
}

function draw(candidates: readonly Candidate[], random: Random): number {
  let left = random.uniform() * sum(candidates.map(({ weight }) => weight));
  for (const { id, weight } of candidates) {
    left -= weight;
    if (left < 0) return id;
  }
  // Rounding left a rest: the likeliest.
  return candidates.reduce((best, other) => (other.weight > best.weight ? other : best)).id;
}
