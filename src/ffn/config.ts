/** What a configuration says about feed-forward layers, and what of it cannot be. */
import { ConfigError } from '../config/configError.ts';
import { type WideConfig, type WideLayer, wideLayers } from './wide.ts';

export interface DenseConfig {
  readonly kind: 'dense';
}

/** No feed-forward layer: the sub-layer is dropped, its norm and its residual connection with it. */
export interface NoneConfig {
  readonly kind: 'none';
}

/** A memory of keys and values in blocks, of which a token uses some (Liu et al. 2023, arXiv 2305.13999). */
interface BlocksConfig {
  readonly kind: 'sparse';
  /** Memory cells, which is to say hidden units; null: as many as the LLM's own feed-forward layer has. */
  readonly memory: number | null;
  /** Cells of a block. */
  readonly blockSize: number;
  /** Blocks that a token uses. */
  readonly active: number;
  /**
   * Room for choices in every block, as a multiple of what each has where all are used alike; what finds no room is
   * dropped. null: there is room for all, however they fall.
   */
  readonly capacityFactor: number | null;
}

/** What a chosen block's output is multiplied by: nothing, or a function of its score. */
export type Gate = 'indicator' | 'sigmoid' | 'softmax';

export interface RouterLosses {
  /** Coefficient of blocks * sum(share of the choices * mean probability), which is least where all are used alike. */
  readonly balanceLoss: number;
  /** Coefficient of mean(logsumexp(logits)²), which keeps the logits small. */
  readonly zLoss: number;
}

export type SelectionConfig =
  | ({ readonly select: 'switch' } & RouterLosses)
  | ({ readonly select: 'topk'; readonly normalize: 'all' | 'chosen' } & RouterLosses)
  | { readonly select: 'hash'; readonly balance: 'frequency' | 'none' }
  | { readonly select: 'avg-k'; readonly gate: Gate }
  | {
      readonly select: 'vanilla-memory';
      readonly aggregate: 'mean' | 'max' | 'activation' | 'magnitude';
      readonly gate: Gate;
    }
  | {
      readonly select: 'pkm';
      readonly heads: number;
      readonly queryWidth: number;
      readonly gate: Exclude<Gate, 'indicator'>;
    }
  | { readonly select: 'lowrank-memory'; readonly rank: number; readonly gate: Exclude<Gate, 'indicator'> };

export type SparseConfig = BlocksConfig & SelectionConfig;

/** All channels (hidden units) computed, some kept by each token (Wu et al. 2025, arXiv 2511.09323). */
export interface ChannelsConfig {
  readonly kind: 'moc';
  /** Channels that a token keeps; null: half the hidden size, or two of eight where that is what `select` says. */
  readonly active: number | null;
  /**
   * What the kept channels are the largest by: the signed gate before SiLU; the magnitude after it; the signed gate
   * within neighbouring channels, two of eight.
   */
  readonly select: 'gate' | 'magnitude' | 'structured';
  /** Whether the backward pass computes SiLU and product again rather than hold them. */
  readonly recompute: boolean;
}

export type FeedForwardConfig = DenseConfig | NoneConfig | SparseConfig | ChannelsConfig | WideConfig;

/** A sparse layer whose sizes are known. */
export type SparseLayer = SparseConfig & {
  readonly memory: number;
  readonly blocks: number;
  /** Whether the memory is as large as the LLM's own feed-forward layer, so that its weights are the memory. */
  readonly ownWeights: boolean;
};

/** A mixture of channels whose sizes are known. */
export type ChannelsLayer = ChannelsConfig & {
  readonly active: number;
  readonly channels: number;
};

export type FeedForwardLayer = DenseConfig | NoneConfig | SparseLayer | ChannelsLayer | WideLayer;

/** The sizes of an LLM that its feed-forward layers go by. */
export interface FeedForwardSizes {
  readonly layers: number;
  readonly hiddenSize: number;
  readonly intermediateSize: number;
}

/** A configuration for some layers: `2..5`; null or left out: for all. */
export type FeedForwardEntry = FeedForwardConfig & { readonly layers?: string | null | undefined };

/**
 * The feed-forward layer of each layer of an LLM.
 * @param asked for all layers, or by ranges of layers; what no range names is dense
 * @throws ConfigError that shows the arithmetic of what does not fit
 */
export function feedForwardLayers(
  asked: FeedForwardConfig | readonly FeedForwardEntry[],
  sizes: FeedForwardSizes,
): FeedForwardLayer[] {
  const entries: readonly FeedForwardEntry[] = 'kind' in asked ? [asked] : asked;
  const chosen = new Array<FeedForwardLayer | undefined>(sizes.layers);
  const owner = new Array<number | undefined>(sizes.layers);
  const whereOf = (index: number) => ('kind' in asked ? 'llm.ffn' : `llm.ffn[${index}]`);
  const ranges = entries.map((entry, index) => rangeOf(entry, sizes, whereOf(index)));
  const dropped = ranges.filter((_, index) => entries[index]?.kind === 'none').flat().length;
  checkWidest(entries, dropped);
  let first = 0;
  for (const [index, entry] of entries.entries()) {
    const where = whereOf(index);
    const range = ranges[index] as number[];
    const made =
      entry.kind === 'wide'
        ? wideLayers(entry, { range, dropped, first, intermediateSize: sizes.intermediateSize, where })
        : new Array<FeedForwardLayer>(range.length).fill(sized(entry, sizes, where));
    if (entry.kind === 'wide') first += entry.groups;
    for (const [place, at] of range.entries()) {
      if (owner[at] !== undefined)
        throw new ConfigError(`${where}.layers: layer ${at} is in llm.ffn[${owner[at]}] already`);
      owner[at] = index;
      chosen[at] = made[place];
    }
  }
  return Array.from(chosen, (layer) => layer ?? { kind: 'dense' });
}

