/** The analysis as charts. Colours are Okabe and Ito's, and viridis: colour-blind people tell them apart, and print does. */
import type { TopLevelSpec } from 'vega-lite';
import { chartSvg } from '../../report/chart.ts';
import { sanitizeLine } from '../terminal/sanitize.ts';
import type { LayerRouting, Routing } from './analyse.ts';

const kinds = { domain: ['text', 'audio'], range: ['#0072b2', '#e69f00'] };

/** What all charts have in common. */
export const style = {
  $schema: 'https://vega.github.io/schema/vega-lite/v6.json',
  background: 'white',
  padding: 10,
  config: {
    font: 'sans-serif',
    title: { fontSize: 14, anchor: 'start', subtitleFontSize: 12, subtitleColor: '#444' },
    axis: { labelFontSize: 11, titleFontSize: 12, titleFontWeight: 'normal' },
    legend: { labelFontSize: 11, titleFontSize: 12, titleFontWeight: 'normal' },
    header: { labelFontSize: 12, title: null },
  },
} as const satisfies Partial<TopLevelSpec>;

/** Panels beside each other. */
const columns = 3;

/** More blocks than bars that can be told apart: neighbours share a bar, as high as their mean. */
const mostBars = 96;

interface Bar {
  readonly panel: string;
  readonly kind: string;
  readonly left: number;
  readonly right: number;
  readonly low: number;
  readonly high: number;
}

interface Load {
  readonly kind: string;
  readonly load: readonly number[];
}

/** Bars of a layer's blocks in this order; each kind stands on the one before it, but for loads below nothing. */
function barsOf(panel: string, order: readonly number[], loads: readonly Load[]): Bar[] {
  const blocks = order.length;
  const count = Math.min(blocks, mostBars);
  return Array.from({ length: count }).flatMap((_, bar) => {
    const [from, to] = [Math.round((bar * blocks) / count), Math.round(((bar + 1) * blocks) / count)];
    const own = order.slice(from, to);
    let top = 0;
    return loads.map(({ kind, load }) => {
      const value = own.reduce((sum, block) => sum + (load[block] as number), 0) / own.length;
      const low = value < 0 ? 0 : top;
      top = low + value;
      return { panel, kind, left: from + 0.5, right: to + 0.5, low, high: top };
    });
  });
}

/** The blocks, those with the largest of these values first. */
function descending(values: readonly number[]): number[] {
  return [...values.keys()].sort((a, b) => (values[b] as number) - (values[a] as number) || a - b);
}

/** Short: the width of a panel is that of its name, measured without a font. */
function panelName({ layer, kind }: Pick<LayerRouting, 'layer' | 'kind'>): string {
  return sanitizeLine(`layer ${layer}: ${kind}`);
}

/** Loads as multiples of a block's fair share of these choices. */
function byFairShare(load: readonly number[], choices: number): number[] {
  return load.map((own) => (choices === 0 ? 0 : (own * load.length) / choices));
}

const choicesIn = (load: readonly number[]) => load.reduce((sum, own) => sum + own, 0);

/** How often each block is chosen, the busiest first, by text and by audio. */
export function loadSvg(routing: Routing): Promise<string> {
  const values = routing.layers.flatMap((layer) => {
    const total = choicesIn(layer.all.load);
    return barsOf(panelName(layer), descending(layer.all.load), [
      { kind: 'text', load: byFairShare(layer.text.load, total) },
      ...(layer.audio === null ? [] : [{ kind: 'audio', load: byFairShare(layer.audio.load, total) }]),
    ]);
  });
  return chartSvg({
    ...style,
    title: {
      text: `${titleOf(routing)}: load of the blocks`,
      subtitle: 'the busiest first; 1: its fair share',
    },
    data: { values },
    facet: panelsOf(values),
    columns,
    spec: {
      width: 230,
      height: 130,
      layer: [
        {
          mark: barMark,
          encoding: {
            ...place,
            color: { field: 'kind', type: 'nominal', scale: kinds, title: 'rows' },
          },
        },
        { mark: { type: 'rule', strokeDash: [4, 3], color: '#333' }, encoding: { y: { datum: 1 } } },
      ],
    },
    resolve: { scale: { x: 'independent' } },
  });
}

/** Panels in the order of their bars; left alone, they would be sorted by name. */
function panelsOf(bars: readonly Bar[]) {
  const sort = [...new Set(bars.map(({ panel }) => panel))];
  return { field: 'panel', type: 'nominal' as const, sort };
}

