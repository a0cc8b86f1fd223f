/**
 * Loss scaling (Micikevicius et al. 2018, section 3.2), dynamic as PyTorch's GradScaler does it. float16 gradients
 * below 6e-8 vanish; the loss's gradient is multiplied so that they do not, and the parameters' are divided again.
 */
import type { Precision } from '../tensor/precision.ts';

/** bfloat16 has the range of float32. */
export function needsLossScale(precision: Precision): boolean {
  return precision === 'float16';
}

export interface LossScale {
  /** What the gradients of the mean loss are multiplied by. A power of two: it changes exponents alone. */
  readonly scale: number;
  /** Steps since it changed last. */
  readonly steps: number;
  /** Steps that were skipped because gradients overflowed. */
  readonly skipped: number;
}

/** PyTorch's and apex's defaults. */
export const initialLossScale: LossScale = { scale: 2 ** 16, steps: 0, skipped: 0 };
const growthInterval = 2000;

/** Gradients that overflow unscaled are beyond repair. */
export const smallestLossScale = 1;

/** The scale after a step: half of it when gradients overflowed, twice of it after 2000 steps without. */
export function nextLossScale({ scale, steps, skipped }: LossScale, overflowed: boolean): LossScale {
  if (overflowed) return { scale: scale / 2, steps: 0, skipped: skipped + 1 };
  if (steps + 1 < growthInterval) return { scale, steps: steps + 1, skipped };
  return { scale: scale * 2, steps: 0, skipped };
}

/** The scale that training goes on with; undefined where the precision needs none. */
export function startingLossScale(
  { precision = 'float32' }: { readonly precision?: Precision },
  start: { readonly lossScale?: LossScale | undefined } | undefined,
): LossScale | undefined {
  return needsLossScale(precision) ? (start?.lossScale ?? initialLossScale) : undefined;
}
