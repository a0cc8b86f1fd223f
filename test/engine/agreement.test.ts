/**
 * A training step on both engines, for every way of integrating audio: ONNX Runtime's own memory against TensorFlow.js's
 * resident variables. Loss, every gradient, every moment and every parameter are compared tensor by tensor, by the
 * largest entry and by the norm.
 */
import * as tf from '@tensorflow/tfjs-core';
import { afterAll, describe, expect, it } from 'vitest';
import { random } from '../../src/config/random.ts';
import { type Engine, type Feed, plain } from '../../src/engine/engine.ts';
import { onnxEngine } from '../../src/engine/onnx/engine.ts';
import { tfjsEngine } from '../../src/engine/tfjs/engine.ts';
import type { FeedForwardConfig } from '../../src/ffn/config.ts';
import { isHashTable } from '../../src/ffn/parameters.ts';
import type { AudioLlm } from '../../src/pal/audioLlm.ts';
import type { IntegrationConfig, Stream } from '../../src/pal/streams.ts';
import { float32 } from '../../src/tensor/tensor.ts';
import { answerBatch, answerObjective } from '../../src/train/loss.ts';
import {
  gradientProgram,
  NonFiniteError,
  type OptimizerState,
  type StepOptions,
} from '../../src/train/step.ts';
import { trainingState } from '../../src/train/trainingState.ts';
import { allParameters, attentionOnly, audioLlm, feedForwardKinds, stream } from '../pal/fixture.ts';

const onnx = onnxEngine({ threads: 1 });
const wasm = await tfjsEngine({ backend: 'wasm' });
afterAll(() => Promise.all([onnx.dispose(), wasm.dispose()]));

const latent = { kind: 'latent', tokens: 3, heads: 2, blocks: 1, perLayer: true } as const;
const prefix = (startLayer: number): Stream['integration'] => ({ mode: 'prefix', startLayer });
const variants: Record<string, [Stream[], Partial<IntegrationConfig>?, FeedForwardConfig?]> = {
  'prefix through every layer': [[stream('one', { integration: prefix(0) })]],
  'prefix, delayed': [[stream('one', { integration: prefix(2) })]],
  'prefix, delayed, compact positions': [
    [stream('one', { integration: prefix(2), connector: latent })],
    { positions: 'compact' },
  ],
  'attention-only from layer 2 up': [[stream('one')]],
  'attention-only in listed layers': [
    [stream('one', { integration: { ...attentionOnly, startLayer: undefined, layers: [1, 3] } })],
  ],
  'attention-only, own norm and projections': [
    [
      stream('one', {
        connector: latent,
        integration: { ...attentionOnly, audioNorm: 'own', keyValueProjection: 'separate', rope: 'shared' },
      }),
    ],
  ],
  'attention-only, no norm, no positions, after the audio': [
    [
      stream('one', {
        connector: { kind: 'mlp', hidden: 8, perLayer: false },
        integration: { ...attentionOnly, audioNorm: 'none', rope: 'none', audioVisibleTo: 'afterAudio' },
      }),
    ],
  ],
  'hybrid of two encoders': [
    [stream('one'), stream('two', { frames: 3, width: 4, integration: prefix(1), connector: latent })],
    { attentionOnlyVisibleToPrefix: false },
  ],
  ...Object.fromEntries(
    Object.entries(feedForwardKinds).map(([kind, ffn]) => [kind, [[stream('one')], {}, ffn]]),
  ),
  'topk that drops, over prefix rows': [
    [stream('one', { integration: prefix(0) })],
    {},
    { ...feedForwardKinds.topk, capacityFactor: 0.8 } as FeedForwardConfig,
  ],
};

const shape = { rows: 2, textRows: 8, targets: 8 };

