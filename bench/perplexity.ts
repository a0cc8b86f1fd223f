/**
 * `npm run bench -- perplexity FILE.gguf [--peers] [--python FILE] [--chat] [--json]`: how well a real model predicts
 * a fixed text. `--peers` compares with transformers on the same dequantised weights, and token ids too; `--chat`
 * lets the model answer three questions.
 */
import { execFileSync } from 'node:child_process';
import { existsSync } from 'node:fs';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { sanitizeLine } from '../src/cli/terminal/sanitize.ts';
import { type Engine, plain } from '../src/engine/engine.ts';
import { onnxEngine } from '../src/engine/onnx/engine.ts';
import { allDense } from '../src/ffn/feedForward.ts';
import { languageModel } from '../src/llm/decoder.ts';
import { tokenLogProbabilities } from '../src/llm/score.ts';
import { type LoadedLlm, loadLlm, saveLlm } from '../src/llm/weights.ts';
import { generate } from '../src/pal/generate.ts';
import { reshape, slice } from '../src/tensor/operations.ts';
import { frozen } from '../src/tensor/parameters.ts';
import type { Value } from '../src/tensor/program.ts';
import { int32 } from '../src/tensor/tensor.ts';
import { trace } from '../src/tensor/trace.ts';
import { fail } from './measure.ts';

const story = `The lighthouse at the end of the peninsula had not been manned for thirty years, but every evening at dusk its
lamp still came on. Nobody in the village below thought much about it. A timer, people said, or a sensor that noticed
the fading light; the harbour authority had surely installed something of the kind when the last keeper retired. It was
only when the cable to the headland was cut by a falling tree, and the lamp came on all the same, that anyone asked the
question aloud.

Marta, who repaired boat engines and anything else that was brought to her, offered to walk up and look. She took a
torch, a roll of insulating tape and two sandwiches, because the path was longer than it seemed from the quay. The wind
had dropped after the storm, and the sea below the cliffs was as flat as poured glass. Halfway up she met the
schoolteacher coming down, out of breath and rather pale.

"There is somebody inside," he said. "I heard a piano."

"There is no piano in a lighthouse," said Marta. "The stairs are too narrow. You would have to build the tower around
it."

"Then that is what they did," said the schoolteacher, and he went on down the hill without looking back.

The door at the foot of the tower was painted green and had no lock. Marta pushed it open and stood for a moment in the
dark, listening. She could hear the water moving in the caves under the rock, and the slow creak of the iron gallery
far above her. Then, quite clearly, she heard three notes, one after the other, each a little higher than the one
before. They were not played by anybody who knew how to play. They were the notes that a finger makes when it wants to
find out whether the keys still work.

She climbed. There were one hundred and forty-two steps, and she counted them, because her father had taught her that a
frightened person who is counting is only half as frightened. At the top there was a round room with windows on every
side. In the middle of the room stood a small upright piano, grey with dust, and on the stool in front of it sat a boy
of about ten years with a bicycle lamp in his lap.

"You are the one who lights it," said Marta.

The boy nodded. He explained that his grandfather had been the keeper, and had left him a notebook in which everything
was written down: how to trim the wick, how to wind the clockwork that turned the lens, and how many litres of oil were
left in the tank beneath the stairs. There was enough, he said, for another eleven years, if the winters were not too
long. He had not told anyone, because nobody had asked.

Marta sat down on the top step and unwrapped the sandwiches. She gave him one of them. Outside, a long way off, a ship
was crossing the horizon, and the beam of the lamp touched it for an instant and moved on.`;

const nasty = `  Ünïcödé ǅ ﬁ ½ ² ٣٤ Ⅷ — “quotes” 'it's' IT'S we'VE\t\ttabs\r\nCRLF\n\n\n   indented  12  345 6789 1,000,000.50
    for (int i=0;i<10;i++) { a[i] = b[i] * 0x1F; } // done!
音楽 は 楽しい。 Привет, мир! שלום عالم 👩‍👩‍👧 🎵🎶 \u00a0\u3000\u2003\u0085\u200b <|im_start|>user\nhello<|im_end|>\n   `;

const questions = [
  'What is the capital of France?',
  'Name three things that make a sound.',
  'Why do cats purr? Answer in one sentence.',
];

const { positionals, values } = parseArgs({
  allowPositionals: true,
  options: {
    python: { type: 'string', default: 'python3' },
    peers: { type: 'boolean', default: false },
    chat: { type: 'boolean', default: false },
    json: { type: 'boolean', default: false },
  },
});
const [, file] = positionals;
if (file === undefined || !existsSync(file)) fail('usage: npm run bench -- perplexity FILE.gguf');

