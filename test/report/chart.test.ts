import { expect, it } from 'vitest';
import { chartSvg } from '../../src/report/chart.ts';

it('draws its data, with text as text', async () => {
  const svg = await chartSvg({
    data: { values: [{ x: 'one & two', y: 3 }] },
    mark: 'bar',
    encoding: { x: { field: 'x', type: 'nominal' }, y: { field: 'y', type: 'quantitative' } },
  });
  expect(svg).toMatch(/^<svg [^>]*xmlns="http:\/\/www\.w3\.org\/2000\/svg"/);
  expect(svg).toContain('>one &amp; two</text>');
  expect(svg).not.toContain('<script');
});

it('loads nothing', async () => {
  const svg = await chartSvg({
    data: { url: 'file:///etc/hostname', format: { type: 'csv' } },
    mark: 'bar',
    encoding: {},
  });
  expect(svg.match(/<path aria-label/g)).toBeNull();
});