function batchesOf(model: AudioLlm, broken = false) {
  return [0, 1].map((micro) =>
    answerBatch(
      model,
      shape,
      [0, 1].map((row) => {
        const draw = random(31, micro, row);
        const ids = Array.from({ length: 6 + row }, () => draw.integer(23));
        const clip = new Map(
          model.streams.map(({ encoder, frames, width }) => {
            const values = Array.from({ length: frames * width }, () =>
              broken ? Number.NaN : draw.normal(),
            );
            return [encoder, float32([frames, width], values)];
          }),
        );
        const targets = ids.slice(3 + micro).map((id, at) => ({ position: at + 2 + micro, id }));
        return { id: `${micro}.${row}`, ids, clip, targets };
      }),
    ),
  );
}

function optionsOf(
  model: AudioLlm,
  engine: Engine,
  accumulate: number,
  clipNorm: number | null,
): StepOptions {
  const parameters = allParameters(model);
  const isFrozen = (name: string) => name.startsWith('model.layers.0.mlp') || isHashTable(name);
  return {
    engine,
    objective: answerObjective(model, shape),
    trainable: new Map([...parameters].filter(([name]) => !isFrozen(name))),
    frozen: new Map([...parameters].filter(([name]) => isFrozen(name))),
    // Adam divides by the root of the squares: a large epsilon, or gradients of nothing decide the direction.
    optimizer: { kind: 'adamw', beta1: 0.9, beta2: 0.95, epsilon: 1e-3, weightDecay: 0.01 },
    clipNorm,
    accumulate,
  };
}

type Numbers = Record<string, Float32Array>;
const dataOf = (tensors: Iterable<[string, { data: unknown }]>): Numbers =>
  Object.fromEntries([...tensors].map(([name, { data }]) => [name, (data as Float32Array).slice()]));

/** Every tensor within `limit`, by its largest entry and by its norm. */
function agree(actual: Numbers, expected: Numbers, limit: number): void {
  expect(Object.keys(actual).sort()).toEqual(Object.keys(expected).sort());
  const far = Object.entries(expected).flatMap(([name, values]) => {
    const differences = values.map((value, at) => (actual[name]?.[at] as number) - value);
    const most = (all: Float32Array) => all.reduce((largest, value) => Math.max(largest, Math.abs(value)), 0);
    const norm = (all: Float32Array) => Math.hypot(...all);
    // A tensor of zeros is compared as it stands.
    const byEntry = most(differences) / (most(values) || 1);
    const byNorm = norm(differences) / (norm(values) || 1);
    return byEntry < limit && byNorm < limit ? [] : [{ name, byEntry, byNorm }];
  });
  expect(far).toEqual([]);
}

/** The gradients of the first batch. */
async function gradientsOn(model: AudioLlm, engine: Engine): Promise<Numbers> {
  const options = optionsOf(model, engine, 1, null);
  const executable = await engine.compile(gradientProgram(options));
  const outputs = await executable.run({
    ...Object.fromEntries(options.trainable),
    ...batchesOf(model)[0]?.feeds,
  });
  await executable.dispose();
  return dataOf(Object.keys(outputs).map((name) => [name, plain(outputs, name)]));
}

async function stepsOn(options: StepOptions, model: AudioLlm, start?: OptimizerState) {
  const state = await trainingState(options, start);
  const window = batchesOf(model).slice(0, options.accumulate);
  const losses: number[] = [];
  const norms: number[] = [];
  for (let step = 0; step < 3; step++) {
    const { loss, gradientNorm } = await state.step(window, 0.003);
    losses.push(loss);
    norms.push(gradientNorm);
  }
  const { moments, updates } = await state.optimizer();
  const result = {
    scalars: { losses: Float32Array.from(losses), norms: Float32Array.from(norms) },
    parameters: dataOf(await state.parameters()),
    moments: dataOf(moments),
    state: {
      updates,
      moments: new Map([...moments].map(([name, { shape, data }]) => [name, float32(shape, data.slice())])),
    },
  };
  await state.dispose();
  return result;
}

