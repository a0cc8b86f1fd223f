import { defineCommand } from 'citty';
import { lmSchema } from '../../config/lmSchema.ts';
import { loadYaml } from '../../config/load.ts';
import { locate } from '../../config/locate.ts';
import { runLm } from '../../train/pretrain.ts';
import { repeated } from '../arguments.ts';
import { engineOption, engineOverride } from '../experimentOptions.ts';
import { onInterrupt } from '../interrupt.ts';
import { exitCodes, UsageError } from '../run.ts';
import { formatLmResult } from '../terminal/lm.ts';
import { sanitizeLine } from '../terminal/sanitize.ts';
import { terminalWatch } from '../terminal/watch.ts';

export const lm = defineCommand({
  meta: {
    name: 'lm',
    description: 'Train a language model on text and measure its perplexity on text that was held out',
  },
  args: {
    config: { type: 'positional', description: 'Text, model and training, a YAML file', required: true },
    ...engineOption,
    set: {
      type: 'string',
      description: 'Change a field of the configuration; may be given several times',
      valueHint: 'path.to.field=value',
    },
    resume: {
      type: 'string',
      description: 'auto: go on from the newest checkpoint; never: start over',
      default: 'auto',
    },
    json: { type: 'boolean', description: 'Print the result as JSON on standard output, nothing else' },
  },
  async run({ args, rawArgs }) {
    if (!['auto', 'never'].includes(args.resume))
      throw new UsageError(`--resume ${args.resume}: expected auto or never`);
    const overrides = [...engineOverride(rawArgs), ...repeated(rawArgs, 'set')];
    const experiment = await loadYaml(locate(args.config), lmSchema, overrides);
    const json = args.json === true;
    const watch = terminalWatch(json);
    const interrupt = onInterrupt(watch.note);
    try {
      const resume = args.resume === 'auto';
      const result = await runLm(experiment, { watch, resume, interrupted: interrupt.asked });
      if (result === undefined) {
        watch.note('stopped and saved; the same command goes on from there');
        return exitCodes.interrupted;
      }
      const text = json
        ? JSON.stringify(result, null, 2)
        : `\n${formatLmResult(result)}\n\nEverything is in ${sanitizeLine(experiment.run.dir)}`;
      process.stdout.write(`${text}\n`);
      return exitCodes.done;
    } finally {
      interrupt.remove();
    }
  },
});