const barMark = { type: 'rect', stroke: 'white', strokeWidth: 0.3 } as const;

const place = {
  x: {
    field: 'left',
    type: 'quantitative',
    title: 'block, by rank',
    scale: { nice: false, zero: false },
    axis: { tickMinStep: 1, tickCount: 6, grid: false, format: 'd' },
  },
  x2: { field: 'right' },
  y: { field: 'low', type: 'quantitative', title: 'load (x fair share)' },
  y2: { field: 'high' },
} as const;

/** Text above, audio below, from the blocks that text prefers to those that audio prefers; undefined without audio rows. */
export function textAudioSvg(routing: Routing): Promise<string> | undefined {
  const values = routing.layers.flatMap((layer) => {
    const { text, audio, textAudioOverlap } = layer;
    if (audio === null) return [];
    const ofText = byFairShare(text.load, choicesIn(text.load));
    const ofAudio = byFairShare(audio.load, choicesIn(audio.load));
    const order = descending(ofText.map((own, block) => own - (ofAudio[block] as number)));
    return barsOf(`layer ${layer.layer}: ${textAudioOverlap?.toFixed(2)} in common`, order, [
      { kind: 'text', load: ofText },
      { kind: 'audio', load: ofAudio.map((own) => -own) },
    ]);
  });
  if (values.length === 0) return undefined;
  return chartSvg({
    ...style,
    title: {
      text: `${titleOf(routing)}: text against audio`,
      subtitle:
        'load of each block as a multiple of its fair share of the text rows (up) and of the audio rows (down)',
    },
    data: { values },
    facet: panelsOf(values),
    columns,
    spec: {
      width: 230,
      height: 130,
      mark: barMark,
      encoding: {
        ...place,
        x: { ...place.x, title: 'block, from text to audio' },
        y: { ...place.y, axis: { labelExpr: 'format(abs(datum.value), "~g")' } },
        color: { field: 'kind', type: 'nominal', scale: kinds, title: 'rows' },
      },
    },
    resolve: { scale: { x: 'independent' } },
  });
}

/** More layers than this, and the numbers in the cells run into each other. */
const mostNumbers = 12;

/** What the choice in one layer tells of that in another, beside what shuffled rows give; undefined where no two are compared. */
export function overlapSvg(routing: Routing): Promise<string> | undefined {
  const { layers, overlap } = routing;
  if (overlap.measured.flat().every((value) => value === null)) return undefined;
  const [measured, shuffled] = ['as measured', 'rows shuffled'];
  const values = [
    { which: measured, matrix: overlap.measured },
    { which: shuffled, matrix: overlap.shuffled },
  ].flatMap(({ which, matrix }) =>
    layers.flatMap(({ layer }, a) =>
      layers.map((other, b) => ({ which, layer, other: other.layer, value: matrix[a]?.[b] ?? null })),
    ),
  );
  const cell = layers.length > mostNumbers ? 14 : 34;
  const pair = {
    x: { field: 'other', type: 'ordinal', title: 'layer', axis: { labelAngle: 0, labelOverlap: true } },
    y: { field: 'layer', type: 'ordinal', title: 'layer', axis: { labelOverlap: true } },
  } as const;
  return chartSvg({
    ...style,
    title: {
      text: `${titleOf(routing)}: what one layer's block tells of another's`,
      subtitle: 'normalised mutual information of the blocks of the same row; 0: nothing, 1: all',
    },
    data: { values },
    facet: { field: 'which', type: 'nominal', sort: [measured, shuffled] },
    columns: 2,
    spec: {
      width: Math.max(120, cell * layers.length),
      height: Math.max(120, cell * layers.length),
      layer: [
        {
          mark: 'rect',
          encoding: {
            ...pair,
            color: {
              field: 'value',
              type: 'quantitative',
              title: 'NMI',
              scale: { scheme: 'viridis', domain: [0, 1] },
            },
          },
        },
        ...(layers.length > mostNumbers
          ? []
          : [
              {
                mark: { type: 'text', fontSize: 11 } as const,
                encoding: {
                  ...pair,
                  text: { field: 'value', type: 'quantitative', format: '.2f' } as const,
                  color: {
                    condition: { test: 'datum.value > 0.6', value: 'black' },
                    value: 'white',
                  } as const,
                },
              },
            ]),
      ],
    },
  });
}

function titleOf({ experiment }: Routing): string {
  return sanitizeLine(experiment);
}
