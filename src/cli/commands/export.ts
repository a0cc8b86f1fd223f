import { defineCommand } from 'citty';
import { exportAudioLlm, exportLlm } from '../../train/export.ts';
import { exportOnnx } from '../../train/exportOnnx.ts';
import { UsageError } from '../run.ts';
import { terminalWatch } from '../terminal/watch.ts';

export const exportModel = defineCommand({
  meta: {
    name: 'export',
    description: 'Write a trained model for use elsewhere',
  },
  args: {
    model: { type: 'positional', description: "A run's folder, or a trained model's", required: true },
    format: {
      type: 'enum',
      options: ['audio-llm', 'hf', 'onnx'],
      description:
        'audio-llm: all of it, as palkit loads it; hf: the LLM alone, as transformers loads it; onnx: all of it, for ONNX Runtime',
      required: true,
    },
    out: { type: 'string', description: 'A new folder', required: true },
    lora: {
      type: 'enum',
      options: ['merge', 'keep'],
      description:
        'Low-rank adapters: merge them into the weights, or keep them beside (in adapter/, for PEFT)',
      default: 'merge',
    },
    half: { type: 'boolean', description: "Store the LLM's weights as float16" },
    'prompt-tokens': {
      type: 'string',
      description: 'The longest prompt that the ONNX files take',
      valueHint: '128',
    },
    'answer-tokens': {
      type: 'string',
      description: 'The longest answer that they give',
      valueHint: '64',
    },
    json: { type: 'boolean', description: 'Print what was written as JSON on standard output' },
  },
  async run({ args }) {
    const format = args.format as 'audio-llm' | 'hf' | 'onnx';
    const options = { lora: args.lora as 'merge' | 'keep', half: args.half === true };
    const sizes = {
      promptTokens: tokens(args['prompt-tokens'] ?? '128', 'prompt-tokens'),
      answerTokens: tokens(args['answer-tokens'] ?? '64', 'answer-tokens'),
    };
    mustHaveEffect(format, args);
    const { note } = terminalWatch(args.json === true);
    if (format === 'onnx') await exportOnnx(args.model, args.out, { ...sizes, note });
    else {
      const write = format === 'hf' ? exportLlm : exportAudioLlm;
      await write(args.model, args.out, { ...options, note });
    }
    const how = format === 'onnx' ? sizes : options;
    process.stdout.write(
      args.json ? `${JSON.stringify({ out: args.out, format, ...how }, null, 2)}\n` : `${args.out}\n`,
    );
  },
});

function tokens(text: string, option: string): number {
  const count = Number(text);
  if (Number.isInteger(count) && count > 0) return count;
  throw new UsageError(`palkit export: --${option} takes a number of tokens, not "${text}"`);
}

/** Refuses what a format does not know: it would be passed over in silence. */
function mustHaveEffect(format: string, args: Readonly<Record<string, unknown>>): void {
  const strange =
    format === 'onnx'
      ? [args.lora === 'keep' && '--lora keep', args.half === true && '--half']
      : ['prompt-tokens', 'answer-tokens'].map((option) => args[option] !== undefined && `--${option}`);
  const [first] = strange.filter((option) => option !== false);
  if (first !== undefined)
    throw new UsageError(`palkit export: ${first} has no effect with --format ${format}`);
}
