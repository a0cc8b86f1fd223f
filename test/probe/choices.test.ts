/** What rows choose, against the statistics that the program itself counts of the same batch. */
import { afterAll, describe, expect, it } from 'vitest';
import { plain } from '../../src/engine/engine.ts';
import { onnxEngine } from '../../src/engine/onnx/engine.ts';
import type { FeedForwardConfig } from '../../src/ffn/config.ts';
import type { AudioLlm } from '../../src/pal/audioLlm.ts';
import { batchFeeds, batchInputs, type Row, targetLoss } from '../../src/pal/batch.ts';
import { choicesOf } from '../../src/probe/choices.ts';
import { busiest, evenness, loadPerBlock, shareOverlap } from '../../src/probe/routing.ts';
import { filled } from '../../src/tensor/operations.ts';
import { frozen } from '../../src/tensor/parameters.ts';
import { float32 } from '../../src/tensor/tensor.ts';
import { trace } from '../../src/tensor/trace.ts';
import { allParameters, audioLlm, feedForwardKinds, llm, stream } from '../pal/fixture.ts';

const engine = onnxEngine();
afterAll(() => engine.dispose());

/** Texts of three lengths with clips of three lengths. */
const texts: Row[] = [7, 5, 8].map((length, at) => ({
  id: `text ${at}`,
  ids: Array.from({ length }, (_, token) => (3 + 5 * token + at) % llm.vocabularySize),
  clip: new Map([
    [
      'one',
      float32(
        [5 - at, 6],
        Array.from({ length: (5 - at) * 6 }, (_, value) => Math.sin(value + at)),
      ),
    ],
  ]),
  targets: [{ position: length - 2, id: 4 }],
}));

const prefix = stream('one', {
  connector: { kind: 'mlp', hidden: 8, perLayer: false },
  integration: { mode: 'prefix', startLayer: 2 },
});

async function statisticsOf(model: AudioLlm): Promise<Record<string, number>> {
  const shape = { rows: 3, textRows: 8, targets: 3 };
  const program = trace<string>(batchInputs(model, shape), (inputs) => {
    const weights = filled('float32', [shape.targets], 1);
    return targetLoss(model, frozen(allParameters(model)), inputs, weights).statistics;
  });
  const executable = await engine.compile(program);
  const outputs = await executable.run(batchFeeds(model, shape, texts));
  await executable.dispose();
  return Object.fromEntries(
    [...program.outputs.keys()].map((name) => [name, Number(plain(outputs, name).data[0])]),
  );
}

const choosing = Object.entries(feedForwardKinds).filter(([name]) => !name.startsWith('wide'));

describe.each(choosing)('%s', (_, config) => {
  it('counts as the program does, text and audio apart', async () => {
    const model = audioLlm([prefix], {}, config);
    const statistics = await statisticsOf(model);
    const layers = await choicesOf(texts, { engine, model, parameters: allParameters(model), batchSize: 3 });
    expect(layers.map(({ layer }) => layer)).toEqual([0, 1, 2, 3]);
    for (const rows of layers) {
      const { layer, audio, row } = rows;
      const statistic = (name: string) => statistics[`layers.${layer}.${name}`];
      const load = loadPerBlock(rows);
      expect(statistic('load')).toBeCloseTo(busiest(load) as number, 5);
      expect(statistic('entropy')).toBeCloseTo(evenness(load) as number, 5);
      expect(statistic('deadBlocks')).toBe(load.filter((own) => own === 0).length);
      expect(row.length).toBe(layer < 2 ? 20 : 20 + 12);
      expect([...row]).toEqual([...row].sort((a, b) => a - b));
      if (layer < 2) {
        expect(audio.includes(1)).toBe(false);
        expect(statistic('textAudioOverlap')).toBeUndefined();
        // Behind the places of the five audio rows that come later.
        expect([...row.slice(0, 8)]).toEqual([5, 6, 7, 8, 9, 10, 11, 18]);
        continue;
      }
      const text = loadPerBlock(rows, (token) => audio[token] === 0);
      const heard = loadPerBlock(rows, (token) => audio[token] === 1);
      expect(statistic('text.entropy')).toBeCloseTo(evenness(text) as number, 5);
      expect(statistic('audio.load')).toBeCloseTo(busiest(heard) as number, 5);
      expect(statistic('textAudioOverlap')).toBeCloseTo(shareOverlap(text, heard) as number, 5);
    }
  });
});

it('does not depend on the size of the batch, whose last one is padding', async () => {
  const model = audioLlm([prefix], {}, feedForwardKinds.topk);
  const parameters = allParameters(model);
  const whole = await choicesOf(texts, { engine, model, parameters, batchSize: 3 });
  expect(await choicesOf(texts, { engine, model, parameters, batchSize: 2 })).toEqual(whole);
});

it('counts what is dropped for want of room', async () => {
  const model = audioLlm([prefix], {}, {
    ...(feedForwardKinds.switch as { kind: 'sparse'; select: 'switch' }),
    capacityFactor: 0.5,
  } as NonNullable<(typeof feedForwardKinds)[string]>);
  const statistics = await statisticsOf(model);
  const layers = await choicesOf(texts, { engine, model, parameters: allParameters(model), batchSize: 3 });
  for (const { layer, row, active, dropped } of layers) {
    expect(dropped).toBeGreaterThan(0);
    expect(dropped / (row.length * active)).toBeCloseTo(statistics[`layers.${layer}.overflow`] as number, 5);
  }
});

it('finds no audio rows under attention-only integration, and no layers in models that do not choose', async () => {
  const only = audioLlm([stream('one')], {}, feedForwardKinds.hash);
  for (const { audio } of await choicesOf(texts, {
    engine,
    model: only,
    parameters: allParameters(only),
    batchSize: 2,
  }))
    expect(audio.includes(1)).toBe(false);
  const few = audioLlm([prefix], {}, [
    { kind: 'none', layers: '1..1' },
    { ...(feedForwardKinds.topk as FeedForwardConfig), layers: '3..3' },
  ]);
  const [only3, ...others] = await choicesOf(texts, {
    engine,
    model: few,
    parameters: allParameters(few),
    batchSize: 2,
  });
  expect([only3?.layer, others]).toEqual([3, []]);
  for (const config of [undefined, feedForwardKinds.wide, feedForwardKinds['wide and none']]) {
    const model = audioLlm([prefix], {}, config);
    const parameters = allParameters(model);
    expect(await choicesOf(texts, { engine, model, parameters, batchSize: 2 })).toEqual([]);
  }
});
