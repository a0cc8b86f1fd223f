import { defineCommand } from 'citty';
import { loadExperiment } from '../../config/load.ts';
import { type Split, splits } from '../../data/dataset.ts';
import { showExamples } from '../../train/showExamples.ts';
import { repeated } from '../arguments.ts';
import { formatShown } from '../data/shown.ts';
import { experimentOptions } from '../experimentOptions.ts';
import { UsageError } from '../run.ts';
import { terminalWatch } from '../terminal/watch.ts';

export const show = defineCommand({
  meta: {
    name: 'show',
    description: 'Show examples as training sees them: tokens, where the audio stands, what is learned',
  },
  args: {
    config: { type: 'positional', description: 'The experiment, a YAML file', required: true },
    n: { type: 'string', description: 'Examples at most', valueHint: 'count', default: '3' },
    split: { type: 'enum', options: [...splits], description: 'Part of the dataset', default: 'train' },
    set: experimentOptions.set,
    json: { type: 'boolean', description: 'Print one JSON document on standard output' },
  },
  async run({ args, rawArgs }) {
    const count = Number(args.n);
    if (!Number.isInteger(count) || count < 1) {
      throw new UsageError(`--n ${args.n}: expected a whole number above 0`);
    }
    const { experiment } = await loadExperiment(args.config, repeated(rawArgs, 'set'));
    const watch = terminalWatch(args.json === true);
    const shown = await showExamples(experiment, { split: args.split as Split, count, watch });
    const colour = process.stdout.isTTY && process.stdout.hasColors();
    process.stdout.write(
      args.json ? `${JSON.stringify(shown, null, 2)}\n` : `${formatShown(shown, colour)}\n`,
    );
  },
});
