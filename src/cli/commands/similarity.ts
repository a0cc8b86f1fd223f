import { mkdir } from 'node:fs/promises';
import { join } from 'node:path';
import { defineCommand } from 'citty';
import { writeFileAtomic } from '../../config/writeFile.ts';
import { repeatable, repeated } from '../arguments.ts';
import { UsageError } from '../run.ts';
import { compareRuns } from '../similarity/compare.ts';
import { similaritySvg } from '../similarity/picture.ts';
import { formatComparison } from '../similarity/table.ts';
import { sanitizeLine } from '../terminal/sanitize.ts';
import { terminalWatch } from '../terminal/watch.ts';

export const similarity = defineCommand({
  meta: {
    name: 'similarity',
    description: 'Compare what the layers of trained models make of the same questions (CKA, neighbourhoods)',
  },
  args: {
    run: { type: 'positional', description: "A run's folder, or a trained model's", required: true },
    other: { type: 'positional', description: 'Another one', required: true },
    more: { type: 'positional', description: 'And others', required: false, valueHint: repeatable },
    baseline: {
      type: 'string',
      description: 'Given twice: two runs that differ in the seed alone; scores are divided by theirs',
      valueHint: 'run',
    },
    split: {
      type: 'enum',
      options: ['train', 'validation', 'test'],
      description: "The first run's eval.split",
    },
    limit: { type: 'string', description: 'Questions at most', default: '200' },
    out: {
      type: 'string',
      description: 'Where similarity.json and similarity.svg are written',
      default: '.',
      valueHint: 'folder',
    },
    json: { type: 'boolean', description: 'Print one JSON document on standard output' },
  },
  async run({ args, rawArgs }) {
    const limit = Number(args.limit);
    if (!/^\d+$/.test(args.limit) || limit < 3)
      throw new UsageError(`palkit similarity: --limit ${args.limit}: expected a whole number from 3 up`);
    const comparison = await compareRuns(args._, {
      baseline: baselineOf(repeated(rawArgs, 'baseline')),
      limit,
      split: args.split as 'train' | 'validation' | 'test' | undefined,
      watch: terminalWatch(args.json === true),
    });
    const document = `${JSON.stringify(comparison, null, 2)}\n`;
    const svg = await similaritySvg(comparison);
    const picture = join(args.out, 'similarity.svg');
    await mkdir(args.out, { recursive: true });
    await writeFileAtomic(join(args.out, 'similarity.json'), document);
    await writeFileAtomic(picture, svg);
    process.stdout.write(
      args.json ? document : `\n${formatComparison(comparison)}\n\nThe picture is ${sanitizeLine(picture)}\n`,
    );
  },
});

function baselineOf(runs: readonly string[]): readonly [string, string] | undefined {
  const [one, other, ...more] = runs;
  if (one === undefined) return undefined;
  if (other === undefined || more.length > 0)
    throw new UsageError(
      `palkit similarity: --baseline is given ${runs.length === 1 ? 'once' : `${runs.length} times`}; two runs that differ in the seed make one`,
    );
  if (one === other)
    throw new UsageError(
      `palkit similarity: --baseline ${one} is given twice; two runs that differ in the seed make one`,
    );
  return [one, other];
}
