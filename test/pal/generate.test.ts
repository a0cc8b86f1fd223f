import { afterAll, describe, expect, it } from 'vitest';
import { random } from '../../src/config/random.ts';
import { plain } from '../../src/engine/engine.ts';
import { onnxEngine } from '../../src/engine/onnx/engine.ts';
import type { DecoderConfig } from '../../src/llm/config.ts';
import { logits } from '../../src/llm/decoder.ts';
import { cacheTypes, stepProgram } from '../../src/llm/generate.ts';
import { chooseTokens } from '../../src/llm/sampling.ts';
import { type AudioLlm, audioInputs, forward } from '../../src/pal/audioLlm.ts';
import { audioFeeds, type ClipFeatures } from '../../src/pal/batch.ts';
import { cacheLayoutOf, generate } from '../../src/pal/generate.ts';
import type { IntegrationConfig, Stream } from '../../src/pal/streams.ts';
import { reshape, slice } from '../../src/tensor/operations.ts';
import { frozen } from '../../src/tensor/parameters.ts';
import { simplify } from '../../src/tensor/passes.ts';
import type { Value } from '../../src/tensor/program.ts';
import { float32, int32, sizeOf, type Tensor } from '../../src/tensor/tensor.ts';
import { trace } from '../../src/tensor/trace.ts';
import {
  type Asked,
  allParameters,
  attentionOnly,
  audioLlm,
  feedForwardKinds,
  llm,
  stream,
} from './fixture.ts';

const engine = onnxEngine();
afterAll(() => engine.dispose());

function clip(streams: readonly Stream[], seed: number): ClipFeatures {
  return new Map(
    streams.map(({ encoder, frames, width }) => {
      const draw = random(seed, encoder);
      // One frame short of the stream's: padding must not be heard.
      const rows = frames - (seed % 2);
      return [
        encoder,
        float32(
          [rows, width],
          Array.from({ length: rows * width }, () => draw.normal()),
        ),
      ];
    }),
  );
}

/** The slow obvious version: the whole sequence anew for each token. */
async function uncached(
  model: AudioLlm,
  ids: readonly number[],
  heard: ClipFeatures,
  count: number,
): Promise<number[]> {
  const all = [...ids];
  for (let made = 0; made < count; made++) {
    const program = trace<string>(
      { ids: { dtype: 'int32', shape: [1, all.length] }, ...audioInputs(model.streams, 1) },
      (inputs) => {
        const weights = frozen(allParameters(model));
        const { hiddenBTD } = forward(model, weights, inputs.ids as Value, inputs);
        const last = reshape(slice(hiddenBTD, 1, all.length - 1, all.length), [1, llm.hiddenSize]);
        return { scores: logits(llm, weights, last) };
      },
    );
    const executable = await engine.compile(program);
    const feeds = {
      ids: int32([1, all.length], all),
      ...audioFeeds(model.streams, 1, [{ id: 'a', clip: heard }]),
    };
    const scores = plain(await executable.run(feeds), 'scores').data as Float32Array;
    all.push(chooseTokens(scores, [[]], { decoding: 'greedy' })[0] as number);
    await executable.dispose();
  }
  return all.slice(ids.length);
}

