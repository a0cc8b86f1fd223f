/** Feed-forward layers behind one interface. What is sparse about one is decided by its configuration alone. */
import { multiply, silu } from '../tensor/operations.ts';
import type { Parameters } from '../tensor/parameters.ts';
import type { Value } from '../tensor/program.ts';
import { project } from '../tensor/projection.ts';
import { named } from '../tensor/trace.ts';

export interface FeedForwardConfig {
  readonly kind: 'dense';
}

export interface FeedForwardOutput {
  readonly y: Value;
  /** Added to the training loss: load balancing and the like. */
  readonly auxiliaryLoss?: Value;
  /** Scalars worth logging, by name. */
  readonly statistics?: Readonly<Record<string, Value>>;
}

/**
 * @param x hidden states, [..., hidden]
 * @param prefix where the layer's parameters live: `model.layers.0.mlp`
 */
export type FeedForward = (x: Value, parameters: Parameters, prefix: string) => FeedForwardOutput;

/** SwiGLU (Shazeer 2020): `down(silu(gate(x)) * up(x))`. */
export const denseFeedForward: FeedForward = (x, parameters, prefix) => {
  const gate = project(x, parameters, `${prefix}.gate_proj`);
  const activated = multiply(silu(gate), project(x, parameters, `${prefix}.up_proj`));
  return { y: named('output', project(activated, parameters, `${prefix}.down_proj`)) };
};

/** The layer that a configuration asks for. */
export function feedForwardOf(config: FeedForwardConfig): FeedForward {
  switch (config.kind) {
    case 'dense':
      return denseFeedForward;
  }
}
