/** Mean hidden states against the forward pass of each sequence alone, without padding. */
import { afterAll, expect, it } from 'vitest';
import { plain } from '../../src/engine/engine.ts';
import { onnxEngine } from '../../src/engine/onnx/engine.ts';
import { audioInputs, forward } from '../../src/pal/audioLlm.ts';
import { audioFeeds } from '../../src/pal/batch.ts';
import { meanHiddenStates } from '../../src/probe/hiddenStates.ts';
import { frozen } from '../../src/tensor/parameters.ts';
import type { Value } from '../../src/tensor/program.ts';
import { float32, int32 } from '../../src/tensor/tensor.ts';
import { trace } from '../../src/tensor/trace.ts';
import { allParameters, audioLlm, feedForwardKinds, llm, stream } from '../pal/fixture.ts';

const engine = onnxEngine({ threads: 2 });
afterAll(() => engine.dispose());

it.each([
  ['attention-only', audioLlm([stream('one')])],
  ['prefix', audioLlm([stream('one', { integration: { mode: 'prefix', startLayer: 1 } })])],
  ['wide and none', audioLlm([stream('one')], {}, feedForwardKinds['wide and none'])],
  ['a layer that leaves out padding', audioLlm([stream('one')], {}, feedForwardKinds.switch)],
])('%s', async (_, model) => {
  const parameters = allParameters(model);
  const rows = [
    [2, 4, 6, 8, 1],
    [3, 5, 7],
    [9, 1, 2, 3, 4, 5, 6, 7, 8, 9],
  ].map((ids, at) => ({
    id: String(at),
    ids,
    clip: new Map([
      [
        'one',
        float32(
          [4, 6],
          Array.from({ length: 24 }, (_, place) => Math.sin(place + at)),
        ),
      ],
    ]),
  }));
  const found = await meanHiddenStates(rows, { engine, model, parameters, batchSize: 2 });
  expect(found.map(({ shape }) => shape)).toEqual(Array(llm.layers).fill([3, llm.hiddenSize]));
  for (const [at, row] of rows.entries()) {
    const types = {
      ids: { dtype: 'int32' as const, shape: [1, row.ids.length] },
      ...audioInputs(model.streams, 1),
    };
    const executable = await engine.compile(
      trace<string>(types, (inputs) => {
        const { layersBTD } = forward(model, frozen(parameters), inputs.ids as Value, inputs);
        return Object.fromEntries(layersBTD.map((value, layer) => [String(layer), value]));
      }),
    );
    const outputs = await executable.run({
      ids: int32([1, row.ids.length], row.ids),
      ...audioFeeds(model.streams, 1, [row]),
    });
    for (const [layer, states] of found.entries()) {
      const all = plain(outputs, String(layer)).data as Float32Array;
      for (let column = 0; column < llm.hiddenSize; column++) {
        const mean =
          row.ids.reduce((total, _, text) => total + (all[text * llm.hiddenSize + column] as number), 0) /
          row.ids.length;
        expect(states.data[at * llm.hiddenSize + column]).toBeCloseTo(mean, 4);
      }
    }
    await executable.dispose();
  }
});
