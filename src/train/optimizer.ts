/** Optimizers, written into the tensor program: the update runs where the gradients are. */
import { add, divide, less, multiply, sqrt, subtract, sum, where } from '../tensor/operations.ts';
import type { Value } from '../tensor/program.ts';
import { scope } from '../tensor/trace.ts';

export interface AdamWConfig {
  readonly kind: 'adamw';
  readonly beta1: number;
  readonly beta2: number;
  readonly epsilon: number;
  readonly weightDecay: number;
}

/** Scalars that change from step to step, fed at each run. */
export interface StepScalars {
  readonly learningRate: Value;
  /** 1 - beta1^t and 1 - beta2^t, t counting from 1. */
  readonly correction1: Value;
  readonly correction2: Value;
}

export interface AdamWState {
  readonly first: Value;
  readonly second: Value;
}

/**
 * AdamW (Loshchilov and Hutter 2019, algorithm 2), as PyTorch computes it. Weight decay applies to matrices only:
 * gains and biases have no scale to decay.
 */
export function adamW(
  config: AdamWConfig,
  parameter: Value,
  gradient: Value,
  state: AdamWState,
  { learningRate, correction1, correction2 }: StepScalars,
): { parameter: Value; state: AdamWState } {
  const { beta1, beta2, epsilon, weightDecay } = config;
  const first = add(multiply(state.first, beta1), multiply(gradient, 1 - beta1));
  const second = add(multiply(state.second, beta2), multiply(multiply(gradient, gradient), 1 - beta2));
  const denominator = add(sqrt(divide(second, correction2)), epsilon);
  const step = multiply(divide(first, denominator), divide(learningRate, correction1));
  const decayed =
    parameter.shape.length < 2 || weightDecay === 0
      ? parameter
      : multiply(parameter, subtract(1, multiply(learningRate, weightDecay)));
  return { parameter: subtract(decayed, step), state: { first, second } };
}

/** The Euclidean norm of all gradients together. */
export function globalNorm(gradients: readonly Value[]): Value {
  // In the order in which the gradients come, each one's share as soon as it is there: a walk from the norm then meets
  // the layers as the backward pass does, and frees what they hold one after the other.
  const inOrder = [...gradients].sort((a, b) => a.id - b.id);
  const square = (gradient: Value) => sum(multiply(gradient, gradient));
  const [first, ...rest] = inOrder as [Value, ...Value[]];
  return sqrt(rest.reduce((total, gradient) => add(total, square(gradient)), square(first)));
}

/** The factor that brings the norm down to `limit`, 1 where it is below. */
export function clipFactor(norm: Value, limit: number): Value {
  return scope('clip', () => divide(limit, where(less(norm, limit), limit, norm)));
}
