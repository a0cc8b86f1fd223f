import { afterAll, describe, expect, it } from 'vitest';
import { plain } from '../../src/engine/engine.ts';
import { onnxEngine } from '../../src/engine/onnx/engine.ts';
import { allDense } from '../../src/ffn/feedForward.ts';
import { causalBias, decoderLayer, embed, languageModel, masked } from '../../src/llm/decoder.ts';
import { rotaryAt } from '../../src/llm/rotary.ts';
import { type AudioLlm, audioInputNames, audioInputs, forward } from '../../src/pal/audioLlm.ts';
import { batchInputs, targetLoss } from '../../src/pal/batch.ts';
import { connect } from '../../src/pal/connectors.ts';
import { layoutOf } from '../../src/pal/layout.ts';
import { layersOf, type Stream } from '../../src/pal/streams.ts';
import { interpret } from '../../src/tensor/interpret.ts';
import { concat, constant, filled, slice } from '../../src/tensor/operations.ts';
import { type Parameters, parameterInputs } from '../../src/tensor/parameters.ts';
import { simplify } from '../../src/tensor/passes.ts';
import type { Program, Value } from '../../src/tensor/program.ts';
import { dependencies, dependents, select } from '../../src/tensor/reach.ts';
import { float32, type Tensor } from '../../src/tensor/tensor.ts';
import { trace } from '../../src/tensor/trace.ts';
import {
  allParameters,
  attentionOnly,
  audioFeeds,
  audioLlm,
  feedForwardKinds,
  ids,
  llm,
  llmParameters,
  stream,
} from './fixture.ts';

const engine = onnxEngine();
afterAll(() => engine.dispose());

const [batch, rows] = [2, 7];

function forwardProgram(model: AudioLlm, textRows = rows): Program {
  const types = {
    ids: { dtype: 'int32', shape: [batch, textRows] },
    ...audioInputs(model.streams, batch),
  } as const;
  return trace<string>({ ...types, ...parameterInputs(allParameters(model)) }, (inputs) => ({
    hidden: forward(model, new Map(Object.entries(inputs)), inputs.ids as Value, inputs).hiddenBTD,
  }));
}

async function run(program: Program, feeds: Record<string, Tensor>): Promise<Float32Array> {
  const executable = await engine.compile(program);
  const outputs = await executable.run(
    Object.fromEntries([...program.inputs.keys()].map((name) => [name, feeds[name] as Tensor])),
  );
  return plain(outputs, 'hidden').data as Float32Array;
}

function feedsOf(model: AudioLlm, padding = 0): Record<string, Tensor> {
  return {
    ids: ids(batch, rows),
    ...audioFeeds(model.streams, batch, padding),
    ...Object.fromEntries(allParameters(model)),
  };
}

function largestDifference(a: ArrayLike<number>, b: ArrayLike<number>): number {
  expect(a.length).toBe(b.length);
  return Array.from(a, (value, at) => Math.abs(value - (b[at] as number))).reduce(
    (x, y) => Math.max(x, y),
    0,
  );
}

/**
 * The slow obvious version of attention-only: ordinary decoder layers over [audio; text], the audio rows thrown
 * away after each layer and set to the next layer's audio tokens.
 */
function overwritingReference(model: AudioLlm): Program {
  const only = model.streams[0] as Stream;
  const audioRows = 5;
  const types = {
    ids: { dtype: 'int32', shape: [batch, rows] },
    ...audioInputs(model.streams, batch),
  } as const;
  return trace<string>({ ...types, ...parameterInputs(allParameters(model)) }, (inputs) => {
    const parameters: Parameters = new Map(Object.entries(inputs));
    const { frames, valid } = audioInputNames(only);
    const audio = connect(only, parameters, inputs[frames] as Value, inputs[valid] as Value);
    const positions = [2, 3, 4, 5, 6, 0, 1, 7, 8, 9, 10, 11];
    const bias = new Float32Array((audioRows + rows) ** 2);
    for (let row = 0; row < audioRows + rows; row++) {
      for (let key = 0; key < audioRows + rows; key++) {
        // Audio is visible to every row; what the audio rows see does not matter, they are overwritten.
        if (key >= audioRows && key > row) bias[row * (audioRows + rows) + key] = masked;
      }
    }
    const wide = constant(float32([1, 1, audioRows + rows, audioRows + rows], bias));
    let text = embed(parameters, inputs.ids as Value);
    for (let layer = 0; layer < llm.layers; layer++) {
      const present = layersOf(only, llm.layers).includes(layer);
      const all = present ? concat([audio.tokensBAD(layer), text], 1) : text;
      const { hiddenBTD } = decoderLayer(llm, parameters, layer, all, {
        rotary: rotaryAt(llm, present ? positions : positions.slice(audioRows)),
        bias: present ? wide : constant(causalBias(rows)),
        feedForward: allDense,
      });
      text = present ? slice(hiddenBTD, 1, audioRows, audioRows + rows) : hiddenBTD;
    }
    return { hidden: text };
  });
}

