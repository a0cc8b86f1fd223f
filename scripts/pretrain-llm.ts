/**
 * Makes models/sound-world: a tokenizer and a language model of a few million parameters, both learned from text
 * about sounds (`worldText`). The model has never heard anything.
 *
 *   npx tsx scripts/pretrain-llm.ts [steps] [folder]
 */
import { random } from '../src/config/random.ts';
import { worldText } from '../src/data/soundWorld/text.ts';
import { onnxEngine } from '../src/engine/onnx/engine.ts';
import { allDense } from '../src/ffn/feedForward.ts';
import { type DecoderConfig, parameterShapes } from '../src/llm/config.ts';
import { plainLlama } from '../src/llm/families.ts';
import { begunAs, initialize } from '../src/llm/initialize.ts';
import { tokenizerFromJson } from '../src/llm/tokenizer.ts';
import { trainTokenizer } from '../src/llm/trainTokenizer.ts';
import { saveLlm } from '../src/llm/weights.ts';
import type { AudioLlm } from '../src/pal/audioLlm.ts';
import { float32, int32 } from '../src/tensor/tensor.ts';
import { answerObjective } from '../src/train/loss.ts';
import { learningRateAt } from '../src/train/schedule.ts';
import type { Batch } from '../src/train/step.ts';
import { trainingState } from '../src/train/trainingState.ts';

const steps = Number(process.argv[2] ?? 1000);
const folder = process.argv[3] ?? 'models/sound-world';
const seed = 1;
const [rows, textRows] = [32, 96];
const schedule = { steps, learningRate: 2e-3, warmupSteps: 60, finalLearningRate: 2e-5 };

const specialTokens = ['<bos>', '<eos>', '<pad>'];
const bos = { SpecialToken: { id: '<bos>', type_id: 0 } };
const sequence = (id: string) => ({ Sequence: { id, type_id: 0 } });
const tokenizerJson = {
  ...trainTokenizer(
    Array.from({ length: 3000 }, (_, index) => worldText(seed, -1 - index)),
    { vocabularySize: 640, specialTokens },
  ),
  post_processor: {
    type: 'TemplateProcessing',
    single: [bos, sequence('A')],
    pair: [bos, sequence('A'), sequence('B')],
    special_tokens: { '<bos>': { id: '<bos>', ids: [0], tokens: ['<bos>'] } },
  },
};
const tokenizerConfig = {
  tokenizer_class: 'PreTrainedTokenizerFast',
  bos_token: '<bos>',
  eos_token: '<eos>',
  pad_token: '<pad>',
};
const tokenizer = tokenizerFromJson(tokenizerJson, tokenizerConfig, 'the new tokenizer');

const config: DecoderConfig = {
  ...plainLlama,
  hiddenSize: 192,
  intermediateSize: 512,
  layers: 8,
  heads: 6,
  keyValueHeads: 2,
  headWidth: 32,
  vocabularySize: tokenizer.size,
  tieWordEmbeddings: true,
  maxPositions: 512,
  bosTokenId: 0,
  eosTokenIds: [1],
  padTokenId: 2,
};

const specs = new Map(
  [...parameterShapes(config)].map(([name, shape]) => [name, begunAs(name, shape, config.layers, 0.02)]),
);
const trainable = initialize(specs, (name) => random(seed, 'llm', name));
const size = [...trainable.values()].reduce((total, { data }) => total + data.length, 0);
console.error(`${tokenizer.size} tokens, ${(size / 1e6).toFixed(2)} M parameters`);

let next = 0;
let skipped = 0;

/** Rows of text, one document each; the scene's words count less than questions and answers. */
function nextBatch(): Batch {
  const ids = new Int32Array(rows * textRows).fill(2);
  const targetRows = new Int32Array(rows * textRows);
  const targetIds = new Int32Array(rows * textRows);
  const weights = new Float32Array(rows * textRows);
  let supervisedTokens = 0;
  for (let row = 0; row < rows; ) {
    const text = worldText(seed, next++);
    const question = text.indexOf('Question:');
    const parts = [text.slice(0, question), text.slice(question)].map((part) => tokenizer.encode(part));
    const tokens = [0, ...parts.flat(), 1];
    if (tokens.length > textRows) {
      skipped++;
      continue;
    }
    ids.set(tokens, row * textRows);
    for (let at = 1; at < tokens.length; at++) {
      const target = row * textRows + at - 1;
      targetRows[target] = target;
      targetIds[target] = tokens[at] as number;
      weights[target] = at <= (parts[0]?.length ?? 0) ? 0.1 : 1;
      supervisedTokens += weights[target] as number;
    }
    row++;
  }
  return {
    feeds: {
      ids: int32([rows, textRows], ids),
      'target.rows': int32([rows * textRows], targetRows),
      'target.ids': int32([rows * textRows], targetIds),
      'target.weights': float32([rows * textRows], weights),
    },
    supervisedTokens,
    tokens: rows * textRows,
  };
}

const model: AudioLlm = {
  llm: config,
  feedForward: allDense,
  streams: [],
  integration: { positions: 'reserve', attentionOnlyVisibleToPrefix: true },
  slot: 1,
};
const shape = { rows, textRows, targets: rows * textRows };
const engine = onnxEngine({ threads: 2 });
const state = await trainingState({
  engine,
  objective: answerObjective(model, shape),
  trainable,
  frozen: new Map(),
  optimizer: { kind: 'adamw', beta1: 0.9, beta2: 0.95, epsilon: 1e-8, weightDecay: 0.05 },
  clipNorm: 1,
  accumulate: 1,
});
const started = performance.now();
for (let step = 0; step < steps; step++) {
  const { loss, gradientNorm } = await state.step([nextBatch()], learningRateAt(step, schedule));
  if (step % 50 === 0 || step === steps - 1) {
    const seconds = (performance.now() - started) / 1000;
    console.error(
      `step ${step} loss ${loss.toFixed(4)} norm ${gradientNorm.toFixed(2)} ${(seconds / (step + 1)).toFixed(2)} s/step, ${skipped} too long`,
    );
  }
  if (step % 300 === 299 || step === steps - 1) {
    await saveLlm(folder, { config, parameters: await state.parameters(), tokenizer }, { half: true });
  }
}
await engine.dispose();