describe.each(Object.entries(variants))('%s', (_, [streams, integration, ffn]) => {
  const model = audioLlm(streams, integration, ffn);

  it('gives the same loss and the same gradient of every tensor, to 1e-4', async () => {
    agree(await gradientsOn(model, wasm), await gradientsOn(model, onnx), 1e-4);
  });

  it.each([
    [1, 0.5],
    [2, null],
  ])(
    'gives the same steps, moments and parameters with %d micro-batches, clipped to %s',
    async (accumulate, clipNorm) => {
      const [own, other] = [
        await stepsOn(optionsOf(model, wasm, accumulate, clipNorm), model),
        await stepsOn(optionsOf(model, onnx, accumulate, clipNorm), model),
      ];
      agree(own.scalars, other.scalars, 1e-4);
      agree(own.parameters, other.parameters, 1e-4);
      agree(own.moments, other.moments, 1e-3);
    },
  );
});

describe('training on tfjs', () => {
  const model = audioLlm([stream('one')]);

  it('goes on from moments of the other engine as that engine does', async () => {
    const { state } = await stepsOn(optionsOf(model, onnx, 1, 1), model);
    const [own, other] = [
      await stepsOn(optionsOf(model, wasm, 1, 1), model, state),
      await stepsOn(optionsOf(model, onnx, 1, 1), model, state),
    ];
    expect(own.state.updates).toBe(6);
    agree(own.parameters, other.parameters, 1e-4);
    agree(own.moments, other.moments, 1e-3);
  });

  it.each([1, 2])(
    'holds as many tensors after 50 steps as after one, with %d micro-batches',
    async (accumulate) => {
      const before = tf.memory().numTensors;
      const options = optionsOf(model, wasm, accumulate, 1);
      const state = await trainingState(options);
      const window = batchesOf(model).slice(0, accumulate);
      const broken = batchesOf(model, true).slice(0, accumulate);
      const wrong = window.map((batch, micro) =>
        micro === accumulate - 1 ? { ...batch, feeds: { ...batch.feeds, tokens: float32([1], [0]) } } : batch,
      );
      await state.step(window, 0.003);
      const { numTensors, numBytes } = tf.memory();
      for (let step = 0; step < 50; step++) {
        await state.step(window, 0.003);
        if (step % 10 === 0) {
          await expect(state.step(broken, 0.003)).rejects.toThrow(NonFiniteError);
          // Fails in the last micro-batch: the sums of those before are there already.
          await expect(state.step(wrong, 0.003)).rejects.toThrow('no input "tokens"');
        }
        expect(tf.memory()).toMatchObject({ numTensors, numBytes });
      }
      expect((await state.optimizer()).updates).toBe(51);
      await state.dispose();
      expect(tf.memory().numTensors).toBe(before);
    },
  );

  it('takes no numbers up but the batch and the scalars, and none down but loss and norm', async () => {
    for (const accumulate of [1, 2]) {
      const { engine, traffic } = watched(wasm);
      const state = await trainingState(optionsOf(model, engine, accumulate, 1));
      const window = batchesOf(model).slice(0, accumulate);
      await state.step(window, 0.003);
      const batchNames = Object.keys(window[0]?.feeds ?? {});
      for (let step = 0; step < 2; step++) {
        traffic.up.length = 0;
        traffic.down.length = 0;
        await state.step(window, 0.003);
        expect(new Set(traffic.up)).toEqual(
          new Set([...batchNames, 'learningRate', 'correction1', 'correction2', 'scale']),
        );
        expect(new Set(traffic.down)).toEqual(new Set(['loss', 'gradientNorm']));
      }
      await state.dispose();
    }
  });
});

/** An engine whose runs tell which plain tensors they take and give. */
function watched(inner: Engine): { engine: Engine; traffic: { up: string[]; down: string[] } } {
  const traffic = { up: [] as string[], down: [] as string[] };
  const plainNames = (feeds: Readonly<Record<string, Feed>>) =>
    Object.entries(feeds).flatMap(([name, feed]) => ('location' in feed ? [] : [name]));
  const engine: Engine = {
    ...inner,
    async compile(program, options) {
      const executable = await inner.compile(program, options);
      return {
        async run(feeds, into) {
          const outputs = await executable.run(feeds, into);
          traffic.up.push(...plainNames(feeds));
          traffic.down.push(...plainNames(outputs));
          return outputs;
        },
        dispose: () => executable.dispose(),
      };
    },
  };
  return { engine, traffic };
}
