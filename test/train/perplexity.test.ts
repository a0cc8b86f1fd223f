/** Perplexity beside the reference interpreter's logits, and the sequences that a text is cut into. */
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { random } from '../../src/config/random.ts';
import type { Engine } from '../../src/engine/engine.ts';
import { onnxEngine } from '../../src/engine/onnx/engine.ts';
import { type FeedForwardConfig, feedForwardLayers } from '../../src/ffn/config.ts';
import { feedForwardOf } from '../../src/ffn/layers.ts';
import { type DecoderConfig, parameterShapes } from '../../src/llm/config.ts';
import { languageModel, logits } from '../../src/llm/decoder.ts';
import { plainLlama } from '../../src/llm/families.ts';
import { initialize } from '../../src/llm/initialize.ts';
import type { AudioLlm } from '../../src/pal/audioLlm.ts';
import { interpret } from '../../src/tensor/interpret.ts';
import { reshape } from '../../src/tensor/operations.ts';
import { frozen, type ParameterSpec, type ParameterTensors } from '../../src/tensor/parameters.ts';
import { float32, int32 } from '../../src/tensor/tensor.ts';
import { trace } from '../../src/tensor/trace.ts';
import { perplexityOf, sequencesOf } from '../../src/train/perplexity.ts';
import { NonFiniteError } from '../../src/train/step.ts';

const config: DecoderConfig = {
  ...plainLlama,
  hiddenSize: 12,
  intermediateSize: 20,
  layers: 2,
  heads: 2,
  keyValueHeads: 1,
  headWidth: 6,
  vocabularySize: 17,
  tieWordEmbeddings: true,
  maxPositions: 64,
  bosTokenId: 0,
  eosTokenIds: [1],
  padTokenId: 2,
};
const length = 5;
const draws = random(4, 'ids');
/** Seven sequences and a rest. */
const ids = Int32Array.from({ length: 7 * length + 4 }, () => draws.integer(config.vocabularySize));
const parameters: ParameterTensors = initialize(
  new Map(
    [...parameterShapes(config)].map(([name, shape]): [string, ParameterSpec] => [
      name,
      shape.length === 1 ? { shape, initial: 'ones' } : { shape, initial: 'normal', deviation: 0.5 },
    ]),
  ),
  (name) => random(2, name),
);

function modelWith(ffn: FeedForwardConfig): AudioLlm {
  const layers = feedForwardLayers(ffn, config);
  return {
    llm: config,
    ffn: layers,
    feedForward: feedForwardOf(layers),
    streams: [],
    integration: { positions: 'reserve', attentionOnlyVisibleToPrefix: true },
    slot: 0,
  };
}

/** -log p of each token behind those of one sequence, from float64 logits, with the log-softmax written out. */
function costs({ feedForward }: AudioLlm, start: number): number[] {
  const program = trace<string>({ ids: { dtype: 'int32', shape: [1, length] } }, ({ ids: given }) => {
    const hidden = languageModel(config, frozen(parameters), given as never, feedForward);
    return { logits: logits(config, frozen(parameters), reshape(hidden, [length, config.hiddenSize])) };
  });
  const fed = int32([1, length], [...ids.subarray(start, start + length)]);
  const all = interpret(program, { ids: fed }).logits?.data as Float64Array;
  return Array.from({ length }, (_, row) => {
    const own = [...all.subarray(row * config.vocabularySize, (row + 1) * config.vocabularySize)];
    const target = own[ids[start + row + 1] as number] as number;
    return Math.log(own.reduce((total, logit) => total + Math.exp(logit), 0)) - target;
  });
}

let engine: Engine;
beforeAll(() => {
  engine = onnxEngine({ provider: 'cpu', threads: 1 });
});
afterAll(() => engine.dispose());

const measure = (model: AudioLlm, batchSize: number, mostTokens = 1000) =>
  perplexityOf({ engine, model, parameters }, sequencesOf(ids, length), { batchSize, length, mostTokens });

describe('sequencesOf', () => {
  it('has every token as the target of the one before it, once', () => {
    const sequences = sequencesOf(ids, length);
    expect(sequences.count).toBe(7);
    const predicted = Array.from({ length: 7 }, (_, at) => {
      const row = sequences.row(at);
      expect(row.ids).toHaveLength(length);
      return row.targets.map(({ position, id }) => [row.ids[position], id]);
    }).flat();
    expect(predicted).toEqual([...ids.subarray(0, 35)].map((id, at) => [id, ids[at + 1]]));
  });

  it.each([
    [0, 0],
    [1, 0],
    [length, 0],
    [length + 1, 1],
    [2 * length, 1],
    [2 * length + 1, 2],
  ])('of %i tokens makes %i sequences', (tokens, count) => {
    expect(sequencesOf(ids.subarray(0, tokens), length).count).toBe(count);
  });
});

describe.each([
  ['dense', { kind: 'dense' }],
  ['mixture of channels', { kind: 'moc', active: 6, select: 'gate', recompute: false }],
] as const)('perplexity, %s', (_, ffn) => {
  const model = modelWith(ffn);

  it.each([1, 2, 3, 7, 50])('is that of float64 logits, in batches of %i', async (batchSize) => {
    const all = Array.from({ length: 7 }, (_, at) => costs(model, at * length)).flat();
    const nll = all.reduce((total, cost) => total + cost, 0) / all.length;
    const found = await measure(model, batchSize);
    expect(found.tokens).toBe(35);
    expect(found.nll).toBeCloseTo(nll, 5);
    expect(found.perplexity).toBe(Math.exp(found.nll));
    // It is a model that knows nothing, and not the uniform one.
    expect(nll).toBeGreaterThan(Math.log(config.vocabularySize) + 0.1);
  });
});

describe('perplexity on some of the text', () => {
  it('draws whole sequences, the same each time', async () => {
    const model = modelWith({ kind: 'dense' });
    const perSequence = Array.from({ length: 7 }, (_, at) => {
      const own = costs(model, at * length);
      return own.reduce((total, cost) => total + cost, 0);
    });
    const found = await measure(model, 2, 3 * length + 4);
    expect(found.tokens).toBe(3 * length);
    const sums = perSequence.flatMap((a, i) =>
      perSequence.slice(i + 1).flatMap((b, j) => perSequence.slice(i + j + 2).map((c) => a + b + c)),
    );
    expect(sums).toHaveLength(35);
    expect(sums.filter((sum) => Math.abs(sum / 15 - found.nll) < 1e-5)).toHaveLength(1);
    expect(await measure(model, 3, 3 * length)).toMatchObject({
      tokens: 15,
      nll: expect.closeTo(found.nll, 6),
    });
    // One sequence at least.
    expect((await measure(model, 4, 1)).tokens).toBe(length);
  });

  it('a loss that is no number is an error', async () => {
    const broken = new Map(parameters);
    broken.set(
      'model.norm.weight',
      float32([config.hiddenSize], new Float32Array(config.hiddenSize).fill(Number.NaN)),
    );
    const attempt = perplexityOf(
      { engine, model: modelWith({ kind: 'dense' }), parameters: broken },
      sequencesOf(ids, length),
      { batchSize: 4, length, mostTokens: 100 },
    );
    await expect(attempt).rejects.toThrow('the loss on the held-out text is NaN');
    await expect(attempt).rejects.toBeInstanceOf(NonFiniteError);
  });
});