describe('attention-only integration', () => {
  it('equals ordinary layers over [audio; text] with the audio rows overwritten at each layer', async () => {
    const model = audioLlm([stream('one')]);
    const [fast, slow] = [
      await run(forwardProgram(model), feedsOf(model)),
      await run(overwritingReference(model), feedsOf(model)),
    ];
    expect(largestDifference(fast, slow)).toBeLessThan(1e-5);
  });

  it('does so in float64 to twelve digits', () => {
    const model = audioLlm([stream('one')]);
    const feeds = feedsOf(model);
    const fast = interpret(forwardProgram(model), feeds).hidden?.data ?? [];
    const slow = interpret(overwritingReference(model), feeds).hidden?.data ?? [];
    expect(largestDifference(fast, slow)).toBeLessThan(1e-12);
  });

  const variants: Record<string, Stream[]> = {
    'one stream': [stream('one')],
    'two streams': [stream('one'), stream('two', { frames: 3, width: 4 })],
    'an explicit list of layers': [
      stream('one', { integration: { ...attentionOnly, startLayer: undefined, layers: [2, 3] } }),
    ],
    'separate projections and norms': [
      stream('one', { integration: { ...attentionOnly, keyValueProjection: 'separate', audioNorm: 'own' } }),
    ],
    'a latent connector': [
      stream('one', { connector: { kind: 'latent', tokens: 3, heads: 2, blocks: 1, perLayer: true } }),
    ],
  };
  for (const [name, streams] of Object.entries(variants)) {
    it(`proof: no feed-forward input depends on audio but through attention outputs (${name})`, () => {
      const program = simplify(forwardProgram(audioLlm(streams)));
      const feedForward = select(program, /\.feedForward\./);
      const attentionOutput = new Set(select(program, /\.attention\.output$/));
      const seen = dependencies(program, feedForward, (value) => !attentionOutput.has(value));
      const audio = select(program, /^audio\./).filter((value) => seen.has(value));
      expect(audio.map((value) => value.name)).toEqual([]);
      // Attention outputs exist for text rows only.
      for (const value of attentionOutput) expect(value.shape).toEqual([batch, rows, llm.hiddenSize]);
      for (const value of feedForward) if (value.shape.length === 3) expect(value.shape[1]).toBe(rows);
    });

    it(`proof: no value of a layer below startLayer depends on audio (${name})`, () => {
      const program = simplify(forwardProgram(audioLlm(streams)));
      const reached = dependents(program, select(program, /^audio\./));
      const below = select(program, /^layers\.[01]\./);
      expect(below.filter((value) => reached.has(value)).map((value) => value.name)).toEqual([]);
      for (const layer of [2, 3]) {
        const above = select(program, new RegExp(`^layers\\.${layer}\\.attention\\.output$`));
        expect(above.every((value) => reached.has(value))).toBe(true);
      }
    });
  }

  for (const [name, config] of Object.entries(feedForwardKinds)) {
    it(`proof: no node of a feed-forward layer depends on audio but through attention outputs (${name})`, () => {
      const model = audioLlm([stream('one')], {}, config);
      const types = {
        ...batchInputs(model, { rows: batch, textRows: rows, targets: 3 }),
        ...parameterInputs(allParameters(model)),
      };
      // With everything that the layers give beside their rows, or it would not be looked at.
      const program = simplify(
        trace<string>(types, (inputs) => {
          const weights = filled('float32', [3], 1);
          const { auxiliaryLoss, statistics, loss } = targetLoss(
            model,
            new Map(Object.entries(inputs)),
            inputs,
            weights,
          );
          return { loss, ...statistics, ...(auxiliaryLoss && { auxiliaryLoss }) };
        }),
      );
      const feedForward = select(program, /\.feedForward\./);
      const attentionOutput = new Set(select(program, /\.attention\.output$/));
      const seen = dependencies(program, feedForward, (value) => !attentionOutput.has(value));
      expect(select(program, /^audio\./).filter((value) => seen.has(value))).toEqual([]);
      for (const value of attentionOutput) expect(value.shape).toEqual([batch, rows, llm.hiddenSize]);
      for (const [layer, { kind }] of (model.ffn ?? []).entries()) {
        const own = () => select(program, new RegExp(`^layers\\.${layer}\\.feedForward\\.`));
        if (kind === 'none') {
          expect(own).toThrow(/no value of the program/);
          continue;
        }
        // Those that are sparse did choose, and for text rows alone.
        const choices = own().filter(({ name }) => /\.(dispatch|selection)\./.test(name ?? ''));
        expect(choices.length > 0).toBe(kind === 'sparse' || kind === 'moc');
      }
    });
  }

  it('the same proof fails for a prefix stream: its rows do pass the feed-forward layers', () => {
    const program = simplify(
      forwardProgram(audioLlm([stream('one', { integration: { mode: 'prefix', startLayer: 0 } })])),
    );
    const attentionOutput = new Set(select(program, /\.attention\.output$/));
    const seen = dependencies(
      program,
      select(program, /\.feedForward\./),
      (value) => !attentionOutput.has(value),
    );
    expect(select(program, /^audio\./).some((value) => seen.has(value))).toBe(true);
  });

  it('without positions, the order of the audio tokens does not matter', async () => {
    const model = audioLlm([stream('one', { integration: { ...attentionOnly, rope: 'none' } })]);
    const feeds = feedsOf(model);
    const frames = feeds['audio.one.frames'] as Tensor & { dtype: 'float32' };
    const reversed = new Float32Array(frames.data.length);
    for (let item = 0; item < batch; item++) {
      for (let frame = 0; frame < 5; frame++) {
        const from = (item * 5 + frame) * 6;
        reversed.set(frames.data.subarray(from, from + 6), (item * 5 + 4 - frame) * 6);
      }
    }
    const program = forwardProgram(model);
    const there = await run(program, feeds);
    const back = await run(program, { ...feeds, 'audio.one.frames': float32(frames.shape, reversed) });
    expect(largestDifference(there, back)).toBeLessThan(1e-5);
    const ordered = audioLlm([stream('one')]);
    const moved = await run(forwardProgram(ordered), {
      ...feeds,
      'audio.one.frames': float32(frames.shape, reversed),
    });
    expect(largestDifference(await run(forwardProgram(ordered), feeds), moved)).toBeGreaterThan(1e-3);
  });

  it('audioVisibleTo afterAudio keeps audio from the rows in front of its slot', async () => {
    for (const audioVisibleTo of ['all', 'afterAudio'] as const) {
      const model = audioLlm([stream('one', { integration: { ...attentionOnly, audioVisibleTo } })]);
      const heard = await run(forwardProgram(model), feedsOf(model));
      const bare = await run(forwardProgram(audioLlm([])), feedsOf(audioLlm([])));
      const front = (values: Float32Array) => values.slice(0, model.slot * llm.hiddenSize);
      const difference = largestDifference(front(heard), front(bare));
      if (audioVisibleTo === 'all') expect(difference).toBeGreaterThan(1e-3);
      else expect(difference).toBeLessThan(1e-5);
    }
  });
});

