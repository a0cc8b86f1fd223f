import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { defineCommand } from 'citty';
import { loadExperiment } from '../../config/load.ts';
import { askClip } from '../../train/ask.ts';
import { experimentFile, modelMarker } from '../../train/modelFolder.ts';
import { repeated } from '../arguments.ts';
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
    set: {
      type: 'string',
      description: 'Change a field of the experiment: eval.open.maxNewTokens=64; may be given several times',
      valueHint: 'path.to.field=value',
    },
    json: { type: 'boolean', description: 'Print the answer as JSON on standard output' },
  },
  async run({ args, rawArgs }) {
    const isModel = existsSync(join(args.run, modelMarker));
    const { experiment } = await loadExperiment(join(args.run, isModel ? experimentFile : 'config.yaml'), [
      ...engineOverride(rawArgs),
      ...repeated(rawArgs, 'set'),
    ]);
    const options = args.options
      ?.split(',')
      .map((option) => option.trim())
      .filter((option) => option !== '');
    const folder = isModel ? args.run : join(args.run, 'model');
    let shown = '';
    const result = await askClip(experiment, folder, args.clip, args.question, {
      options,
      onText: (piece) => {
        // The space that an answer begins with belongs to the prompt.
        const text = shown === '' ? sanitize(piece).trimStart() : sanitize(piece);
        shown += text;
        if (!args.json) process.stdout.write(text);
      },
    });
    if (args.json) process.stdout.write(`${JSON.stringify(result, null, 2)}\n`);
    else {
      process.stdout.write(shown === '' ? `${sanitize(result.answer)}\n` : '\n');
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
