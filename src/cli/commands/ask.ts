import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { defineCommand } from 'citty';
import { loadExperiment } from '../../config/load.ts';
import { askClip } from '../../train/ask.ts';
import { experimentFile, modelMarker } from '../../train/modelFolder.ts';
import { engineOption, engineOverride } from '../experimentOptions.ts';
import { sanitize } from '../terminal/sanitize.ts';
import { formatTable } from '../terminal/table.ts';

export const ask = defineCommand({
  meta: {
    name: 'ask',
    description: 'Ask a trained audio-LLM about a WAV file',
  },
  args: {
    clip: { type: 'positional', description: 'A WAV file', required: true },
    question: { type: 'positional', description: 'The question', required: true },
    options: { type: 'string', description: 'Answers to choose from, with commas between them' },
    run: { type: 'string', description: "The trained run's folder, or a model's", default: 'runs/default' },
    ...engineOption,
    json: { type: 'boolean', description: 'Print the answer as JSON on standard output' },
  },
  async run({ args, rawArgs }) {
    const isModel = existsSync(join(args.run, modelMarker));
    const { experiment } = await loadExperiment(join(args.run, isModel ? experimentFile : 'config.yaml'), [
      ...engineOverride(rawArgs),
    ]);
    const options = args.options
      ?.split(',')
      .map((option) => option.trim())
      .filter((option) => option !== '');
    const folder = isModel ? args.run : join(args.run, 'model');
    const result = await askClip(experiment, folder, args.clip, args.question, options);
    if (args.json) process.stdout.write(`${JSON.stringify(result, null, 2)}\n`);
    else {
      process.stdout.write(`${sanitize(result.answer)}\n`);
      if (result.options !== null) {
        const rows = result.options.map(({ option, probability }) => [
          option,
          `${(100 * probability).toFixed(1)} %`,
        ]);
        process.stdout.write(`\n${formatTable(['option', 'probability'], rows)}\n`);
      }
    }
  },
});
