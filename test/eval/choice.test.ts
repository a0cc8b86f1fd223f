import { afterAll, describe, expect, it } from 'vitest';
import { random } from '../../src/config/random.ts';
import { plain } from '../../src/engine/engine.ts';
import { onnxEngine } from '../../src/engine/onnx/engine.ts';
import { best, type ChoiceItem, scoreChoices } from '../../src/eval/choice.ts';
import { batchFeeds, batchInputs, targetLogProbabilities } from '../../src/pal/batch.ts';
import { frozen } from '../../src/tensor/parameters.ts';
import { float32 } from '../../src/tensor/tensor.ts';
import { trace } from '../../src/tensor/trace.ts';
import { allParameters, audioLlm, stream } from '../pal/fixture.ts';

const engine = onnxEngine();
afterAll(() => engine.dispose());

const model = audioLlm([stream('one')]);
const parameters = allParameters(model);

function item(id: number, options: number[][], length: number): ChoiceItem {
  const draw = random(id);
  const clip = new Map([
    [
      'one',
      float32(
        [5, 6],
        Array.from({ length: 30 }, () => draw.normal()),
      ),
    ],
  ]);
  return { id: String(id), promptIds: Array.from({ length }, () => draw.integer(23)), options, clip };
}

/** The slow obvious version: each option as a sequence of its own. */
async function oneByOne({ id, promptIds, options, clip }: ChoiceItem): Promise<number[]> {
  const scores: number[] = [];
  for (const option of options) {
    const ids = [...promptIds, ...option];
    const targets = option.map((token, index) => ({ position: promptIds.length + index - 1, id: token }));
    const shape = { rows: 1, textRows: ids.length, targets: targets.length };
    const executable = await engine.compile(
      trace<string>(batchInputs(model, shape), (inputs) => ({
        scores: targetLogProbabilities(model, frozen(parameters), inputs),
      })),
    );
    const outputs = await executable.run(batchFeeds(model, shape, [{ id, ids, clip, targets }]));
    scores.push(
      Array.from(plain(outputs, 'scores').data as Float32Array).reduce((total, value) => total + value, 0),
    );
    await executable.dispose();
  }
  return scores;
}

describe('scoreChoices', () => {
  it('gives each option the log-likelihood of a sequence of its own, however tokens are shared', async () => {
    const items = [
      item(1, [[3], [4], [5]], 6),
      item(2, [[3, 7], [3, 8, 9], [3], [10, 3]], 5),
      item(3, [[3], [3, 7, 2], [3, 7]], 12),
      item(
        4,
        [
          [6, 6],
          [6, 6],
        ],
        3,
      ),
    ];
    const progress: number[] = [];
    const scores = await scoreChoices(items, {
      engine,
      model,
      parameters,
      batchSize: 2,
      onProgress: (done) => progress.push(done),
    });
    for (const [at, one] of items.entries()) {
      for (const [option, expected] of (await oneByOne(one)).entries())
        expect(scores[at]?.[option]).toBeCloseTo(expected, 4);
    }
    // One sequence for shared one-word options, two where beginnings differ.
    expect(progress.at(-1)).toBe(1 + 2 + 1 + 1);
  });

  it('takes the first of equals', () => {
    expect(best([-2, -1, -1])).toBe(1);
  });
});
