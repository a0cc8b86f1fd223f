import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { defineCommand } from 'citty';
import { loadExperiment } from '../../config/load.ts';
import { runEvaluation } from '../../train/evaluateRun.ts';
import { experimentOptions, experimentOverrides } from '../experimentOptions.ts';
import { formatRecord } from '../terminal/record.ts';
import { terminalWatch } from '../terminal/watch.ts';

export const evaluate = defineCommand({
  meta: {
    name: 'eval',
    description: 'Evaluate a trained audio-LLM, with controls',
  },
  args: {
    run: { type: 'positional', description: "A run's folder, or the experiment's YAML file", required: true },
    split: { type: 'string', description: 'train, validation or test' },
    limit: { type: 'string', description: 'Questions at most' },
    ...experimentOptions,
    json: {
      type: 'boolean',
      description: 'Print the evaluation record as JSON on standard output, nothing else',
    },
  },
  async run({ args, rawArgs }) {
    const config = existsSync(join(args.run, 'config.yaml')) ? join(args.run, 'config.yaml') : args.run;
    const overrides = experimentOverrides(rawArgs);
    if (config !== args.run) overrides.push(`run.dir=${JSON.stringify(args.run)}`);
    if (args.split !== undefined) overrides.push(`eval.split=${args.split}`);
    if (args.limit !== undefined) overrides.push(`eval.limit=${args.limit}`);
    const { experiment } = await loadExperiment(config, overrides);
    const record = await runEvaluation(experiment, { watch: terminalWatch(args.json === true) });
    process.stdout.write(args.json ? `${JSON.stringify(record, null, 2)}\n` : `\n${formatRecord(record)}\n`);
  },
});
