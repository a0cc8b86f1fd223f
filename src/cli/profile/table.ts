/** A profile as a table for the terminal. */
import type { Direction } from '../../tensor/parts.ts';
import type { ProfileSummary } from '../../train/profileParts.ts';
import { formatTable } from '../terminal/table.ts';

const rounded = (value: number, digits: number) => Number(value.toFixed(digits));

const total = (bytes: Readonly<Record<Direction, number>>) => bytes.forward + bytes.backward + bytes.update;

/** One line a part, the most expensive first; below it the step as a whole. */
export function formatProfile(summary: ProfileSummary): string {
  const { parts, steps, stepMs, flops } = summary;
  const rows = parts.map(({ part, ms, totalMs, share, flops: own, bytes }) => [
    part,
    rounded(ms.forward, 2),
    rounded(ms.backward, 2),
    rounded(ms.update, 2),
    `${(100 * share).toFixed(1)} %`,
    rounded(own / 1e9, 3),
    totalMs === 0 ? 0 : rounded(own / 1e6 / totalMs, 1),
    rounded(total(bytes) / 1e6, 2),
  ]);
  const head = ['part', 'forward ms', 'backward ms', 'update ms', 'share', 'GFLOP', 'GFLOP/s', 'MB made'];
  const elsewhere = parts.reduce((count, part) => count + part.elsewhere, 0);
  return [
    `${summary.experiment}, stage "${summary.stage}", ${summary.engine}: the median of ${steps} steps after ${summary.warmUps}`,
    '',
    formatTable(head, rows),
    '',
    `A step takes ${stepMs.toFixed(1)} ms: ${(flops / 1e9).toFixed(2)} GFLOP, ${(flops / 1e6 / stepMs).toFixed(1)} GFLOP/s`,
    ...(elsewhere === 0
      ? []
      : [
          `${elsewhere} ${elsewhere === 1 ? 'kernel' : 'kernels'} ran on another provider than the one asked for; \`palkit doctor --engine\` lists them`,
        ]),
  ].join('\n');
}
