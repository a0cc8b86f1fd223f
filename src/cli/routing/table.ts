import { sanitizeLine } from '../terminal/sanitize.ts';
import { formatTable } from '../terminal/table.ts';
import type { Fall, Matrix, Routing } from './analyse.ts';

const number = (value: number | null | undefined) =>
  value === null || value === undefined ? '-' : value.toFixed(2);

/** More layers than this make a table too wide to read; routing.json and the picture have them all. */
const mostColumns = 16;

/** The analysis as text: a line a layer, and what layers tell of each other. */
export function formatRouting({
  run,
  dataset,
  split,
  questions,
  batchSize,
  layers,
  overlap,
  leftOut,
}: Routing): string {
  const hasAudio = layers.some(({ audio }) => audio !== null);
  const rows = layers.map(({ layer, kind, blocks, active, all, text, audio, ...own }) => [
    String(layer),
    kind,
    blocks,
    active,
    text.rows,
    ...(hasAudio ? [audio?.rows ?? 0] : []),
    number(all.busiest),
    number(all.entropy),
    ...(hasAudio
      ? [number(text.entropy), number((audio as Fall | null)?.entropy), number(own.textAudioOverlap)]
      : []),
    own.deadBlocks,
    `${(100 * own.overflow).toFixed(1)} %`,
  ]);
  const head = [
    'layer',
    'kind',
    'blocks',
    'active',
    'text rows',
    ...(hasAudio ? ['audio rows'] : []),
    'load',
    'entropy',
    ...(hasAudio ? ['of text', 'of audio', 'text and audio'] : []),
    'dead',
    'overflow',
  ];
  const parts = [
    sanitizeLine(`${run}: ${questions} questions of ${dataset}, ${split} split, ${batchSize} at a time`),
    formatTable(head, rows),
    hasAudio
      ? 'text and audio: what the two have in common of how they fall on blocks, 0 to 1'
      : 'No audio row passes these layers: the streams give keys and values alone, or begin in a later layer.',
    formatOverlap(
      layers.map(({ layer }) => layer),
      overlap,
    ),
  ];
  if (leftOut.length > 0)
    parts.push(leftOut.map(({ id, reason }) => sanitizeLine(`left out "${id}": ${reason}`)).join('\n'));
  return parts.join('\n\n');
}

function formatOverlap(
  layers: readonly number[],
  { measured, shuffled, tooMany }: Routing['overlap'],
): string {
  const chance = Math.max(0, ...shuffled.flat().map((own) => own ?? 0));
  const parts = [
    'What the block in one layer tells of that in another (normalised mutual information, 0 to 1);',
    `with rows shuffled at most ${chance.toFixed(3)}`,
  ];
  if (layers.length > mostColumns) parts.push(`of ${layers.length} layers: see the picture, or routing.json`);
  else parts.push('', matrix(layers, measured));
  if (tooMany) parts.push('', '-: too many choices to compare; ask fewer questions (--limit)');
  return parts.join('\n');
}

function matrix(layers: readonly number[], values: Matrix): string {
  return formatTable(
    ['layer', ...layers.map(String)],
    layers.map((layer, at) => [String(layer), ...(values[at] ?? []).map(number)]),
  );
}
