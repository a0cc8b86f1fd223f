import Table from 'cli-table3';
import { sanitizeLine } from './sanitize.ts';

/**
 * A table as text, without rules. Cells come from files and models too, so they are sanitised.
 * @param rows one cell a column; numbers stand to the right
 */
export function formatTable(
  head: readonly string[],
  rows: readonly (readonly (string | number)[])[],
): string {
  const columns = head.map((_, column) => rows.map((row) => row[column]));
  const table = new Table({
    head: [...head],
    colAligns: columns.map((cells) =>
      cells.length > 0 && cells.every((cell) => typeof cell === 'number') ? 'right' : 'left',
    ),
    style: { head: [], border: [], compact: true, 'padding-left': 0, 'padding-right': 0 },
    chars: {
      top: '',
      'top-mid': '',
      'top-left': '',
      'top-right': '',
      bottom: '',
      'bottom-mid': '',
      'bottom-left': '',
      'bottom-right': '',
      left: '',
      'left-mid': '',
      mid: '',
      'mid-mid': '',
      right: '',
      'right-mid': '',
      middle: '  ',
    },
  });
  table.push(...rows.map((row) => row.map((cell) => sanitizeLine(String(cell)))));
  return table
    .toString()
    .split('\n')
    .map((line) => line.trimEnd())
    .join('\n');
}