describe('every integration', () => {
  it('with no audio the model equals the bare LLM, to the bit', async () => {
    const model = audioLlm([]);
    const bare = trace<string>(
      { ids: { dtype: 'int32', shape: [batch, rows] }, ...parameterInputs(llmParameters()) },
      (inputs) => ({
        hidden: languageModel(llm, new Map(Object.entries(inputs)), inputs.ids as Value, allDense),
      }),
    );
    expect(await run(forwardProgram(model), feedsOf(model))).toEqual(await run(bare, feedsOf(model)));
  });

  const modes: Record<string, Stream['integration']> = {
    prefix: { mode: 'prefix', startLayer: 0 },
    'delayed prefix': { mode: 'prefix', startLayer: 2 },
    'attention-only': attentionOnly,
  };
  for (const [name, integration] of Object.entries(modes)) {
    it(`${name}: padded audio frames change nothing`, async () => {
      const padded = audioLlm([stream('one', { integration, frames: 5 })]);
      const short = audioLlm([stream('one', { integration: { ...integration }, frames: 5 })]);
      const feeds = feedsOf(padded, 2);
      const other = { ...feeds };
      const frames = (feeds['audio.one.frames'] as Tensor & { dtype: 'float32' }).data.slice();
      for (let item = 0; item < batch; item++) frames.fill(7.5, (item * 5 + 3) * 6, (item + 1) * 5 * 6);
      frames[(0 * 5 + 3) * 6] = -3;
      other['audio.one.frames'] = float32([batch, 5, 6], frames);
      expect(await run(forwardProgram(padded), feeds)).toEqual(await run(forwardProgram(short), other));
    });

    it(`${name}: a later text token does not change an earlier row`, async () => {
      const model = audioLlm([stream('one', { integration })]);
      const feeds = feedsOf(model);
      const changed = (feeds.ids as Tensor & { dtype: 'int32' }).data.slice();
      changed[rows - 1] = ((changed[rows - 1] as number) + 1) % llm.vocabularySize;
      const program = forwardProgram(model);
      const [before, after] = [
        await run(program, feeds),
        await run(program, { ...feeds, ids: { dtype: 'int32', shape: [batch, rows], data: changed } }),
      ];
      const last = (rows - 1) * llm.hiddenSize;
      expect(after.slice(0, last)).toEqual(before.slice(0, last));
      expect(
        largestDifference(
          after.slice(last, last + llm.hiddenSize),
          before.slice(last, last + llm.hiddenSize),
        ),
      ).toBeGreaterThan(1e-3);
    });
  }

  it('prefix from layer 0 equals the plain LLM over [front; audio; rest] embeddings', async () => {
    const model = audioLlm([stream('one', { integration: { mode: 'prefix', startLayer: 0 } })]);
    const types = {
      ids: { dtype: 'int32', shape: [batch, rows] },
      ...audioInputs(model.streams, batch),
    } as const;
    const plainRows = trace<string>({ ...types, ...parameterInputs(allParameters(model)) }, (inputs) => {
      const parameters: Parameters = new Map(Object.entries(inputs));
      const audio = connect(
        model.streams[0] as Stream,
        parameters,
        inputs['audio.one.frames'] as Value,
        inputs['audio.one.valid'] as Value,
      );
      const text = embed(parameters, inputs.ids as Value);
      let all = concat([slice(text, 1, 0, 2), audio.tokensBAD(0), slice(text, 1, 2, rows)], 1);
      for (let layer = 0; layer < llm.layers; layer++) {
        all = decoderLayer(llm, parameters, layer, all, {
          rotary: rotaryAt(llm, [...Array(rows + 5).keys()]),
          bias: constant(causalBias(rows + 5)),
          feedForward: allDense,
        }).hiddenBTD;
      }
      return { hidden: concat([slice(all, 1, 0, 2), slice(all, 1, 7, rows + 5)], 1) };
    });
    const feeds = feedsOf(model);
    expect(
      largestDifference(await run(forwardProgram(model), feeds), await run(plainRows, feeds)),
    ).toBeLessThan(1e-5);
  });

  it('positions: reserved in every layer, or compact where audio is absent', () => {
    const streams = [
      stream('one', { frames: 3 }),
      stream('two', { frames: 2, integration: { ...attentionOnly, rope: 'shared' } }),
    ];
    const options = { layerCount: 3, streams, textRows: 4, slot: 1 };
    const integration = { positions: 'reserve', attentionOnlyVisibleToPrefix: true } as const;
    const text = (positions: 'reserve' | 'compact') =>
      layoutOf({ ...options, integration: { ...integration, positions } }).map(
        (layer) => layer.rows.at(-1)?.positions,
      );
    expect(text('reserve')).toEqual(Array(3).fill([0, 5, 6, 7]));
    expect(text('compact')).toEqual([
      [0, 1, 2, 3],
      [0, 1, 2, 3],
      [0, 5, 6, 7],
    ]);
    const [, , last] = layoutOf({ ...options, integration });
    expect(last?.external.map((segment) => segment.positions)).toEqual([
      [1, 2, 3],
      [4, 4],
    ]);
  });

  it('names a stream that asks for a layer the LLM does not have', () => {
    expect(() => layersOf(stream('one', { integration: { ...attentionOnly, startLayer: 9 } }), 4)).toThrow(
      'stream "one" asks for layer 9; the LLM has layers 0 to 3',
    );
  });
});
