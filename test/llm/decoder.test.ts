import { readFileSync } from 'node:fs';
import { afterAll, describe, expect, it } from 'vitest';
import { plain } from '../../src/engine/engine.ts';
import { onnxEngine } from '../../src/engine/onnx/engine.ts';
import { allDense } from '../../src/ffn/feedForward.ts';
import { type DecoderConfig, parameterShapes } from '../../src/llm/config.ts';
import { languageModel, logits } from '../../src/llm/decoder.ts';
import type { AudioLlm } from '../../src/pal/audioLlm.ts';
import { generate } from '../../src/pal/generate.ts';
import { reshape } from '../../src/tensor/operations.ts';
import { frozen } from '../../src/tensor/parameters.ts';
import type { Precision } from '../../src/tensor/precision.ts';
import type { Value } from '../../src/tensor/program.ts';
import { int32 } from '../../src/tensor/tensor.ts';
import { trace } from '../../src/tensor/trace.ts';
import { answerBatch, answerObjective } from '../../src/train/loss.ts';
import { gradientProgram } from '../../src/train/step.ts';
import { fill, smallLlama } from './formula.ts';

interface Golden {
  readonly ids: number[][];
  readonly cases: Record<
    string,
    {
      readonly ropeTheta: number;
      readonly tied: boolean;
      readonly logits: number[];
      readonly loss: number;
      readonly greedy: number[];
      readonly gradients: Record<string, { norm: number; every97: number[] }>;
    }
  >;
}

const golden = JSON.parse(readFileSync('test/golden/llama.json', 'utf8')) as Golden;
/** The same models under PyTorch's autocast in bfloat16: test/golden/llama_autocast.py. */
const autocast = JSON.parse(readFileSync('test/golden/llama_autocast.json', 'utf8')) as {
  readonly cases: Record<string, Pick<Golden['cases'][string], 'loss' | 'gradients'>>;
};
const engine = onnxEngine();
afterAll(() => engine.dispose());

describe('the decoder against transformers on PyTorch', () => {
  for (const [name, expected] of Object.entries(golden.cases)) {
    const llm: DecoderConfig = {
      ...smallLlama,
      ropeTheta: expected.ropeTheta,
      tieWordEmbeddings: expected.tied,
      eosTokenIds: [],
    };
    const parameters = new Map([...parameterShapes(llm)].map(([key, shape]) => [key, fill(key, shape)]));
    const feedForward = allDense;
    const model: AudioLlm = {
      llm,
      feedForward,
      streams: [],
      integration: { positions: 'reserve', attentionOnlyVisibleToPrefix: true },
      slot: 1,
    };
    const { ids } = golden;
    const [rows, length] = [ids.length, ids[0]?.length as number];

    it(`${name} head: logits`, async () => {
      const program = trace({ ids: { dtype: 'int32', shape: [rows, length] } }, (inputs) => {
        const weights = frozen(parameters);
        const hidden = languageModel(llm, weights, inputs.ids as Value, feedForward);
        return { logits: logits(llm, weights, reshape(hidden, [rows * length, 32])) };
      });
      const executable = await engine.compile(program);
      const outputs = await executable.run({ ids: int32([rows, length], ids.flat()) });
      const every7 = Array.from(plain(outputs, 'logits').data as Float32Array).filter(
        (_, at) => at % 7 === 0,
      );
      expect(every7).toHaveLength(expected.logits.length);
      const scale = Math.max(...expected.logits.map(Math.abs));
      for (const [at, value] of every7.entries()) {
        expect(Math.abs(value - (expected.logits[at] as number)) / scale).toBeLessThan(1e-5);
      }
    });

    const shape = { rows, textRows: length, targets: rows * (length - 1) };
    const step = async (precision: Precision) => {
      const program = gradientProgram({
        objective: answerObjective(model, shape),
        trainable: parameters,
        frozen: new Map(),
        precision,
      });
      const executable = await engine.compile(program);
      const batch = answerBatch(
        model,
        shape,
        ids.map((row, index) => ({
          id: String(index),
          ids: row,
          clip: undefined,
          targets: row.slice(1).map((id, position) => ({ position, id })),
        })),
      );
      const outputs = await executable.run({ ...Object.fromEntries(parameters), ...batch.feeds });
      const gradient = (key: string) => Array.from(plain(outputs, `gradient.${key}`).data as Float32Array);
      return { loss: Number(plain(outputs, 'loss').data[0]), gradient };
    };

    it(`${name} head: loss and gradients`, async () => {
      const { loss, gradient } = await step('float32');
      expect(loss / expected.loss).toBeCloseTo(1, 5);
      for (const [key, { norm, every97 }] of Object.entries(expected.gradients)) {
        const own = gradient(key);
        expect(Math.hypot(...own) / norm).toBeCloseTo(1, 4);
        for (const [at, value] of every97.entries()) {
          expect(Math.abs((own[97 * at] as number) - value) / norm).toBeLessThan(1e-5);
        }
      }
    });

    it(`${name} head: loss and gradients in bfloat16, beside PyTorch's autocast`, async () => {
      const { loss, gradient } = await step('bfloat16');
      const half = autocast.cases[name] as (typeof autocast.cases)[string];
      expect(Math.abs(loss / half.loss - 1)).toBeLessThan(1e-3);
      // Two roundings differ by as much as either differs from float32: PyTorch's norms do by up to 5 %.
      for (const [key, { norm }] of Object.entries(half.gradients))
        expect(Math.abs(Math.hypot(...gradient(key)) / norm - 1)).toBeLessThan(0.08);
    });

    it(`${name} head: 24 greedy tokens with the key-value cache`, async () => {
      const prompt = { id: 'a', ids: ids[0] as number[], clip: undefined };
      const [made] = await generate({
        engine,
        model,
        parameters,
        rows: [prompt],
        maxNewTokens: 24,
        decoding: { decoding: 'greedy' },
      });
      expect(made).toEqual(expected.greedy);
    });
  }
});