/** exp of the mean negative log-probability of every token but the first. */
async function perplexity(engine: Engine, { config, parameters }: LoadedLlm, ids: readonly number[]) {
  const rows = ids.length;
  const types = {
    ids: { dtype: 'int32', shape: [1, rows] },
    next: { dtype: 'int32', shape: [rows - 1] },
  } as const;
  const program = trace(types, (inputs) => {
    const weights = frozen(parameters);
    const feedForward = allDense;
    const hidden = languageModel(config, weights, inputs.ids as Value, feedForward);
    const flat = slice(reshape(hidden, [rows, config.hiddenSize]), 0, 0, rows - 1);
    return { scores: tokenLogProbabilities(config, weights, flat, inputs.next as Value) };
  });
  const executable = await engine.compile(program);
  const outputs = await executable.run({ ids: int32([1, rows], ids), next: int32([rows - 1], ids.slice(1)) });
  await executable.dispose();
  const scores = plain(outputs, 'scores').data as Float32Array;
  return Math.exp(-scores.reduce((total, score) => total + score, 0) / scores.length);
}

/** A question and the model's answer, in the format of SmolLM2's training. */
async function answer(engine: Engine, llm: LoadedLlm, question: string): Promise<string> {
  const system = 'You are a helpful AI assistant named SmolLM, trained by Hugging Face';
  const prompt =
    `<|im_start|>system\n${system}<|im_end|>\n` +
    `<|im_start|>user\n${question}<|im_end|>\n<|im_start|>assistant\n`;
  const [ids = []] = await generate({
    engine,
    model: {
      llm: llm.config,
      feedForward: allDense,
      streams: [],
      integration: { positions: 'reserve', attentionOnlyVisibleToPrefix: true },
      slot: 0,
    },
    parameters: llm.parameters,
    rows: [{ ids: llm.tokenizer.encode(prompt), clip: undefined, id: question }],
    maxNewTokens: 60,
    decoding: { decoding: 'greedy' },
  });
  return llm.tokenizer.decode(ids);
}

interface Peer {
  readonly perplexity: number;
  readonly ids: readonly (readonly number[])[];
  readonly folderIds: readonly (readonly number[])[];
  readonly llamaIds: readonly (readonly number[])[] | null;
}

async function askPeer(llm: LoadedLlm): Promise<Peer> {
  const folder = await mkdtemp(join(tmpdir(), 'palkit-perplexity-'));
  try {
    await saveLlm(folder, llm, { half: true });
    const input = JSON.stringify({ texts: [story, nasty], tokenizer: folder });
    const output = execFileSync(values.python, ['bench/peers/perplexity.py', file as string], {
      input,
      encoding: 'utf8',
      stdio: ['pipe', 'pipe', 'inherit'],
      maxBuffer: 2 ** 26,
    });
    return JSON.parse(output.trim().split('\n').at(-1) ?? '') as Peer;
  } finally {
    await rm(folder, { recursive: true });
  }
}

const llm = await loadLlm(file);
const engine = onnxEngine({ threads: 2 });
const ids = [story, nasty].map((text) => llm.tokenizer.encode(text));
const own = await perplexity(engine, llm, ids[0] as number[]);
const peer = values.peers ? await askPeer(llm) : undefined;
const same = (theirs: readonly (readonly number[])[] | null) =>
  theirs?.map((others, at) => JSON.stringify(others) === JSON.stringify(ids[at]));
const answers = [];
for (const question of values.chat ? questions : []) {
  answers.push({ question, answer: await answer(engine, llm, question) });
}
await engine.dispose();

const comparison = peer && {
  transformers: peer.perplexity,
  difference: own / peer.perplexity - 1,
  // Of the story, and of a text of everything that is hard to cut.
  sameIds: {
    "palkit's tokenizer.json in transformers": same(peer.folderIds),
    'the GGUF file in llama.cpp': same(peer.llamaIds),
    'the GGUF file in transformers': same(peer.ids),
  },
};
const result = {
  benchmark: 'perplexity',
  model: file,
  tokens: ids[0]?.length,
  perplexity: own,
  ...comparison,
  answers,
};
if (values.json) process.stdout.write(`${JSON.stringify(result)}\n`);
else {
  const lines = [`perplexity of ${result.tokens} tokens: palkit ${own.toFixed(4)}`];
  if (comparison !== undefined) {
    const percent = (100 * comparison.difference).toFixed(4);
    lines.push(`transformers ${comparison.transformers.toFixed(4)}: palkit's is ${percent} % away`);
    for (const [witness, [story, hard] = []] of Object.entries(comparison.sameIds)) {
      const word = (is: boolean | undefined) => (is === undefined ? 'not asked' : is ? 'the same' : 'other');
      lines.push(`token ids of ${witness}: story ${word(story)}, hard text ${word(hard)}`);
    }
  }
  for (const { question, answer } of answers) lines.push('', `> ${question}`, sanitizeLine(answer));
  process.stdout.write(`${lines.join('\n')}\n`);
}