/** What dropped layers had can be given away once. */
function checkWidest(entries: readonly FeedForwardEntry[], dropped: number): void {
  const [first, second] = entries.flatMap((entry, at) =>
    entry.kind === 'wide' && entry.width === 'all' ? at : [],
  );
  if (dropped > 0 && second !== undefined)
    throw new ConfigError(
      `llm.ffn[${second}].width: all: llm.ffn[${first}] takes the units of the ${dropped} dropped layers already; give one of them a number`,
    );
}

function rangeOf({ layers }: FeedForwardEntry, sizes: FeedForwardSizes, where: string): number[] {
  if (layers === null || layers === undefined) return [...Array(sizes.layers).keys()];
  const [from = 0, to = 0] = layers.split('..').map(Number);
  if (to >= sizes.layers)
    throw new ConfigError(`${where}.layers: ${layers}: the LLM has layers 0 to ${sizes.layers - 1}`);
  if (from > to) throw new ConfigError(`${where}.layers: ${layers}: ${to} is below ${from}`);
  return Array.from({ length: to - from + 1 }, (_, at) => from + at);
}

function sized(
  { layers: _, ...config }: Exclude<FeedForwardEntry, WideConfig>,
  sizes: FeedForwardSizes,
  where: string,
): FeedForwardLayer {
  if (config.kind === 'dense' || config.kind === 'none') return config;
  const fail = (field: string, message: string): never => {
    throw new ConfigError(`${where}.${field}: ${message}`);
  };
  return config.kind === 'moc' ? channelsLayer(config, sizes, fail) : sparseLayer(config, sizes, fail);
}

type Fail = (field: string, message: string) => never;

function sparseLayer(config: SparseConfig, { intermediateSize }: FeedForwardSizes, fail: Fail): SparseLayer {
  const { blockSize, active } = config;
  const memory = config.memory ?? intermediateSize;
  if (memory % blockSize !== 0) {
    const whole = Math.floor(memory / blockSize);
    const divisors = [...Array(memory).keys()].map((at) => at + 1).filter((size) => memory % size === 0);
    const near = divisors.sort((a, b) => Math.abs(a - blockSize) - Math.abs(b - blockSize)).slice(0, 3);
    fail(
      'blockSize',
      `${memory} cells = ${whole} x ${blockSize} + ${memory - whole * blockSize}: blocks must divide the memory; near to it: ${near.join(', ')}`,
    );
  }
  const blocks = memory / blockSize;
  const made = `${memory} cells / ${blockSize} a block = ${blocks} blocks`;
  if (active > blocks) fail('active', `${active} of ${made}`);
  if (config.select === 'pkm') {
    const { heads, queryWidth } = config;
    const side = Math.round(Math.sqrt(blocks));
    if (side * side !== blocks)
      fail('blockSize', `${made}, and product keys need a square, as ${side} x ${side} = ${side * side}`);
    if (active % heads !== 0) fail('active', `${active} blocks do not divide among ${heads} heads`);
    // Every block among the best is a sum of two halves that are among their best.
    if (active / heads > side)
      fail(
        'active',
        `${active} blocks / ${heads} heads = ${active / heads} a head, above the ${side} half keys`,
      );
    if (queryWidth % 2 !== 0) fail('queryWidth', `${queryWidth} has no halves`);
  }
  return { ...config, memory, blocks, ownWeights: memory === intermediateSize };
}

function channelsLayer(
  config: ChannelsConfig,
  { hiddenSize, intermediateSize: channels }: FeedForwardSizes,
  fail: Fail,
): ChannelsLayer {
  if (config.select === 'structured') {
    const { groups, of, kept, tail, keptOfTail } = structure(channels);
    const active = groups * kept + keptOfTail;
    if (config.active !== null && config.active !== active)
      fail(
        'active',
        `${config.active}, and ${kept} of every ${of} of ${channels} channels are ${groups} x ${kept} + ${keptOfTail} of ${tail} = ${active}: leave it out`,
      );
    return { ...config, active, channels };
  }
  const active = config.active ?? Math.floor(hiddenSize / 2);
  if (active > channels)
    fail(
      'active',
      `${active}${config.active === null ? ` = ${hiddenSize} hidden / 2` : ''} of ${channels} channels`,
    );
  return { ...config, active, channels };
}

/** Two of every eight neighbouring channels, and as many of a shorter group at the end. */
export function structure(channels: number): {
  readonly groups: number;
  readonly of: number;
  readonly kept: number;
  readonly tail: number;
  readonly keptOfTail: number;
} {
  const [of, kept] = [8, 2];
  const tail = channels % of;
  return { groups: Math.floor(channels / of), of, kept, tail, keptOfTail: Math.min(kept, tail) };
}

/** Whether any layer chooses, among blocks or channels. */
export function isSparse(layers: readonly FeedForwardLayer[]): boolean {
  return layers.some(({ kind }) => kind === 'sparse' || kind === 'moc');
}
