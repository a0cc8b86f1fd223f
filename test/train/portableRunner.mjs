/**
 * Runs an exported folder with ONNX Runtime and nothing of palkit:
 *
 *     node test/train/portableRunner.mjs FOLDER WAVEFORMS PROMPT_IDS
 *
 * WAVEFORMS is a JSON file of samples by sample rate, PROMPT_IDS a JSON list. Prints the tokens of the answer, the
 * logits of its first one, and what each stream's encoder made of the clip.
 */
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { InferenceSession, Tensor } from 'onnxruntime-node';

const [folder, waveforms, promptIds] = process.argv.slice(2);
const model = JSON.parse(readFileSync(join(folder, 'model.json'), 'utf8'));
const byRate = JSON.parse(readFileSync(waveforms, 'utf8'));
const prompt = JSON.parse(promptIds);

const load = (file) => InferenceSession.create(join(folder, file), { logSeverityLevel: 3 });
const float = (dims, values) => new Tensor('float32', Float32Array.from(values), dims);
const int = (dims, values) => new Tensor('int32', Int32Array.from(values), dims);
const run = (session, feeds) =>
  session.run(
    Object.fromEntries(Object.entries(feeds).filter(([name]) => session.inputNames.includes(name))),
  );

const heard = {};
const embeddings = {};
for (const { name, frames } of model.streams) {
  const { sampleRate, samples, steps, validBy } = model.encoders[name];
  const clip = byRate[sampleRate];
  let value = float([1, samples], [...clip, ...Array(samples - clip.length).fill(0)]);
  let valid;
  for (const step of steps) {
    const made = await run(await load(step.file), { [step.input]: value, samples: int([1], [clip.length]) });
    value = made[step.output];
    if (step.file.endsWith(`.${validBy}.onnx`)) valid = made.valid;
  }
  embeddings[name] = { values: [...value.data], valid: [...valid.data] };
  const connected = await run(await load(`connector.${name}.onnx`), {
    frames: value.reshape([1, ...frames]),
    valid,
  });
  for (const [output, tensor] of Object.entries(connected)) heard[`${name}.${output}`] = tensor;
}

const { promptTokens, answerTokens, stopIds } = model;
const ids = int([1, promptTokens], [...prompt, ...Array(promptTokens - prompt.length).fill(0)]);
let { logits, ...cache } = await run(await load('decoder.prompt.onnx'), {
  ids,
  last: int([1], [prompt.length - 1]),
  ...heard,
});
const firstLogits = [...logits.data];
const step = await load('decoder.step.onnx');
const tokens = [];
while (tokens.length < answerTokens) {
  const token = logits.data.indexOf(Math.max(...logits.data));
  if (stopIds.includes(token)) break;
  tokens.push(token);
  const slot = prompt.length + tokens.length - 1;
  const made = await run(step, { token: int([1], [token]), slot: int([1], [slot]), ...cache });
  for (const [name, tensor] of Object.entries(made)) {
    if (name === 'logits') logits = tensor;
    else cache[name.slice('next.'.length)] = tensor;
  }
}
process.stdout.write(JSON.stringify({ tokens, firstLogits, embeddings }));
