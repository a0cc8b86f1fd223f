/**
 * What feed-forward layers hold from the forward pass to the backward pass, in elements a token (Wu et al. 2025, arXiv
 * 2511.09323, section 2 and the table of its code): d hidden units, F channels, K of which a token keeps. What a layer
 * reads is counted with the norm that made it; indices count as elements.
 */
import type { FeedForwardLayer, FeedForwardSizes } from './config.ts';
import { keepsEverything } from './layers.ts';

export interface HeldActivations {
  /** `5K + d` */
  readonly formula: string;
  /** Elements a token. */
  readonly elements: number;
}

/**
 * The gates, the ups, SiLU, the product and the output of a dense layer; of a mixture of channels those of the kept
 * channels and which they are, or without what is computed again. null: what a layer of blocks holds depends on how
 * its slots are laid out; the liveness of its program tells it.
 */
export function heldActivations(
  layer: FeedForwardLayer,
  { hiddenSize, intermediateSize }: Pick<FeedForwardSizes, 'hiddenSize' | 'intermediateSize'>,
): HeldActivations | null {
  if (layer.kind === 'sparse') return null;
  if (layer.kind === 'none') return { formula: 'nothing', elements: 0 };
  if (layer.kind === 'wide') return { formula: '4F + d', elements: 4 * layer.width + hiddenSize };
  if (layer.kind === 'dense' || keepsEverything(layer))
    return { formula: '4F + d', elements: 4 * intermediateSize + hiddenSize };
  const each = layer.recompute ? 3 : 5;
  return { formula: `${each}K + d`, elements: each * layer.active + hiddenSize };
}

export interface HeldByLayers extends HeldActivations {
  readonly layers: readonly number[];
  readonly kind: FeedForwardLayer['kind'];
  /** By what a dense layer holds. */
  readonly ofDense: number;
}

/** The layers that hold alike. */
export function heldByLayers(
  layers: readonly FeedForwardLayer[],
  sizes: Pick<FeedForwardSizes, 'hiddenSize' | 'intermediateSize'>,
): HeldByLayers[] {
  const dense = heldActivations({ kind: 'dense' }, sizes) as HeldActivations;
  const found = new Map<string, HeldByLayers>();
  for (const [at, layer] of layers.entries()) {
    const held = heldActivations(layer, sizes);
    if (held === null) continue;
    const key = `${layer.kind} ${held.formula} ${held.elements}`;
    const before = found.get(key)?.layers ?? [];
    const ofDense = held.elements / dense.elements;
    found.set(key, { kind: layer.kind, layers: [...before, at], ...held, ofDense });
  }
  return [...found.values()];
}

/** For people: one line for each kind; nothing where all layers are dense. */
export function describeHeld(held: readonly HeldByLayers[]): string[] {
  if (held.every(({ kind }) => kind === 'dense')) return [];
  return held.map(
    ({ layers, kind, formula, elements, ofDense }) =>
      `feed-forward activations, ${kind} (layers ${layers.join(', ')}): ${formula} = ${elements} elements a token` +
      (kind === 'dense' ? '' : `, ${ofDense.toFixed(2)} x dense`),
  );
}
