import { spawnSync } from 'node:child_process';
import { readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { stripVTControlCharacters } from 'node:util';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { parse } from 'yaml';
import { formatShown } from '../../../src/cli/data/shown.ts';
import { loadExperiment } from '../../../src/config/load.ts';
import { readManifest, writeManifest } from '../../../src/data/manifest.ts';
import { type ShownSplit, showExamples } from '../../../src/train/showExamples.ts';
import { makeWorld, silentWatch, type World } from '../../train/fixture.ts';

const template =
  "{{ bos_token }}{% for m in messages %}{{ m.role ~ ': ' ~ m.content ~ (eos_token if m.role == 'assistant' else '\\n') }}" +
  "{% endfor %}{{ 'assistant:' if add_generation_prompt }}";

let world: World;
beforeAll(async () => {
  world = await makeWorld();
  const { llm } = parse(await readFile(world.config, 'utf8')) as { llm: { from: string } };
  await writeFile(join(llm.from, 'chat_template.jinja'), template);
  const path = join(world.dataset, 'train.jsonl');
  const [first, ...rest] = await readManifest(path);
  await writeManifest(path, [
    { ...(first as NonNullable<typeof first>), id: 'first', question: 'A <eos> bell\u001b[31m?' },
    ...rest,
  ]);
});
afterAll(() => world.remove());

async function shown(overrides: string[], count = 1): Promise<ShownSplit> {
  const { experiment } = await loadExperiment(world.config, overrides);
  return showExamples(experiment, { split: 'train', count, watch: silentWatch });
}

function palkit(...given: string[]) {
  return spawnSync(
    process.execPath,
    ['node_modules/tsx/dist/cli.mjs', 'src/cli/main.ts', 'data', 'show', world.config, ...given],
    { encoding: 'utf8' },
  );
}

describe('an example as training sees it', () => {
  it('has the tokens of prompt and answer, the place of the audio, and the answer with its end in the loss', async () => {
    const { questions, examples } = await shown([]);
    const manifest = await readManifest(join(world.dataset, 'train.jsonl'));
    expect(questions).toBe(manifest.length);
    const [example] = examples;
    expect(example).toMatchObject({ id: 'first', slot: 1, clip: manifest[0]?.audio });
    expect(example?.audio).toEqual([
      {
        stream: 'timbre',
        encoder: 'timbre',
        connector: 'mlp',
        mode: 'attention-only',
        tokens: 30,
        layers: [1, 2, 3],
      },
    ]);
    const answer = manifest[0]?.answer;
    expect(example?.text).toEqual([
      { text: '<bos>', learned: false },
      { audio: true },
      { text: 'Question: A <eos> bell\u001b[31m? Answer:', learned: false },
      { text: ` ${answer}<eos>`, learned: true },
    ]);
    const learned = example?.tokens.filter((token) => token.learned) ?? [];
    expect(learned.map(({ text }) => text).join('')).toBe(` ${answer}<eos>`);
    // The special token that the question spells is not one.
    expect(example?.tokens.filter(({ id }) => id === 1)).toHaveLength(1);
    expect(example?.tokens.at(-1)).toEqual({ id: 1, text: '<eos>', learned: true });
  });

  it('in a chat has the system message in front of the audio, and the loss on the answer and its end alone', async () => {
    const chat = ['prompt.chat=true', 'prompt.system=Listen.', 'prompt.template="{audio} {question}"'];
    const [, example] = (await shown(chat, 2)).examples;
    const [, source] = await readManifest(join(world.dataset, 'train.jsonl'));
    expect(example?.text).toEqual([
      { text: '<bos>system: Listen.\nuser: ', learned: false },
      { audio: true },
      { text: ` ${source?.question}\nassistant:`, learned: false },
      { text: ` ${source?.answer}<eos>`, learned: true },
    ]);
  });

  it('learns all text but the first token where train.lossOn says so', async () => {
    const [example] = (await shown(['train.lossOn=all'])).examples;
    expect(example?.tokens.map(({ learned }) => learned)).toEqual(example?.tokens.map((_, at) => at > 0));
  });
});

describe('palkit data show', () => {
  it('prints text, mask and tokens that need no colour, and nothing that steers a terminal', () => {
    const { status, stdout, stderr } = palkit('--n', '1');
    expect(stderr).toBe('');
    expect(status).toBe(0);
    expect(stdout).toContain('sound-world, train split: 1 of ');
    expect(stdout).toMatch(/^first: choice, \w+, audio\/train\/[\w-]+\.wav$/m);
    expect(stdout).toMatch(
      /^\d+ text tokens, \d+ of them learned; 30 audio tokens in front of text token 1$/m,
    );
    expect(stdout).toMatch(/^<bos>⟨audio⟩Question: A <eos> bell\? Answer:⟦ \w+<eos>⟧$/m);
    expect(stdout).toMatch(/^timbre {2}timbre {3}mlp {8}attention-only {2}1 to 3 {12}30$/m);
    expect(stdout).toMatch(/^0 +0 +"<bos>"\n +⟨audio⟩ timbre 30\n1 /m);
    expect(stdout).toMatch(/^\d+ +1 +"<eos>" +learned$/m);
    expect(stripVTControlCharacters(stdout)).toBe(stdout);
  });

  it('marks in colour the same places', async () => {
    const split = await shown([]);
    const coloured = formatShown(split, true);
    expect(coloured).toContain('\u001b[35m⟨audio⟩\u001b[39m');
    expect(coloured).toContain('\u001b[32m⟦ ');
    expect(coloured).toContain('<eos>⟧\u001b[39m');
    expect(stripVTControlCharacters(coloured)).toBe(formatShown(split, false));
  });

  it('prints the same as JSON', async () => {
    const { status, stdout } = palkit('--n', '2', '--json', '--set', 'seed=1');
    expect(status).toBe(0);
    expect(JSON.parse(stdout)).toEqual(await shown(['seed=1'], 2));
  });

  it.each([
    ['0 examples', ['--n', '0'], '--n 0: expected a whole number above 0'],
    ['an unknown split', ['--split', 'tset'], '--split takes one of train, validation, test, not "tset"'],
  ])('refuses %s', (_, given, message) => {
    const { status, stderr } = palkit(...given);
    expect(status).toBe(2);
    expect(stderr).toContain(message);
  });
});
