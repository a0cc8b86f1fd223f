import { defineCommand } from 'citty';
import { loadExperiment } from '../../config/load.ts';
import { runTraining } from '../../train/run.ts';
import { experimentOptions, experimentOverrides } from '../experimentOptions.ts';
import { onInterrupt } from '../interrupt.ts';
import { writeCurves } from '../routing/curves.ts';
import { exitCodes, UsageError } from '../run.ts';
import { formatRecord } from '../terminal/record.ts';
import { formatTrains } from '../terminal/trains.ts';
import { terminalWatch } from '../terminal/watch.ts';

export const train = defineCommand({
  meta: {
    name: 'train',
    description: 'Train an audio-LLM through its curriculum, then evaluate it',
  },
  args: {
    config: { type: 'positional', description: 'The experiment, a YAML file', required: true },
    ...experimentOptions,
    resume: {
      type: 'string',
      description: 'auto: go on from the newest checkpoint; never: start over',
      default: 'auto',
    },
    eval: {
      type: 'boolean',
      description: 'Evaluate the trained model',
      default: true,
      negativeDescription: 'Train only',
    },
    json: {
      type: 'boolean',
      description: 'Print the evaluation record as JSON on standard output, nothing else',
    },
  },
  async run({ args, rawArgs }) {
    if (!['auto', 'never'].includes(args.resume)) {
      throw new UsageError(`--resume ${args.resume}: expected auto or never`);
    }
    const { experiment } = await loadExperiment(args.config, experimentOverrides(rawArgs));
    const json = args.json === true;
    const watch = terminalWatch(json);
    const interrupt = onInterrupt(watch.note);
    try {
      const { record, finished, steps } = await runTraining(experiment, {
        watch,
        resume: args.resume === 'auto',
        evaluate: args.eval,
        announce: (stages) => watch.note(formatTrains(stages)),
        interrupted: interrupt.asked,
      });
      if (!finished) {
        watch.note(`stopped and saved after step ${steps}; the same command goes on from there`);
        if (json) process.stdout.write(`${JSON.stringify({ finished, steps })}\n`);
        return exitCodes.interrupted;
      }
      const curves = await writeCurves(experiment.run.dir, experiment.name);
      if (curves !== undefined) watch.note(`how blocks were chosen is drawn in ${curves}`);
      if (json) process.stdout.write(`${JSON.stringify(record ?? { finished, steps }, null, 2)}\n`);
      else if (record === null)
        watch.note(`trained ${steps} steps; the model is in ${experiment.run.dir}/model`);
      else process.stdout.write(`\n${formatRecord(record)}\n\nEverything is in ${experiment.run.dir}\n`);
      return exitCodes.done;
    } finally {
      interrupt.remove();
    }
  },
});
