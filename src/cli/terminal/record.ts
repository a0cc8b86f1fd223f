import type { CategoryAccuracy, EvaluationRecord } from '../../eval/evaluate.ts';
import { formatTable } from './table.ts';

const percent = (share: number) => `${(100 * share).toFixed(1)} %`;
const interval = ([low, high]: readonly [number, number]) =>
  `${(100 * low).toFixed(1)} to ${(100 * high).toFixed(1)}`;

/** An evaluation record as a person reads it: per category, in total, and what the controls say. */
export function formatRecord(record: EvaluationRecord): string {
  const row = (name: string, { n, accuracy, ci95, chance, majority }: CategoryAccuracy) => [
    name,
    n,
    percent(accuracy),
    interval(ci95),
    percent(chance),
    percent(majority),
  ];
  const categories = formatTable(
    ['category', 'questions', 'accuracy', '95 % interval', 'chance', 'majority'],
    [...Object.entries(record.byCategory).map(([name, own]) => row(name, own)), row('all', record)],
  );
  const controls = Object.entries(record.controls).map(([name, { accuracy, ci95 }]) => [
    name,
    percent(accuracy),
    interval(ci95),
    `${(100 * (accuracy - record.majority)).toFixed(1)} points`,
  ]);
  const parts = [`${record.task}, ${record.split} split\n\n${categories}`];
  if (controls.length > 0) {
    parts.push(
      `Controls: the same questions when the model cannot hear the clip\n\n${formatTable(['control', 'accuracy', '95 % interval', 'above majority'], controls)}`,
    );
  }
  if (record.open !== null) {
    const { n, exact, tokenF1 } = record.open;
    parts.push(`Open answers: ${n}, ${percent(exact)} word for word, word F1 ${percent(tokenF1)}`);
  }
  if (record.skipped.length > 0) {
    const lines = record.skipped.map(({ id, reason }) => `  ${id}: ${reason}`);
    parts.push(`Left out: ${record.skipped.length} samples that could not be read\n${lines.join('\n')}`);
  }
  return parts.join('\n\n');
}