describe('cached decoding equals the full forward pass', () => {
  const prefix = { mode: 'prefix', startLayer: 0 } as const;
  const cases: Record<
    string,
    {
      streams: Stream[];
      integration?: Partial<IntegrationConfig>;
      llm?: Partial<DecoderConfig>;
      ffn?: Asked | undefined;
    }
  > = {
    'without audio': { streams: [] },
    'attention-only': { streams: [stream('one')] },
    prefix: { streams: [stream('one', { integration: prefix })] },
    'delayed prefix': { streams: [stream('one', { integration: { mode: 'prefix', startLayer: 2 } })] },
    'prefix in listed layers': {
      streams: [stream('one', { integration: { mode: 'prefix', layers: [1, 3] } })],
    },
    'a hybrid of two encoders': {
      streams: [
        stream('one', {
          integration: prefix,
          connector: { kind: 'latent', tokens: 2, heads: 2, blocks: 1, perLayer: false },
        }),
        stream('two', { frames: 4, width: 3 }),
      ],
    },
    'compact positions': { streams: [stream('one')], integration: { positions: 'compact' } },
    'windows, over audio in the sequence and audio outside of it': {
      streams: [stream('one', { integration: prefix }), stream('two')],
      llm: { windows: [3, null, 4, 6] },
    },
    'biases and normalised heads, with projections of its own': {
      streams: [stream('one', { integration: { ...attentionOnly, keyValueProjection: 'separate' } })],
      llm: { queryKeyNorm: true, biases: { queryKeyValue: true, output: true, feedForward: true } },
    },
    ...Object.fromEntries(
      Object.entries(feedForwardKinds).flatMap(([kind, ffn]) => [
        [`${kind}, attention-only`, { streams: [stream('one')], ffn }],
        [`${kind}, prefix`, { streams: [stream('one', { integration: prefix })], ffn }],
      ]),
    ),
    'shared positions': { streams: [stream('one', { integration: { ...attentionOnly, rope: 'shared' } })] },
  };
  for (const [name, { streams, integration, llm: own, ffn }] of Object.entries(cases)) {
    it(name, async () => {
      const model = { ...audioLlm(streams, integration, ffn), llm: { ...llm, ...own, eosTokenIds: [] } };
      const prompts = [
        [0, 5, 7, 9, 3],
        [0, 5, 11],
        [0, 5, 2, 17, 20, 8, 4],
      ];
      const rows = prompts.map((ids, index) => ({ id: String(index), ids, clip: clip(streams, index + 1) }));
      const made = await generate({
        engine,
        model,
        parameters: allParameters(model),
        rows,
        maxNewTokens: 6,
        decoding: { decoding: 'greedy' },
      });
      for (const [index, row] of rows.entries()) {
        expect(made[index]).toEqual(await uncached(model, row.ids, row.clip, 6));
      }
    });
  }

  it('stops at the end token, which is not part of the answer', async () => {
    const model = audioLlm([]);
    const rows = [{ id: 'a', ids: [0, 5, 7], clip: undefined }];
    const options = {
      engine,
      parameters: allParameters(model),
      rows,
      maxNewTokens: 6,
      decoding: { decoding: 'greedy' } as const,
    };
    const [free = []] = await generate({ ...options, model: { ...model, llm: { ...llm, eosTokenIds: [] } } });
    const end = free[2] as number;
    const [stopped = []] = await generate({
      ...options,
      model: { ...model, llm: { ...llm, eosTokenIds: [end] } },
    });
    expect(stopped).toEqual(free.slice(0, free.indexOf(end)));
  });

  it('hears a clip once: a step has no audio in it, and writes one slot of the cache where it lies', async () => {
    const streams = [stream('one'), stream('two', { integration: { mode: 'prefix', startLayer: 1 } })];
    const model = audioLlm(streams);
    const parameters = allParameters(model);
    const layout = cacheLayoutOf(model, 1, 8, 4);
    const step = stepProgram(model.llm, parameters, model.feedForward, layout);
    const connectors = new Set(
      [...parameters].filter(([name]) => name.startsWith('connector.')).map(([, own]) => own),
    );
    const constants = simplify(step).nodes.flatMap((node) =>
      node.primitive === 'constant' ? [node.attributes.tensor] : [],
    );
    expect(constants.filter((tensor) => (connectors as Set<Tensor>).has(tensor))).toEqual([]);
    expect([...step.inputs.keys()].filter((name) => name.startsWith('audio'))).toEqual([]);

    const cache = Object.fromEntries(
      Object.entries(cacheTypes(model.llm, layout)).map(([name, { shape }]) => [
        name,
        float32(
          shape,
          Array.from({ length: sizeOf(shape) }, (_, at) => Math.sin(at)),
        ),
      ]),
    );
    const before = Object.fromEntries(Object.entries(cache).map(([name, { data }]) => [name, data.slice()]));
    const written = [...step.outputs.keys()].filter((name) => name.startsWith('next.'));
    const into = Object.fromEntries(written.map((name) => [name, cache[name.slice(5)] as Tensor]));
    const executable = await engine.compile(step);
    const feeds = { ...cache, token: int32([1], [7]), slot: int32([1], [5]) };
    const outputs = await executable.run(feeds, into);
    await executable.dispose();
    for (const name of written) {
      const own = cache[name.slice(5)] as Tensor;
      expect(plain(outputs, name).data).toBe(own.data);
      const [, , rows = 0, width = 0] = own.shape;
      const changed = [...own.data.keys()].filter((at) => own.data[at] !== before[name.slice(5)]?.[at]);
      const slots = new Set(changed.map((at) => Math.floor(at / width) % rows));
      expect([...slots]).toEqual([rows - layout.textSlots + 5]);
    }
  });
});

it('refuses numbers that would give nonsense', async () => {
  const model = audioLlm([]);
  const rows = [{ id: 'a', ids: [0, 5, 7], clip: undefined }];
  const options = { engine, model, parameters: allParameters(model), rows };
  const greedy = { decoding: 'greedy' } as const;
  for (const maxNewTokens of [0, 1.5, Number.NaN])
    await expect(generate({ ...options, maxNewTokens, decoding: greedy })).rejects.toThrow('maxNewTokens: ');
  const draw = { decoding: 'sample', random: random(1, 'draw') } as const;
  const drawn = (own: { temperature?: number; topK?: number }) =>
    generate({ ...options, maxNewTokens: 2, decoding: { ...draw, ...own } });
  await expect(drawn({ temperature: 0 })).rejects.toThrow("decoding: 'greedy' takes the likeliest token");
  await expect(drawn({ topK: 0 })).rejects.toThrow('topK: 0');
});
