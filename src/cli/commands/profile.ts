import { mkdir } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { defineCommand } from 'citty';
import { loadExperiment } from '../../config/load.ts';
import { writeFileAtomic } from '../../config/writeFile.ts';
import { profileStep } from '../../train/profile.ts';
import { summarizeProfile } from '../../train/profileParts.ts';
import { experimentOptions, experimentOverrides } from '../experimentOptions.ts';
import { flameSvg } from '../profile/flame.ts';
import { formatProfile } from '../profile/table.ts';
import { UsageError } from '../run.ts';
import { terminalWatch } from '../terminal/watch.ts';

export const profile = defineCommand({
  meta: {
    name: 'profile',
    description: 'Measure a training step: time, arithmetic and memory by the parts of the model',
  },
  args: {
    config: { type: 'positional', description: 'The experiment, a YAML file', required: true },
    ...experimentOptions,
    stage: {
      type: 'string',
      description: 'The stage whose step is measured; the first',
      valueHint: 'name or number',
    },
    steps: { type: 'string', description: 'Steps that are measured', default: '5' },
    'warm-ups': { type: 'string', description: 'Steps before them', default: '2' },
    out: { type: 'string', description: 'The flame picture; profile.svg in run.dir', valueHint: 'file.svg' },
    json: { type: 'boolean', description: 'Print one JSON document on standard output' },
  },
  async run({ args, rawArgs }) {
    const { experiment } = await loadExperiment(args.config, experimentOverrides(rawArgs));
    const watch = terminalWatch(args.json === true);
    const measured = await profileStep(experiment, {
      watch,
      stage: args.stage,
      steps: count('steps', args.steps, 1),
      warmUps: count('warm-ups', args['warm-ups'], 0),
    });
    const out = args.out ?? join(experiment.run.dir, 'profile.svg');
    await mkdir(dirname(out), { recursive: true });
    await writeFileAtomic(out, flameSvg(measured));
    const summary = summarizeProfile(measured);
    if (args.json) process.stdout.write(`${JSON.stringify({ ...summary, picture: out }, null, 2)}\n`);
    else process.stdout.write(`${formatProfile(summary)}\nThe picture is ${out}\n`);
  },
});

function count(option: string, given: string, least: number): number {
  const number = Number(given);
  if (/^\d+$/.test(given) && number >= least) return number;
  throw new UsageError(`--${option} ${given}: expected a whole number from ${least} up`);
}
