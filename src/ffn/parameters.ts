/** What a sparse feed-forward layer adds to an LLM's parameters, and what it takes the place of. */
import type { ParameterSpec } from '../tensor/parameters.ts';
import type { FeedForwardLayer, SparseLayer } from './config.ts';

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

/** Whether a parameter of the LLM has no place beside these layers: their memory is of another size. */
export function isReplaced(layers: readonly FeedForwardLayer[], name: string): boolean {
  const found = layers[feedForwardLayerOf(name)];
  return found?.kind === 'sparse' && !found.ownWeights;
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
    if (layer.kind !== 'sparse') continue;
    const prefix = ownPrefix(at);
    const matrix = (name: string, outputs: number, inputs: number) =>
      specs.set(`${prefix}.${name}.weight`, {
        shape: [outputs, inputs],
        initial: 'normal',
        deviation: inputs ** -0.5,
      });
    if (!layer.ownWeights) {
      const bias = (name: string, size: number) => {
        if (biases.feedForward) specs.set(`${prefix}.${name}.bias`, { shape: [size], initial: 'zeros' });
      };
      matrix('gate_proj', layer.memory, hiddenSize);
      bias('gate_proj', layer.memory);
      matrix('up_proj', layer.memory, hiddenSize);
      bias('up_proj', layer.memory);
      // As many cells add up as a token uses.
      const deviation = (layer.active * layer.blockSize) ** -0.5;
      const shape = [hiddenSize, layer.memory];
      specs.set(`${prefix}.down_proj.weight`, { shape, initial: 'normal', deviation });
      bias('down_proj', hiddenSize);
    }
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
