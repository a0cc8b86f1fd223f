/** The README.md of a model folder: what the model is, how it was made, how it did, how to use it. */
import { existsSync } from 'node:fs';
import { z } from 'zod';
import { locate } from '../config/locate.ts';
import type { Experiment } from '../config/schema.ts';
import { controlNames } from '../eval/controls.ts';
import type { EvaluationRecord } from '../eval/evaluate.ts';
import { parseHubName } from '../llm/hub.ts';
import type { LlmFrame } from '../llm/weights.ts';
import type { AudioLlm } from '../pal/audioLlm.ts';
import { audioTokens, layersOf } from '../pal/streams.ts';
import type { ParameterTensors } from '../tensor/parameters.ts';

export interface TrainedModel {
  readonly experiment: Experiment;
  readonly model: AudioLlm;
  readonly llm: LlmFrame;
  readonly parameters: ParameterTensors;
  /** How it did: an evaluation's record. */
  readonly results?: Results | undefined;
}

const accuracy = { n: z.number(), accuracy: z.number(), ci95: z.tuple([z.number(), z.number()]).readonly() };

/** What the card tells of an evaluation's record; the rest of the record is kept beside it. */
export const resultsSchema = z.looseObject({
  task: z.string(),
  split: z.string(),
  ...accuracy,
  majority: z.number(),
  controls: z.partialRecord(z.enum(controlNames), z.strictObject(accuracy)),
});

type Results = Pick<EvaluationRecord, keyof typeof resultsSchema.shape>;

const percent = (share: number) => `${(100 * share).toFixed(1)} %`;

/** The card as Markdown, with the metadata that the Hugging Face hub reads in front. */
export function modelCard({ experiment, model, llm, parameters, results }: TrainedModel): string {
  const { name, seed, train, data } = experiment;
  const { from } = experiment.llm;
  const onHub = existsSync(locate(from)) ? undefined : parseHubName(from);
  const count = [...parameters.values()].reduce((total, { data: values }) => total + values.length, 0);
  const sections = [
    [
      '---',
      'library_name: palkit',
      'pipeline_tag: audio-text-to-text',
      'tags: [audio, audio-question-answering, palkit]',
      ...(onHub === undefined ? [] : [`base_model: ${onHub.name}`]),
      '---',
    ],
    [
      `# ${name}`,
      '',
      `An audio-LLM made by palkit: a language model of ${llm.config.layers} layers and width ${llm.config.hiddenSize} that hears through ` +
        `${model.streams.length === 1 ? 'one audio stream' : `${model.streams.length} audio streams`}; ${count.toLocaleString('en')} parameters in all.`,
    ],
    [
      '## Audio',
      '',
      ...markdownTable(
        [
          'stream',
          'encoder',
          'connector',
          'integration',
          'layers of the LLM',
          'audio tokens a clip, at most',
        ],
        model.streams.map((stream) => [
          stream.name,
          stream.encoder,
          stream.connector.kind,
          stream.integration.mode,
          ranges(layersOf(stream, model.llm.layers)),
          String(audioTokens(stream)),
        ]),
      ),
    ],
    ['## Language model', '', ...languageModel(experiment, model)],
    [
      '## Training',
      '',
      `On \`${data.dataset}\`, seed ${seed}, ${train.precision} products; \`experiment.yaml\` has every setting.`,
      '',
      ...markdownTable(
        ['stage', 'steps', 'learning rate', 'what trains'],
        train.stages.map((stage) => [
          stage.name,
          String(stage.steps),
          String(stage.learningRate),
          stage.trainable.map((pattern) => `\`${pattern}\``).join(', '),
        ]),
      ),
    ],
    ...(results === undefined ? [] : [resultsSection(results)]),
    [
      '## Use',
      '',
      '```ts',
      "import { loadAudioLlm } from 'palkit';",
      '',
      "const audioLlm = await loadAudioLlm('.'); // this folder",
      "const { answer } = await audioLlm.answer('clip.wav', 'What do you hear?');",
      'await audioLlm.dispose();',
      '```',
    ],
  ];
  return `${sections.map((lines) => lines.join('\n')).join('\n\n')}\n`;
}

function languageModel({ llm }: Experiment, { lora, ffn = [] }: AudioLlm): string[] {
  const kinds = { sparse: 'sparse', moc: 'a mixture of channels', wide: 'shared', none: 'left out' };
  const others = Object.entries(kinds).flatMap(([kind, what]) => {
    const layers = ffn.flatMap((own, layer) => (own.kind === kind ? [layer] : []));
    return layers.length === 0 ? [] : [`${what} in the layers ${layers.join(', ')}`];
  });
  const loads =
    others.length === 0
      ? 'config.json, model.safetensors and the tokenizer are as transformers loads them.'
      : `its feed-forward is ${others.join(', ')} (\`llm.ffn\` in experiment.yaml), which palkit alone computes.`;
  const from = `It began as \`${llm.from}\`; ${loads}`;
  if (llm.lora === null) return [from];
  const { rank, alpha } = llm.lora;
  const adapters = `low-rank adapters (rank ${rank}, alpha ${alpha})`;
  return [
    lora !== undefined
      ? `${from} \`adapter/\` holds its ${adapters} as PEFT loads them.`
      : `${from} Its ${adapters} are merged into the weights.`,
  ];
}

function resultsSection({ task, split, majority, controls, ...heard }: Results): string[] {
  const rows = Object.entries({ audio: heard, ...controls }).map(([name, { n, accuracy, ci95 }]) => [
    name,
    String(n),
    percent(accuracy),
    `${percent(ci95[0])} to ${percent(ci95[1])}`,
  ]);
  return [
    '## Results',
    '',
    `Choice questions of \`${task}\`, ${split} split; the majority answer alone gives ${percent(majority)}.`,
    '',
    ...markdownTable(['heard', 'questions', 'accuracy', '95 % interval'], rows),
  ];
}

function markdownTable(head: readonly string[], rows: readonly (readonly string[])[]): string[] {
  const line = (cells: readonly string[]) =>
    `| ${cells.map((cell) => cell.replace(/[|\\]/g, '\\$&').replaceAll('\n', ' ')).join(' | ')} |`;
  return [line(head), line(head.map(() => '---')), ...rows.map(line)];
}

/** 4, 5, 6, 9 -> "4 to 6, 9" */
function ranges(rising: readonly number[]): string {
  const runs: [number, number][] = [];
  for (const layer of rising) {
    const last = runs.at(-1);
    if (last !== undefined && last[1] === layer - 1) last[1] = layer;
    else runs.push([layer, layer]);
  }
  return runs.map(([from, to]) => (from === to ? String(from) : `${from} to ${to}`)).join(', ');
}
