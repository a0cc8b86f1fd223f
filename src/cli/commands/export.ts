import { defineCommand } from 'citty';
import { exportAudioLlm, exportLlm } from '../../train/export.ts';
import { terminalWatch } from '../terminal/watch.ts';

/** What writes each format. */
const writers = { 'audio-llm': exportAudioLlm, hf: exportLlm } as const;

export const exportModel = defineCommand({
  meta: {
    name: 'export',
    description: 'Write a trained model for use elsewhere',
  },
  args: {
    model: { type: 'positional', description: "A run's folder, or a trained model's", required: true },
    format: {
      type: 'enum',
      options: Object.keys(writers),
      description: 'audio-llm: all of it, as palkit loads it; hf: the LLM alone, as transformers loads it',
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
    json: { type: 'boolean', description: 'Print what was written as JSON on standard output' },
  },
  async run({ args }) {
    const format = args.format as keyof typeof writers;
    const options = { lora: args.lora as 'merge' | 'keep', half: args.half === true };
    const { note } = terminalWatch(args.json === true);
    await writers[format](args.model, args.out, { ...options, note });
    process.stdout.write(
      args.json ? `${JSON.stringify({ out: args.out, format, ...options }, null, 2)}\n` : `${args.out}\n`,
    );
  },
});
