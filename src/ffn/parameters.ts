/** What feed-forward layers add to an LLM's parameters, and what they take the place of. */
import type { ParameterSpec } from '../tensor/parameters.ts';
import type { FeedForwardLayer, SparseLayer } from './config.ts';
import { sharedPrefix } from './wide.ts';

/** Where a layer's own parameters live. */
export function ownPrefix(layer: number): string {
  return `ffn.layers.${layer}`;
}

/** Where a layer's memory lives: the LLM's own matrices where it is as large as they are. */
export function memoryPrefix({ ownWeights }: SparseLayer, layer: number): string {
  return ownWeights ? `model.layers.${layer}.mlp` : ownPrefix(layer);
}

/** The fixed table by which a hash layer chooses. */
export function hashTableName(layer: number): string {
  return `${ownPrefix(layer)}.table`;
}

/** Whether a parameter is such a table, which nothing trains. */
export function isHashTable(name: string): boolean {
  return /^ffn\.layers\.\d+\.table$/.test(name);
}

/** Whether a parameter is one of the feed-forward layers' own. */
export function isFeedForward(name: string): boolean {
  return name.startsWith('ffn.');
}

/** The layer whose dense feed-forward a parameter of the LLM belongs to; -1 for any other. */
export function feedForwardLayerOf(name: string): number {
  return Number(/^model\.layers\.(\d+)\.mlp\./.exec(name)?.[1] ?? -1);
}

/** The layer whose feed-forward's norm a parameter of the LLM is; -1 for any other. */
export function feedForwardNormOf(name: string): number {
  return Number(/^model\.layers\.(\d+)\.post_attention_layernorm\./.exec(name)?.[1] ?? -1);
}

/** Whether a layer does without the LLM's own feed-forward weights: it is shared, dropped, or of another size. */
export function hasOtherWeights(layer: FeedForwardLayer | undefined): boolean {
  return layer?.kind === 'wide' || layer?.kind === 'none' || (layer?.kind === 'sparse' && !layer.ownWeights);
}

/** Whether a parameter of the LLM has no place beside these layers. */
export function isReplaced(layers: readonly FeedForwardLayer[], name: string): boolean {
  return (
    hasOtherWeights(layers[feedForwardLayerOf(name)]) || layers[feedForwardNormOf(name)]?.kind === 'none'
  );
}

/** The sizes that the specifications need. */
interface Sizes {
  readonly hiddenSize: number;
  readonly biases: { readonly feedForward: boolean };
}

/** Names, shapes and initial values of what learns; hash tables are made by `hashTable`. */
export function feedForwardParameters(
  layers: readonly FeedForwardLayer[],
  { hiddenSize, biases }: Sizes,
): Map<string, ParameterSpec> {
  const specs = new Map<string, ParameterSpec>();
  for (const [at, layer] of layers.entries()) {
    if (layer.kind !== 'sparse' && layer.kind !== 'wide') continue;
    const prefix = layer.kind === 'wide' ? sharedPrefix(layer) : ownPrefix(at);
    const matrix = (name: string, outputs: number, inputs: number) =>
      specs.set(`${prefix}.${name}.weight`, {
        shape: [outputs, inputs],
        initial: 'normal',
        deviation: inputs ** -0.5,
      });
    /** @param added cells that add up for a token */
    const swiGlu = (cells: number, added: number) => {
      const bias = (name: string, size: number) => {
        if (biases.feedForward) specs.set(`${prefix}.${name}.bias`, { shape: [size], initial: 'zeros' });
      };
      matrix('gate_proj', cells, hiddenSize);
      bias('gate_proj', cells);
      matrix('up_proj', cells, hiddenSize);
      bias('up_proj', cells);
      const shape = [hiddenSize, cells];
      specs.set(`${prefix}.down_proj.weight`, { shape, initial: 'normal', deviation: added ** -0.5 });
      bias('down_proj', hiddenSize);
    };
    // Layers that share one name it alike.
    if (layer.kind === 'wide') {
      swiGlu(layer.width, layer.width);
      continue;
    }
    if (!layer.ownWeights) swiGlu(layer.memory, layer.active * layer.blockSize);
    switch (layer.select) {
      case 'switch':
      case 'topk':
        matrix('router', layer.blocks, hiddenSize);
        break;
      case 'lowrank-memory':
        matrix('query', layer.rank, hiddenSize);
        matrix('keys', layer.blocks, layer.rank);
        break;
      case 'pkm': {
        const half = layer.queryWidth / 2;
        matrix('query', layer.heads * layer.queryWidth, hiddenSize);
        specs.set(`${prefix}.query_norm.weight`, { shape: [layer.queryWidth], initial: 'ones' });
        const shape = [2 * layer.heads, Math.sqrt(layer.blocks), half];
        specs.set(`${prefix}.keys.weight`, { shape, initial: 'uniform', bound: half ** -0.5 });
      }
    }
  }
  return specs;
}
