/**
 * One feed-forward layer in the place of several (Pires et al. 2023, One Wide Feedforward is All You Need, arXiv
 * 2309.01826): its weights exist once, and what flows back into them from every use adds up.
 */
import { ConfigError } from '../config/configError.ts';
import type { ParameterTensors } from '../tensor/parameters.ts';
import { float32, type Tensor } from '../tensor/tensor.ts';

type FloatTensor = Tensor & { dtype: 'float32' };

export interface WideConfig {
  readonly kind: 'wide';
  /**
   * Hidden units; null: as many as the LLM's own layer has; `all`: as many as all the layers have together that it
   * takes the place of, dropped ones among them.
   */
  readonly width: number | 'all' | null;
  /** Shared layers that the range has; they have the same width. */
  readonly groups: number;
  /**
   * Which layer uses which of three: `sequence` 001122, `cycle` 012012, `cycle-reverse` 012210. Of more turns the last
   * alone is reversed (Takase and Kiyono 2021, arXiv 2104.06022).
   */
  readonly tie: 'sequence' | 'cycle' | 'cycle-reverse';
  /** How it begins: null: from the seed; as the mean of the layers that share it, or as one of them. */
  readonly from: 'average' | number | null;
}

/** What one layer of the LLM is told of the feed-forward layer that it uses. */
export interface WideLayer {
  readonly kind: 'wide';
  /** Counts the shared layers of the LLM. */
  readonly shared: number;
  readonly width: number;
  /** The layers of the LLM whose weights it begins as the mean of; none: it begins from the seed. */
  readonly from: readonly number[];
}

interface Place {
  /** The layers of the LLM that are meant. */
  readonly range: readonly number[];
  /** How many others are dropped. */
  readonly dropped: number;
  /** The number of the first shared layer. */
  readonly first: number;
  readonly intermediateSize: number;
  /** How errors call the configuration. */
  readonly where: string;
}

/**
 * What each layer of a range uses.
 * @throws ConfigError that shows the arithmetic of what does not fit
 */
export function wideLayers({ width: asked, groups, tie, from }: WideConfig, place: Place): WideLayer[] {
  const { range, dropped, first, intermediateSize, where } = place;
  const fail = (field: string, message: string): never => {
    throw new ConfigError(`${where}.${field}: ${message}`);
  };
  const count = range.length;
  if (count % groups !== 0)
    fail(
      'groups',
      `${count} layers / ${groups} groups = ${Number((count / groups).toFixed(2))}: no whole number`,
    );
  const cells = (count + dropped) * intermediateSize;
  if (asked === 'all' && cells % groups !== 0)
    fail(
      'width',
      `all: (${count} + ${dropped} dropped layers) x ${intermediateSize} units / ${groups} groups: no whole number`,
    );
  const width = asked === 'all' ? cells / groups : (asked ?? intermediateSize);
  if (from !== null && width !== intermediateSize)
    fail(
      'from',
      `${from}: the LLM's own layers have ${intermediateSize} units, the shared one has ${width}; leave out from, or choose width: null`,
    );
  if (typeof from === 'number' && groups > 1)
    fail('from', `${from}: one layer cannot be the beginning of ${groups} groups; choose average`);
  if (typeof from === 'number' && !range.includes(from))
    fail('from', `${from}: not among the layers that share it, ${range[0]} to ${range.at(-1)}`);
  const groupOf = range.map((_, at) => groupAt(tie, groups, count, at));
  return groupOf.map((group) => ({
    kind: 'wide',
    shared: first + group,
    width,
    from: from === null ? [] : from === 'average' ? range.filter((_, at) => groupOf[at] === group) : [from],
  }));
}

function groupAt(tie: WideConfig['tie'], groups: number, layers: number, at: number): number {
  if (tie === 'sequence') return Math.floor((at * groups) / layers);
  const isReversed = tie === 'cycle-reverse' && layers > groups && at >= layers - groups;
  return isReversed ? groups - 1 - (at % groups) : at % groups;
}

/** Where the weights of a shared layer live. */
export function sharedPrefix({ shared }: WideLayer): string {
  return `ffn.shared.${shared}`;
}

const ofShared = /^ffn\.shared\.(\d+)\.(.+)$/;

/** Whether a parameter is a shared layer's. */
export function isShared(name: string): boolean {
  return ofShared.test(name);
}

/**
 * What a shared layer's parameter begins as: the mean of those of the LLM's layers, added up in float64; undefined
 * where the seed decides, and for other parameters.
 * @param llm the LLM's parameters, those among them that sharing replaces
 */
export function sharedFrom(
  layers: readonly { readonly kind: string }[],
  llm: ParameterTensors,
  name: string,
): FloatTensor | undefined {
  const [, number, part] = ofShared.exec(name) ?? [];
  const layer = layers.find((own): own is WideLayer => isWide(own) && own.shared === Number(number));
  if (layer === undefined || layer.from.length === 0) return undefined;
  const sources = layer.from.map((at) => {
    const source = llm.get(`model.layers.${at}.mlp.${part}`);
    if (source === undefined)
      throw new ConfigError(`llm.ffn.from: the LLM has no model.layers.${at}.mlp.${part} to begin from`);
    return source;
  });
  const [first] = sources as [FloatTensor];
  const sumAt = (at: number) => sources.reduce((total, { data }) => total + (data[at] as number), 0);
  return float32(
    first.shape,
    first.data.map((_, at) => sumAt(at) / sources.length),
  );
}

function isWide(layer: { readonly kind: string }): layer is WideLayer {
  return layer.kind === 'wide';
}

/**
 * The parameters with a copy of the shared weights in every layer that uses them, under the LLM's own names: what
 * programs hold that know of no sharing. Numbers are not copied.
 */
export function untied(
  layers: readonly { readonly kind: string }[],
  parameters: ParameterTensors,
): Map<string, FloatTensor> {
  const all = new Map(parameters);
  for (const [at, layer] of layers.entries()) {
    if (!isWide(layer)) continue;
    const prefix = `${sharedPrefix(layer)}.`;
    for (const [name, tensor] of parameters)
      if (name.startsWith(prefix)) all.set(`model.layers.${at}.mlp.${name.slice(prefix.length)}`, tensor);
  }
  return all;
}
