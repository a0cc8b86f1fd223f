/** How alike the layers of each run are, as a heat map. */
import { chartSvg } from '../../report/chart.ts';
import { sanitizeLine } from '../terminal/sanitize.ts';
import type { Comparison } from './compare.ts';

/** One matrix of layers by layers a run, as SVG. */
export function similaritySvg({ runs, questions }: Comparison): Promise<string> {
  const cells = runs.flatMap(({ run, selfSimilarity }) =>
    selfSimilarity.flatMap((row, layer) =>
      row.map((cka, other) => ({ run: sanitizeLine(run), layer, other, cka })),
    ),
  );
  return chartSvg({
    $schema: 'https://vega.github.io/schema/vega-lite/v6.json',
    title: `Linear CKA between the layers of a model, ${questions} questions`,
    data: { values: cells },
    mark: 'rect',
    width: 240,
    height: 240,
    encoding: {
      facet: { field: 'run', type: 'nominal', columns: 3, title: null, sort: null },
      x: { field: 'other', type: 'ordinal', title: 'layer', axis: { labelAngle: 0 } },
      y: { field: 'layer', type: 'ordinal', title: 'layer', sort: 'descending' },
      color: { field: 'cka', type: 'quantitative', title: 'CKA', scale: { scheme: 'viridis', zero: false } },
    },
  });
}
