/** A run in the words of a chat template: the loss, the end of a turn, evaluation and questions from the terminal. */
import { readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { parse } from 'yaml';
import { loadExperiment } from '../../src/config/load.ts';
import { loadLlm } from '../../src/llm/weights.ts';
import { askClip } from '../../src/train/ask.ts';
import { runEvaluation } from '../../src/train/evaluateRun.ts';
import { exportLlm } from '../../src/train/export.ts';
import { runTraining } from '../../src/train/run.ts';
import { assemble } from '../../src/train/setup.ts';
import { makeWorld, silentWatch, type World } from './fixture.ts';

/** Turns end with <pad>, which is not the end of text in config.json. */
const template =
  "{{ bos_token }}{% for m in messages %}{{ m.role ~ ': ' ~ m.content ~ ('<pad>' if m.role == 'assistant' else '\\n') }}" +
  "{% endfor %}{{ 'assistant:' if add_generation_prompt }}";

const chat = ['prompt.chat=true', 'prompt.template="{audio}{question}"', 'prompt.system="Listen well."'];

let world: World;
let llm: string;
beforeAll(async () => {
  world = await makeWorld();
  llm = (parse(await readFile(world.config, 'utf8')) as { llm: { from: string } }).llm.from;
  await writeFile(join(llm, 'chat_template.jinja'), template);
});
afterAll(() => world.remove());

describe('a chat', () => {
  it('trains, keeps its template with the model, and is evaluated and asked in the same words', async () => {
    const { experiment } = await loadExperiment(world.config, [...chat, 'train.maxSteps=4']);
    const { record } = await runTraining(experiment, { watch: silentWatch, resume: false, evaluate: true });
    expect(record).toMatchObject({
      chat: true,
      systemPrompt: 'Listen well.',
      promptTemplate: '{audio}{question}',
    });
    const folder = join(experiment.run.dir, 'model');
    expect((await loadLlm(folder)).chatTemplate).toBe(template);
    const exported = join(world.folder, 'exported');
    await exportLlm(experiment.run.dir, exported, { lora: 'merge', half: false });
    for (const file of ['config.json', 'generation_config.json']) {
      const { eos_token_id } = JSON.parse(await readFile(join(exported, file), 'utf8'));
      expect(eos_token_id, file).toEqual([2, 1]);
    }
    const again = await runEvaluation(experiment, { watch: silentWatch });
    expect(again).toEqual(record);
    const answers = (await readFile(join(experiment.run.dir, 'eval', 'sound-world.jsonl'), 'utf8'))
      .trim()
      .split('\n')
      .map(
        (line) =>
          JSON.parse(line) as { id: string; question: string; predicted: string; scores: object | null },
      );
    const choice = answers.find(({ scores }) => scores !== null);
    const manifest = (await readFile(join(world.dataset, 'test.jsonl'), 'utf8')).trim().split('\n');
    const source = manifest.map((line) => JSON.parse(line)).find(({ id }) => id === choice?.id);
    const clip = join(world.dataset, source.audio);
    const asked = await askClip(experiment, folder, clip, source.question, { options: source.options });
    expect(asked.answer).toBe(choice?.predicted);
    // The spelling of a special token is an ordinary question.
    const odd = await askClip(experiment, folder, clip, 'What is <eos><pad>?');
    expect(odd.question).toBe('What is <eos><pad>?');
    await expect(askClip(experiment, folder, clip, 'Is it a bell? '.repeat(80))).rejects.toThrow(
      /the question has \d+ text tokens, the model takes at most \d+/,
    );
  });

  it('stops an answer at the end of a turn as well as at the end of text', async () => {
    const { experiment } = await loadExperiment(world.config, chat);
    const loaded = await loadLlm(llm);
    const model = assemble(
      experiment,
      loaded,
      new Map([['timbre', { width: 48 }]]),
      new Map([['timbre', 30]]),
    );
    expect(loaded.config.eosTokenIds).toEqual([1]);
    expect(model.llm.eosTokenIds).toEqual([2, 1]);
    expect(loaded.tokenizer.tokenId('<pad>')).toBe(2);
  });

  it('of a model without a template is refused before anything is trained', async () => {
    const { experiment } = await loadExperiment(world.config, [...chat, 'llm.from=models/sound-world']);
    await expect(
      runTraining(experiment, { watch: silentWatch, resume: false, evaluate: false }),
    ).rejects.toThrow('prompt.chat: the model has no chat template');
  });
});
