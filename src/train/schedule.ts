/** Learning-rate schedules. */

export interface Schedule {
  readonly steps: number;
  readonly learningRate: number;
  readonly warmupSteps: number;
  readonly finalLearningRate: number;
}

/**
 * Linear warm-up, then a cosine from the peak to the final rate (Loshchilov and Hutter 2017).
 * @param step 0-based step within the stage
 */
export function learningRateAt(
  step: number,
  { steps, learningRate, warmupSteps, finalLearningRate }: Schedule,
): number {
  if (step < warmupSteps) return (learningRate * (step + 1)) / warmupSteps;
  const progress = Math.min(1, (step - warmupSteps) / Math.max(1, steps - warmupSteps));
  return finalLearningRate + (learningRate - finalLearningRate) * 0.5 * (1 + Math.cos(Math.PI * progress));
}
