/** How the choices of each layer fell while a run was trained. */
import { join } from 'node:path';
import { writeFileAtomic } from '../../config/writeFile.ts';
import { chartSvg } from '../../report/chart.ts';
import { type RoutingMetrics, readRoutingMetrics } from '../../train/metrics.ts';
import { sanitizeLine } from '../terminal/sanitize.ts';
import { style } from './pictures.ts';

/**
 * Draws the curves of a run's metrics into its folder.
 * @returns the picture's path; undefined for a run of which no layer chooses
 * @throws RunError for metrics that are none
 */
export async function writeCurves(dir: string, experiment: string): Promise<string | undefined> {
  const svg = await curvesSvg(experiment, await readRoutingMetrics(join(dir, 'metrics.jsonl')));
  if (svg === undefined) return undefined;
  const path = join(dir, 'routing-curves.svg');
  await writeFileAtomic(path, svg);
  return path;
}

/** More points than this on a curve cannot be seen: neighbouring steps are averaged. */
const mostPoints = 200;

/** A name over each panel, and a short one at its axis, which is measured without a font. */
const panels = [
  {
    name: 'entropy',
    title: "Entropy of the blocks' shares, by the largest possible (1: all alike)",
    unit: 'entropy',
  },
  { name: 'text.entropy', title: 'The same of text rows', unit: 'entropy' },
  { name: 'audio.entropy', title: 'The same of audio rows', unit: 'entropy' },
  { name: 'textAudioOverlap', title: 'What text and audio have in common (1: alike)', unit: 'overlap' },
  { name: 'load', title: 'Choices of the busiest block, as a multiple of its fair share', unit: 'load' },
  { name: 'deadBlocks', title: 'Blocks that nobody chose', unit: 'blocks' },
  { name: 'overflow', title: 'Share of the choices that were dropped', unit: 'share' },
] as const;

interface Point {
  readonly step: number;
  readonly layer: number;
  readonly statistic: string;
  readonly value: number;
}

/** Curves over the steps; undefined for a run of which no layer chooses. */
export function curvesSvg(
  experiment: string,
  metrics: readonly RoutingMetrics[],
): Promise<string> | undefined {
  const each = Math.max(1, Math.ceil(metrics.length / mostPoints));
  const points = pointsOf(metrics, each);
  if (points.length === 0) return undefined;
  const layers = [...new Set(points.map(({ layer }) => layer))].sort((a, b) => a - b);
  const subtitle = each === 1 ? 'each step' : `means of ${each} steps`;
  return chartSvg({
    ...style,
    title: { text: `${sanitizeLine(experiment)}: how blocks are chosen in training`, subtitle },
    spacing: 14,
    vconcat: panels.flatMap(({ name, title, unit }) => {
      const values = points.filter(({ statistic }) => statistic === name);
      if (values.length === 0) return [];
      const domain = unit === 'entropy' || unit === 'overlap' ? { domain: [0, 1] } : {};
      return {
        title: { text: title, fontSize: 12, fontWeight: 'normal' } as const,
        width: 600,
        height: 110,
        data: { values },
        mark: { type: 'line', strokeWidth: 1.5 } as const,
        encoding: {
          x: { field: 'step', type: 'quantitative', title: 'optimizer step' } as const,
          y: { field: 'value', type: 'quantitative', title: unit, scale: domain } as const,
          color: { field: 'layer', type: 'ordinal', scale: { scheme: 'viridis', domain: layers } } as const,
        },
      };
    }),
  });
}

/** `layers.3.audio.entropy` */
const pattern = /^layers\.(\d+)\.(.+)$/;

function pointsOf(metrics: readonly RoutingMetrics[], each: number): Point[] {
  const points: Point[] = [];
  for (let start = 0; start < metrics.length; start += each) {
    const own = metrics.slice(start, start + each);
    const sums = new Map<string, { total: number; count: number }>();
    for (const { feedForward = {} } of own) {
      for (const [name, value] of Object.entries(feedForward)) {
        if (value === null) continue;
        const { total, count } = sums.get(name) ?? { total: 0, count: 0 };
        sums.set(name, { total: total + value, count: count + 1 });
      }
    }
    for (const [name, { total, count }] of sums) {
      const [, layer, statistic = ''] = pattern.exec(name) ?? [];
      if (layer === undefined) continue;
      const step = own.at(-1)?.step ?? 0;
      points.push({ step, layer: Number(layer), statistic, value: total / count });
    }
  }
  return points;
}
