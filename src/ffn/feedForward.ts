/** Feed-forward layers behind one interface. What is sparse about one is decided by its configuration alone. */
import { multiply, silu } from '../tensor/operations.ts';
import type { Parameters } from '../tensor/parameters.ts';
import type { Value } from '../tensor/program.ts';
import { project } from '../tensor/projection.ts';
import { named } from '../tensor/trace.ts';
import type { Choices } from './dispatch.ts';

export interface FeedForwardOutput {
  readonly y: Value;
  /** Added to the training loss: load balancing and the like. A scalar, its coefficient in it. */
  readonly auxiliaryLoss?: Value;
  /** Scalars worth logging, by name. */
  readonly statistics?: Readonly<Record<string, Value>>;
  /** What each row chose; of a layer that chooses. */
  readonly choices?: LayerChoices;
}

export interface LayerChoices extends Choices {
  /** How many blocks (of a mixture of channels: channels) there are to choose from. */
  readonly blocks: number;
  /** 1 where a choice had a place, 0 where it was dropped, [T, C]; all had when left out. */
  readonly keptTC?: Value | undefined;
}

/** What is known of the rows that pass a layer, beside their hidden states. */
export interface FeedForwardRows {
  /** Token ids, int32; an audio row's is above the vocabulary's (`audioRowToken`). */
  readonly tokensBT: Value;
  /** 1 for a real row, 0 for padding; all are real when left out. */
  readonly validBT?: Value | undefined;
  /** 1 for an audio row, 0 for a text row; all are text when left out. */
  readonly audioBT?: Value | undefined;
}

export interface FeedForwardContext {
  /** 0-based. */
  readonly layer: number;
  /** Where the parameters of a dense layer live: `model.layers.0.mlp` */
  readonly prefix: string;
  /** Asked by a layer that needs it. */
  readonly rows?: (() => FeedForwardRows) | undefined;
}

/** @param x hidden states, [..., hidden] */
export type FeedForward = (
  x: Value,
  parameters: Parameters,
  context: FeedForwardContext,
) => FeedForwardOutput;

/** The feed-forward of each layer (0-based) of a model; undefined where it has none. */
export type FeedForwards = (layer: number) => FeedForward | undefined;

/** SwiGLU (Shazeer 2020): `down(silu(gate(x)) * up(x))`. */
export const denseFeedForward: FeedForward = (x, parameters, { prefix }) => {
  const gate = project(x, parameters, `${prefix}.gate_proj`);
  const activated = multiply(silu(gate), project(x, parameters, `${prefix}.up_proj`));
  return { y: named('output', project(activated, parameters, `${prefix}.down_proj`)) };
};

/** Those of a plain LLM. */
export const allDense: FeedForwards = () => denseFeedForward;
