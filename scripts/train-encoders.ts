/**
 * Makes encoders/timbre and encoders/pitch: two small audio encoders that are blind to different things. Both are
 * transformers over spectrogram frames, trained on synthesised scenes to tell what sounds; only the narrow
 * embedding in front of the training heads is kept.
 *
 * - `timbre` sees a mel spectrum smoothed to its envelope (the first cepstral coefficients), so pitch is gone. It
 *   learns which sounds are active and which sound it is in order.
 * - `pitch` sees semitone bands with each frame's level taken away. It learns notes, onsets, the count of events,
 *   and whether notes rise and beats speed up; it never learns what makes the sound.
 *
 *   npx tsx scripts/train-encoders.ts [timbre|pitch] [steps]
 */
import { mkdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { extractFeatures, type FeatureConfig, featureSchema } from '../src/audio/features.ts';
import { random } from '../src/config/random.ts';
import { soundClasses } from '../src/data/soundWorld/instruments.ts';
import { drawPlan, drawScene, frameLabels, renderScene, type Scene } from '../src/data/soundWorld/scenes.ts';
import { onnxEngine } from '../src/engine/onnx/engine.ts';
import { programToOnnx } from '../src/engine/onnx/lower.ts';
import { initialize } from '../src/llm/initialize.ts';
import { gelu, sinusoids, standardize } from '../src/pal/connectors.ts';
import {
  add,
  concat,
  constant,
  linear,
  logSoftmax,
  matmul,
  multiply,
  negate,
  reshape,
  slice,
  softmax,
  sum,
  transpose,
} from '../src/tensor/operations.ts';
import type { ParameterSpec } from '../src/tensor/parameters.ts';
import { frozen, type Parameters, parameter } from '../src/tensor/parameters.ts';
import type { Value } from '../src/tensor/program.ts';
import { float32, type Tensor } from '../src/tensor/tensor.ts';
import { trace } from '../src/tensor/trace.ts';
import { learningRateAt } from '../src/train/schedule.ts';
import { trainingState } from '../src/train/trainingState.ts';

const tokensPerClip = 30;
const framesPerSecond = 10;
const hidden = 96;
const heads = 4;
const blocks = 2;
const seed = 1;

/** Softmax targets: name -> classes. Every one is a question about a token of 100 ms. */
type Heads = Readonly<Record<string, number>>;

interface EncoderPlan {
  readonly description: string;
  readonly features: FeatureConfig;
  readonly hops: number;
  readonly width: number;
  readonly heads: Heads;
  /** Prepares a batch of features [batch, hops, bins] in the program. */
  readonly front: (features: Value) => Value;
  readonly frontBins: number;
  /** Class per head for each token; -1 where there is nothing to say. */
  readonly targets: (scene: Scene) => Readonly<Record<string, readonly number[]>>;
}

const melBins = 40;
const cepstra = 16;

/** The first cosine coefficients of a log spectrum: its envelope, without the harmonics that carry pitch. */
function cosineTable(): Tensor {
  const table = Float32Array.from({ length: melBins * cepstra }, (_, at) => {
    const [bin, order] = [Math.floor(at / cepstra), at % cepstra];
    return Math.cos((Math.PI * order * (bin + 0.5)) / melBins) * Math.sqrt(2 / melBins);
  });
  return float32([melBins, cepstra], table);
}

/** Onset times without doubles: events that start together are one. */
function onsetsOf(scene: Scene): number[] {
  return [...new Set(scene.events.map((event) => event.onsetSeconds))].sort((a, b) => a - b);
}

function newestOnset(onsets: readonly number[], time: number): number {
  return onsets.filter((onset) => onset < time).length;
}

const tokenTimes = Array.from({ length: tokensPerClip }, (_, token) => (token + 1) / framesPerSecond);

const plans: Readonly<Record<string, EncoderPlan>> = {
  timbre: {
    description: 'Hears timbre and events: what sounds, when, and as which event in order. Deaf to pitch.',
    features: featureSchema.parse({ kind: 'log-mel', minHz: 60, maxHz: 7600, bins: melBins, floor: 1e-4 }),
    hops: 300,
    width: 48,
    heads: {
      ...Object.fromEntries(soundClasses.map((sound) => [sound, 2])),
      order: 6,
      remaining: 6,
      single: 9,
    },
    frontBins: cepstra,
    front: (features) => matmul(features, constant(cosineTable())),
    targets: (scene) => {
      const labels = frameLabels(scene, framesPerSecond);
      const onsets = onsetsOf(scene);
      const active = soundClasses.map((sound, index) => [sound, labels.active.map((row) => row[index] ?? 0)]);
      // One class for the sound of the newest event; 8 before the first.
      const single = tokenTimes.map((time) => {
        const newest = onsets[newestOnset(onsets, time) - 1];
        const events = scene.events.filter((event) => event.onsetSeconds === newest);
        return events.length > 1 ? -1 : events[0] === undefined ? 8 : soundClasses.indexOf(events[0].sound);
      });
      return {
        ...Object.fromEntries(active),
        order: tokenTimes.map((time) => newestOnset(onsets, time)),
        remaining: tokenTimes.map((time) => onsets.length - newestOnset(onsets, time)),
        single,
      };
    },
  },
  pitch: {
    description:
      'Hears pitch and rhythm: notes, onsets, how many, rising or falling, faster or slower. Deaf to timbre.',
    features: featureSchema.parse({
      kind: 'log-frequency',
      windowMs: 64,
      hopMs: 20,
      fftSize: 1024,
      minHz: 110,
      bins: 60,
      floor: 1e-4,
    }),
    hops: 150,
    width: 48,
    heads: { note: 26, onset: 2, count: 6, contour: 3, trend: 3 },
    frontBins: 60,
    front: (features) => features,
    targets: (scene) => {
      const labels = frameLabels(scene, framesPerSecond);
      const onsets = onsetsOf(scene);
      const pitched = scene.events.filter((event) => event.pitchSemitones !== null);
      return {
        note: labels.pitchSemitones.map((pitch) => (Number.isNaN(pitch) ? 25 : pitch - 57)),
        onset: [...labels.onset],
        count: tokenTimes.map((time) => newestOnset(onsets, time)),
        // Whether the newest note is lower, the same as, or higher than the one before.
        contour: tokenTimes.map((time) => {
          const [now, before] = pitched.filter((event) => event.onsetSeconds < time).reverse();
          if (now === undefined || before === undefined || now.onsetSeconds === before.onsetSeconds) return 1;
          return 1 + Math.sign((now.pitchSemitones ?? 0) - (before.pitchSemitones ?? 0));
        }),
        // Whether the newest interval is longer, about the same, or shorter than the one before.
        trend: tokenTimes.map((time) => {
          const [now, before, first] = onsets.filter((onset) => onset < time).reverse();
          if (now === undefined || before === undefined || first === undefined) return 1;
          const ratio = (now - before) / (before - first);
          return ratio < 0.82 ? 2 : ratio > 1.22 ? 0 : 1;
        }),
      };
    },
  },
};

function parameterSpecs(plan: EncoderPlan): Map<string, ParameterSpec> {
  const specs = new Map<string, ParameterSpec>();
  const weight = (name: string, out: number, into: number) => {
    specs.set(`${name}.weight`, { shape: [out, into], initial: 'normal', deviation: into ** -0.5 });
    specs.set(`${name}.bias`, { shape: [out], initial: 'zeros' });
  };
  const stacked = (plan.hops / tokensPerClip) * plan.frontBins;
  weight('patch', hidden, 3 * stacked);
  for (let block = 0; block < blocks; block++) {
    for (const name of ['q', 'k', 'v', 'o']) weight(`blocks.${block}.${name}`, hidden, hidden);
    weight(`blocks.${block}.up`, 3 * hidden, hidden);
    weight(`blocks.${block}.down`, hidden, 3 * hidden);
  }
  weight('embedding', plan.width, hidden);
  for (const [name, classes] of Object.entries(plan.heads)) weight(`heads.${name}`, classes, plan.width);
  return specs;
}

/** Features [batch, hops, bins], already normalised, to embeddings [batch, tokens, width]. */
function embeddings(plan: EncoderPlan, parameters: Parameters, features: Value): Value {
  const [batch] = features.shape as [number];
  const project = (x: Value, name: string) =>
    linear(x, parameter(parameters, `${name}.weight`), parameter(parameters, `${name}.bias`));
  const front = plan.front(features);
  const stacked = reshape(front, [batch, tokensPerClip, (plan.hops / tokensPerClip) * plan.frontBins]);
  // A token sees its neighbours' frames too.
  const edge = multiply(slice(stacked, 1, 0, 1), 0);
  const before = concat([edge, slice(stacked, 1, 0, tokensPerClip - 1)], 1);
  const after = concat([slice(stacked, 1, 1, tokensPerClip), edge], 1);
  let x = add(
    project(concat([before, stacked, after], 2), 'patch'),
    constant(sinusoids(tokensPerClip, hidden)),
  );
  for (let block = 0; block < blocks; block++) {
    const normed = standardize(x);
    const split = (name: string) =>
      transpose(
        reshape(project(normed, `blocks.${block}.${name}`), [batch, tokensPerClip, heads, hidden / heads]),
        [0, 2, 1, 3],
      );
    const scores = matmul(split('q'), split('k'), { transposeB: true, scale: (hidden / heads) ** -0.5 });
    const mixed = reshape(transpose(matmul(softmax(scores), split('v')), [0, 2, 1, 3]), [
      batch,
      tokensPerClip,
      hidden,
    ]);
    x = add(x, project(mixed, `blocks.${block}.o`));
    x = add(x, project(gelu(project(standardize(x), `blocks.${block}.up`)), `blocks.${block}.down`));
  }
  return project(standardize(x), 'embedding');
}

function headLogits(parameters: Parameters, name: string, embedded: Value): Value {
  return linear(
    standardize(embedded),
    parameter(parameters, `heads.${name}.weight`),
    parameter(parameters, `heads.${name}.bias`),
  );
}

interface Prepared {
  readonly features: Float32Array;
  readonly targets: Readonly<Record<string, readonly number[]>>;
}

function prepare(plan: EncoderPlan, count: number, stream: string): Prepared[] {
  return Array.from({ length: count }, (_, index) => {
    const scene = drawScene(drawPlan(random(seed, stream, index)), `${seed}/${stream}/${index}`);
    const { data, bins } = extractFeatures(renderScene(scene), plan.features);
    return { features: data.slice(0, plan.hops * bins), targets: plan.targets(scene) };
  });
}

const [name = 'timbre', stepsText = '1200'] = process.argv.slice(2);
const plan = plans[name];
if (plan === undefined) throw new Error(`no encoder "${name}": timbre or pitch`);
const steps = Number(stepsText);
const rows = 32;
const bins = plan.features.bins;
const clips = prepare(plan, 4000, 'encoder');
const heldOut = prepare(plan, 320, 'encoder-test');

// One mean and one scale for the whole spectrogram.
const every = clips.slice(0, 400).flatMap((clip) => [...clip.features]);
const mean = every.reduce((total, value) => total + value, 0) / every.length;
const scale = Math.sqrt(every.reduce((total, value) => total + (value - mean) ** 2, 0) / every.length);

function feedsOf(batch: readonly Prepared[]): Record<string, Tensor> {
  const feeds: Record<string, Tensor> = {
    features: float32(
      [batch.length, plan?.hops ?? 0, bins],
      Float32Array.from(
        batch.flatMap((clip) => [...clip.features]),
        (value) => (value - mean) / scale,
      ),
    ),
  };
  for (const [head, classes] of Object.entries(plan?.heads ?? {})) {
    const table = new Float32Array(batch.length * tokensPerClip * classes);
    for (const [row, { targets }] of batch.entries()) {
      for (const [token, target] of (targets[head] ?? []).entries()) {
        if (target >= 0) table[(row * tokensPerClip + token) * classes + target] = 1;
      }
    }
    feeds[`target.${head}`] = float32([batch.length, tokensPerClip, classes], table);
  }
  return feeds;
}

const engine = onnxEngine({ threads: 2 });
const specs = parameterSpecs(plan);
const inputs = Object.fromEntries(
  Object.entries(feedsOf(clips.slice(0, rows))).map(([key, { dtype, shape }]) => [key, { dtype, shape }]),
);
const state = await trainingState({
  engine,
  objective: {
    inputs,
    summedLoss: (parameters, values) => {
      const embedded = embeddings(plan, parameters, values.features as Value);
      const losses = Object.keys(plan.heads).map((head) =>
        negate(
          sum(
            multiply(logSoftmax(headLogits(parameters, head, embedded)), values[`target.${head}`] as Value),
          ),
        ),
      );
      return { loss: losses.reduce((total, loss) => add(total, loss)) };
    },
  },
  trainable: initialize(specs, (key) => random(seed, name, key)),
  frozen: new Map(),
  optimizer: { kind: 'adamw', beta1: 0.9, beta2: 0.98, epsilon: 1e-8, weightDecay: 0.02 },
  clipNorm: 1,
  accumulate: 1,
});
const schedule = { steps, learningRate: 2e-3, warmupSteps: 50, finalLearningRate: 2e-5 };
const order = random(seed, name, 'order');
for (let step = 0; step < steps; step++) {
  const batch = Array.from({ length: rows }, () => order.pick(clips));
  const { loss } = await state.step(
    [{ feeds: feedsOf(batch), supervisedTokens: rows * tokensPerClip, tokens: 0 }],
    learningRateAt(step, schedule),
  );
  if (step % 100 === 0 || step === steps - 1) console.error(`step ${step} loss ${loss.toFixed(4)}`);
}
const trained = await state.parameters();

/** Accuracy of each head on scenes that were never seen. */
const evaluation = await engine.compile(
  trace({ features: { dtype: 'float32', shape: [heldOut.length, plan.hops, bins] } }, ({ features }) => {
    const parameters = frozen(trained);
    const embedded = embeddings(plan, parameters, features);
    return Object.fromEntries(
      Object.keys(plan.heads).map((head) => [head, multiply(headLogits(parameters, head, embedded), 1)]),
    );
  }),
);
const { features: testFeatures } = feedsOf(heldOut);
const outputs = await evaluation.run({ features: testFeatures as Tensor });
const accuracies: Record<string, number> = {};
for (const [head, classes] of Object.entries(plan.heads)) {
  const logits = (outputs[head] as Tensor & { dtype: 'float32' }).data;
  let [right, all] = [0, 0];
  for (const [row, { targets }] of heldOut.entries()) {
    for (const [token, target] of (targets[head] ?? []).entries()) {
      if (target < 0) continue;
      const start = (row * tokensPerClip + token) * classes;
      const scores = [...logits.subarray(start, start + classes)];
      all++;
      if (scores.indexOf(Math.max(...scores)) === target) right++;
    }
  }
  accuracies[head] = Math.round((1000 * right) / all) / 1000;
}
console.error(accuracies);

const folder = join('encoders', name);
await mkdir(folder, { recursive: true });
const exported = new Map([...trained].filter(([key]) => !key.startsWith('heads.')));
const program = trace({ features: { dtype: 'float32', shape: [1, plan.hops, bins] } }, ({ features }) => ({
  embeddings: embeddings(plan, frozen(exported), features),
}));
await writeFile(join(folder, 'encoder.onnx'), programToOnnx(program));
console.error(
  JSON.stringify({
    features: plan.features,
    normalize: { mean, scale },
    hops: plan.hops,
    tokens: tokensPerClip,
    width: plan.width,
    accuracies,
  }),
);
await engine.dispose();
