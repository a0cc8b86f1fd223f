/** The pictures of an analysis and the curves of a run, as SVG. */
import { describe, expect, it } from 'vitest';
import type { Fall, LayerRouting, Routing } from '../../../src/cli/routing/analyse.ts';
import { curvesSvg } from '../../../src/cli/routing/curves.ts';
import { loadSvg, overlapSvg, textAudioSvg } from '../../../src/cli/routing/pictures.ts';
import { formatRouting } from '../../../src/cli/routing/table.ts';
import type { RoutingMetrics } from '../../../src/train/metrics.ts';

const hostile = '<script>alert(1)</script>\u001b[31m';

function fallOf(load: readonly number[]): Fall {
  return { rows: load.reduce((sum, own) => sum + own, 0), load, busiest: 1, entropy: 0.5 };
}

function layerOf(layer: number, blocks: number, hasAudio = true): LayerRouting {
  const text = Array.from({ length: blocks }, (_, block) => block % 7);
  const audio = Array.from({ length: blocks }, (_, block) => block % 3);
  const all = text.map((own, block) => own + (hasAudio ? (audio[block] as number) : 0));
  return {
    layer,
    kind: hostile,
    blocks,
    active: 1,
    all: fallOf(all),
    text: fallOf(text),
    audio: hasAudio ? fallOf(audio) : null,
    textAudioOverlap: hasAudio ? 0.5 : null,
    deadBlocks: 0,
    overflow: 0,
    byCategory: {},
  };
}

function routingOf(layers: readonly LayerRouting[]): Routing {
  const square = (value: number) => layers.map((_, a) => layers.map((_, b) => (a === b ? 1 : value)));
  return {
    run: hostile,
    experiment: hostile,
    dataset: hostile,
    split: 'test',
    seed: 0,
    questions: 5,
    batchSize: 4,
    leftOut: [{ id: hostile, reason: 'too long' }],
    layers,
    overlap: { measured: square(0.25), shuffled: square(0.01), tooMany: false },
  };
}

const rectangles = (svg: string, color: string) => svg.split(`fill="${color}"`).length - 1;
const [blue, orange] = ['#0072b2', '#e69f00'];

describe('the pictures', () => {
  const routing = routingOf([layerOf(1, 8, false), layerOf(2, 8)]);

  it('have a bar for each block and kind, and one more of each in the legend', async () => {
    const svg = await loadSvg(routing);
    expect(rectangles(svg, blue)).toBe(2 * 8 + 1);
    expect(rectangles(svg, orange)).toBe(8 + 1);
    expect(svg).toContain('load (x fair share)');
  });

  it('set text against audio where there is audio', async () => {
    const svg = (await textAudioSvg(routing)) as string;
    expect(rectangles(svg, blue)).toBe(8 + 1);
    expect(svg).toContain('layer 2: 0.50 in common');
    expect(textAudioSvg(routingOf([layerOf(1, 8, false)]))).toBeUndefined();
  });

  it('show what layers tell of each other, in numbers where they fit', async () => {
    const svg = (await overlapSvg(routing)) as string;
    expect(svg.match(/>0\.25</g)).toHaveLength(2);
    expect(svg.match(/>0\.01</g)).toHaveLength(2);
    const many = await overlapSvg(routingOf(Array.from({ length: 20 }, (_, layer) => layerOf(layer, 2))));
    expect(many).not.toContain('>0.25<');
    const none = { measured: [[null]], shuffled: [[null]], tooMany: true };
    expect(overlapSvg({ ...routingOf([layerOf(0, 2)]), overlap: none })).toBeUndefined();
  });

  it('show names as text', async () => {
    for (const svg of [await loadSvg(routing), await textAudioSvg(routing), await overlapSvg(routing)]) {
      expect(svg).toContain('&lt;script&gt;alert(1)&lt;/script&gt;');
      expect(svg).not.toContain('<script');
      expect(svg).not.toContain('\u001b');
    }
    expect(formatRouting(routing)).not.toContain('\u001b');
  });

  it('have their panels in the order of the layers', async () => {
    const svg = await loadSvg(
      routingOf([2, 10, 11].map((layer) => ({ ...layerOf(layer, 2), kind: 'topk' }))),
    );
    expect(svg.match(/layer \d+: topk(?=<)/g)).toEqual(['layer 2: topk', 'layer 10: topk', 'layer 11: topk']);
  });

  it('stay small where there are many blocks', async () => {
    const svg = await loadSvg(routingOf([layerOf(0, 4096)]));
    expect(rectangles(svg, blue)).toBe(96 + 1);
  });
});

describe('the curves', () => {
  const metricsOf = (steps: number, feedForward: RoutingMetrics['feedForward']): RoutingMetrics[] =>
    Array.from({ length: steps }, (_, at) => ({ step: at + 1, ...(feedForward && { feedForward }) }));

  it('have a panel for each statistic that is there', async () => {
    const some = { 'layers.0.entropy': 0.5, 'layers.11.entropy': 0.7, 'layers.11.audio.entropy': null };
    const svg = (await curvesSvg(hostile, metricsOf(3, some))) as string;
    expect(svg).toContain('all alike');
    expect(svg).not.toContain('audio rows');
    expect(svg).not.toContain('dropped');
    expect(svg).toContain('>each step<');
    expect(svg).toContain('&lt;script&gt;');
    expect(svg).not.toContain('<script');
  });

  it('average the steps of a long run', async () => {
    const svg = await curvesSvg('long', metricsOf(1001, { 'layers.0.overflow': 0.1 }));
    expect(svg).toContain('>means of 6 steps<');
  });

  it('are none where no layer chooses', () => {
    expect(curvesSvg('dense', metricsOf(3, undefined))).toBeUndefined();
  });
});
