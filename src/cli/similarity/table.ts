import { sanitizeLine } from '../terminal/sanitize.ts';
import { formatTable } from '../terminal/table.ts';
import type { Comparison, LayerScores, ScoreShares } from './compare.ts';

/** The comparison as text: for every pair of runs a line a layer, and their mean. */
export function formatComparison({
  dataset,
  split,
  questions,
  neighbours,
  leftOut,
  ...of
}: Comparison): string {
  const pairs = [...of.pairs, ...(of.baseline === null ? [] : [{ ...of.baseline, normalised: null }])];
  const tables = pairs.map(({ runs, layers, normalised }) => {
    const lines = [...layers.map((own, layer) => ({ layer: String(layer), own, by: normalised?.[layer] }))];
    lines.push({
      layer: 'mean',
      own: meanOf(layers),
      by: normalised === null ? undefined : meanShares(normalised),
    });
    const rows = lines.map(({ layer, own, by }) => [
      layer,
      own.cka.toFixed(3),
      own.lns.toFixed(3),
      ...(by === undefined ? [] : [percent(by.cka), percent(by.lns)]),
    ]);
    const head = [
      'layer',
      'CKA',
      'LNS',
      ...(normalised === null ? [] : ['CKA, of baseline', 'LNS, of baseline']),
    ];
    const name = sanitizeLine(runs.join(' and '));
    return `${runs === of.baseline?.runs ? `${name} (baseline)` : name}\n${formatTable(head, rows)}`;
  });
  const missing = leftOut.map(({ run, id, reason }) => sanitizeLine(`left out: ${id} (${run}: ${reason})`));
  return [
    `${questions} questions of ${sanitizeLine(dataset)}, ${split} split; ${neighbours} neighbours each`,
    ...(missing.length === 0 ? [] : [missing.join('\n')]),
    ...tables,
  ].join('\n\n');
}

function meanOf(layers: readonly LayerScores[]): LayerScores {
  const mean = (which: keyof LayerScores) =>
    layers.reduce((total, own) => total + own[which], 0) / layers.length;
  return { cka: mean('cka'), lns: mean('lns') };
}

/** Over the layers that have one. */
function meanShares(layers: readonly ScoreShares[]): ScoreShares {
  const mean = (which: keyof ScoreShares) => {
    const shares = layers.flatMap((own) => own[which] ?? []);
    return shares.length === 0 ? null : shares.reduce((total, share) => total + share, 0) / shares.length;
  };
  return { cka: mean('cka'), lns: mean('lns') };
}

const percent = (share: number | null) => (share === null ? '-' : `${(100 * share).toFixed(1)} %`);
