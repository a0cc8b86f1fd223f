import { defineCommand } from 'citty';
import { loadExperiment } from '../../config/load.ts';
import { planExperiment } from '../../train/plan.ts';
import { ratesFor } from '../../train/planTime.ts';
import { experimentOptions, experimentOverrides } from '../experimentOptions.ts';
import { formatPlan } from '../plan/table.ts';
import { UsageError } from '../run.ts';

export const plan = defineCommand({
  meta: {
    name: 'plan',
    description: 'Tell what training will take: parameters, memory, arithmetic, time; nothing is run',
  },
  args: {
    config: { type: 'positional', description: 'The experiment, a YAML file', required: true },
    ...experimentOptions,
    stage: { type: 'string', description: 'Only this stage', valueHint: 'name or number' },
    'gflops-per-thread': {
      type: 'string',
      description: 'What a thread does in matrix products, in place of what was measured',
      valueHint: 'GFLOP/s',
    },
    'gb-per-second': {
      type: 'string',
      description: 'What everything else reads and writes, in place of what was measured',
      valueHint: 'GB/s',
    },
    json: { type: 'boolean', description: 'Print one JSON document on standard output' },
  },
  async run({ args, rawArgs }) {
    const { experiment } = await loadExperiment(args.config, experimentOverrides(rawArgs));
    const rates = ratesFor(experiment.engine, {
      gigaflopsPerThread: rate('gflops-per-thread', args['gflops-per-thread']),
      gigabytesPerSecond: rate('gb-per-second', args['gb-per-second']),
    });
    const made = await planExperiment(experiment, { stage: args.stage, rates });
    process.stdout.write(args.json ? `${JSON.stringify(made, null, 2)}\n` : `${formatPlan(made)}\n`);
  },
});

function rate(option: string, given: string | undefined): number | undefined {
  if (given === undefined) return undefined;
  const number = Number(given);
  if (Number.isFinite(number) && number > 0) return number;
  throw new UsageError(`--${option} ${given}: expected a number above 0`);
}
