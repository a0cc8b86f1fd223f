import { join } from 'node:path';
import { defineCommand } from 'citty';
import { experimentOptions, experimentOverrides } from '../experimentOptions.ts';
import { analyseRouting } from '../routing/analyse.ts';
import { mustTakeReport, writeRoutingReport } from '../routing/report.ts';
import { formatRouting } from '../routing/table.ts';
import { UsageError } from '../run.ts';
import { sanitizeLine } from '../terminal/sanitize.ts';
import { terminalWatch } from '../terminal/watch.ts';

export const routing = defineCommand({
  meta: {
    name: 'routing',
    description: 'Show how text and audio choose among the blocks of sparse feed-forward layers',
  },
  args: {
    run: { type: 'positional', description: "A trained run's folder, or a model's", required: true },
    limit: { type: 'string', description: 'Questions at most', default: '200' },
    seed: { type: 'string', description: 'Of the questions that are drawn', default: '0' },
    split: { type: 'string', description: 'train, validation or test' },
    ...experimentOptions,
    out: {
      type: 'string',
      description: 'Where numbers and pictures go; routing in the folder that is named',
      valueHint: 'folder',
    },
    json: { type: 'boolean', description: 'Print the numbers as JSON on standard output, nothing else' },
  },
  async run({ args, rawArgs }) {
    const overrides = experimentOverrides(rawArgs);
    if (args.split !== undefined) overrides.push(`eval.split=${args.split}`);
    const out = args.out ?? join(args.run, 'routing');
    await mustTakeReport(out);
    const made = await analyseRouting(args.run, {
      overrides,
      limit: count('limit', args.limit, 1),
      seed: count('seed', args.seed, 0),
      watch: terminalWatch(args.json === true),
    });
    await writeRoutingReport(out, made, join(args.run, 'metrics.jsonl'));
    if (args.json) process.stdout.write(`${JSON.stringify(made, null, 2)}\n`);
    else
      process.stdout.write(
        `\n${formatRouting(made)}\n\nThe pictures are in ${sanitizeLine(join(out, 'routing.html'))}\n`,
      );
  },
});

function count(option: string, given: string, least: number): number {
  const number = Number(given);
  if (/^\d+$/.test(given) && number >= least && Number.isSafeInteger(number)) return number;
  throw new UsageError(`--${option} ${given}: expected a whole number from ${least} up`);
}
