/** The feed-forward layers of a model, each as its configuration says. */
import { ProgramError } from '../tensor/program.ts';
import { channelsFeedForward } from './channels.ts';
import type { ChannelsLayer, FeedForwardLayer, SparseLayer } from './config.ts';
import { denseFeedForward, type FeedForward, type FeedForwards } from './feedForward.ts';
import { memoryPrefix } from './parameters.ts';
import { sparseFeedForward } from './sparse.ts';
import { sharedPrefix } from './wide.ts';

/** The feed-forwards of a model with these layers. */
export function feedForwardOf(layers: readonly FeedForwardLayer[]): FeedForwards {
  const made = layers.map(layerOf);
  return (layer) => {
    if (layer >= made.length)
      throw new ProgramError(`layer ${layer}: there are feed-forward layers for ${made.length}`);
    return made[layer];
  };
}

function layerOf(layer: FeedForwardLayer): FeedForward | undefined {
  switch (layer.kind) {
    case 'dense':
      return denseFeedForward;
    case 'none':
      return undefined;
    case 'moc':
      return keepsEverything(layer) ? denseFeedForward : channelsFeedForward(layer);
    case 'wide':
      return (x, parameters, context) =>
        denseFeedForward(x, parameters, { ...context, prefix: sharedPrefix(layer) });
    case 'sparse':
      if (!usesEverything(layer)) return sparseFeedForward(layer);
      return (x, parameters, context) =>
        denseFeedForward(x, parameters, { ...context, prefix: memoryPrefix(layer, context.layer) });
  }
}

/** The layer with its weights, where nothing is chosen: every token uses all of them. */
export function withoutChoice(layer: FeedForwardLayer): FeedForwardLayer {
  if (layer.kind === 'moc') return { ...layer, active: layer.channels };
  if (layer.kind !== 'sparse') return layer;
  const { blocks } = layer;
  return { ...layer, select: 'hash', balance: 'none', active: blocks, capacityFactor: null };
}

/** Whether every token keeps every channel: then there is nothing to choose. */
export function keepsEverything({ active, channels }: ChannelsLayer): boolean {
  return active === channels;
}

/** Whether every token uses every block as it is: then there is nothing to choose. */
export function usesEverything(layer: SparseLayer): boolean {
  const isWeighted = layer.select !== 'hash' && !('gate' in layer && layer.gate === 'indicator');
  return layer.active === layer.blocks && !isWeighted && layer.capacityFactor === null;
}
