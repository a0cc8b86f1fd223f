import { readFileSync } from 'node:fs';
import { afterAll, describe, expect, it } from 'vitest';
import { plain } from '../../src/engine/engine.ts';
import { onnxEngine } from '../../src/engine/onnx/engine.ts';
import { allDense } from '../../src/ffn/feedForward.ts';
import {
  type DecoderConfig,
  decoderConfigJson,
  parameterShapes,
  parseDecoderConfig,
} from '../../src/llm/config.ts';
import { languageModel, logits } from '../../src/llm/decoder.ts';
import type { AudioLlm } from '../../src/pal/audioLlm.ts';
import { generate } from '../../src/pal/generate.ts';
import { reshape } from '../../src/tensor/operations.ts';
import { frozen, type ParameterTensors } from '../../src/tensor/parameters.ts';
import type { Value } from '../../src/tensor/program.ts';
import { int32 } from '../../src/tensor/tensor.ts';
import { trace } from '../../src/tensor/trace.ts';
import { fill } from './formula.ts';

interface Golden {
  readonly ids: number[][];
  readonly cases: Record<
    string,
    { readonly config: unknown; readonly logits: number[]; readonly greedy: number[] }
  >;
}

const golden = JSON.parse(readFileSync('test/golden/families.json', 'utf8')) as Golden;
const engine = onnxEngine();
afterAll(() => engine.dispose());

/** Logits [rows * length, V] of sequences that begin with so many ids of padding. */
async function logitsOf(
  llm: DecoderConfig,
  parameters: ParameterTensors,
  ids: readonly (readonly number[])[],
  padding?: readonly number[],
) {
  const [rows, length] = [ids.length, ids[0]?.length as number];
  const types = {
    ids: { dtype: 'int32', shape: [rows, length] },
    padding: { dtype: 'int32', shape: [rows] },
  } as const;
  const { padding: paddingType, ...idsType } = types;
  const program = trace<string>(
    padding === undefined ? idsType : { ...idsType, padding: paddingType },
    (inputs) => {
      const weights = frozen(parameters);
      const hidden = languageModel(llm, weights, inputs.ids as Value, allDense, inputs.padding);
      return { logits: logits(llm, weights, reshape(hidden, [rows * length, llm.hiddenSize])) };
    },
  );
  const executable = await engine.compile(program);
  const outputs = await executable.run({
    ids: int32([rows, length], ids.flat()),
    ...(padding === undefined ? {} : { padding: int32([rows], padding) }),
  });
  await executable.dispose();
  return plain(outputs, 'logits').data as Float32Array;
}

function expectClose(found: ArrayLike<number>, expected: ArrayLike<number>, tolerance: number) {
  expect(found.length).toBe(expected.length);
  const worst = Array.from(found, (value, at) => Math.abs(value - (expected[at] as number)));
  expect(Math.max(...worst)).toBeLessThan(tolerance);
}

describe('every family against transformers on PyTorch', () => {
  for (const [name, expected] of Object.entries(golden.cases)) {
    const llm = parseDecoderConfig(expected.config, `${name}/config.json`);
    const parameters = new Map([...parameterShapes(llm)].map(([key, shape]) => [key, fill(key, shape)]));
    const { ids } = golden;

    it(`${name}: logits`, async () => {
      const found = await logitsOf(llm, parameters, ids);
      expectClose(
        found.filter((_, at) => at % 11 === 0),
        expected.logits,
        1e-4,
      );
    });

    it(`${name}: 64 greedy tokens, with a cache and without`, async () => {
      const model: AudioLlm = {
        llm: { ...llm, eosTokenIds: [] },
        feedForward: allDense,
        streams: [],
        integration: { positions: 'reserve', attentionOnlyVisibleToPrefix: true },
        slot: 1,
      };
      const rows = ids.map((row, index) => ({ id: `row ${index}`, ids: row, clip: undefined }));
      const [cached] = await generate({
        engine,
        model,
        parameters,
        rows,
        maxNewTokens: 64,
        decoding: { decoding: 'greedy' },
      });
      expect(cached).toEqual(expected.greedy);
      // Without a cache: every token is the likeliest one of the whole sequence in one pass.
      const sequence = [...(ids[0] as number[]), ...expected.greedy];
      const all = await logitsOf(llm, parameters, [sequence]);
      const uncached = expected.greedy.map((_, at) => {
        const start = ((ids[0] as number[]).length + at - 1) * llm.vocabularySize;
        const scores = all.subarray(start, start + llm.vocabularySize);
        return scores.indexOf(Math.max(...scores));
      });
      expect(uncached).toEqual(expected.greedy);
    });

    it(`${name}: padding on either side changes nothing`, async () => {
      const alone = await logitsOf(llm, parameters, [ids[0] as number[]]);
      const real = (ids[0] as number[]).length * llm.vocabularySize;
      const padded = [...(ids[0] as number[]), 7, 7, 7, 7, 7];
      const right = await logitsOf(llm, parameters, [padded, padded.toReversed()]);
      expectClose(right.subarray(0, real), alone, 1e-5);
      const left = await logitsOf(
        llm,
        parameters,
        [[9, 9, 9, 9, 9, ...(ids[0] as number[])], padded],
        [5, 0],
      );
      expectClose(left.subarray(5 * llm.vocabularySize, 5 * llm.vocabularySize + real), alone, 1e-5);
    });

    it(`${name}: the config written by palkit is the config read`, () => {
      const written = JSON.parse(JSON.stringify(decoderConfigJson(llm)));
      expect(parseDecoderConfig(written, name)).toEqual(llm);
    });
  }
});
