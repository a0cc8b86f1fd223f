/** The feed-forward layers of a model, each as its configuration says. */
import { channelsFeedForward } from './channels.ts';
import type { ChannelsLayer, FeedForwardLayer, SparseLayer } from './config.ts';
import { denseFeedForward, type FeedForward } from './feedForward.ts';
import { memoryPrefix } from './parameters.ts';
import { sparseFeedForward } from './sparse.ts';

/** The feed-forward of a model with these layers; the context says which one is meant. */
export function feedForwardOf(layers: readonly FeedForwardLayer[]): FeedForward {
  const made = layers.map(layerOf);
  return (x, parameters, context) => (made[context.layer] ?? denseFeedForward)(x, parameters, context);
}

function layerOf(layer: FeedForwardLayer): FeedForward {
  if (layer.kind === 'dense') return denseFeedForward;
  if (layer.kind === 'moc') return keepsEverything(layer) ? denseFeedForward : channelsFeedForward(layer);
  if (!usesEverything(layer)) return sparseFeedForward(layer);
  return (x, parameters, context) =>
    denseFeedForward(x, parameters, { ...context, prefix: memoryPrefix(layer, context.layer) });
}

/** Whether every token keeps every channel: then there is nothing to choose. */
export function keepsEverything({ active, channels }: ChannelsLayer): boolean {
  return active === channels;
}

/** Whether every token uses every block as it is: then there is nothing to choose. */
export function usesEverything(layer: SparseLayer): boolean {
  const isWeighted = !('gate' in layer ? layer.gate === 'indicator' : layer.select === 'hash');
  return layer.active === layer.blocks && !isWeighted && layer.capacityFactor === null;
}
