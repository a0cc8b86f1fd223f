/** What merging adapters changes: rounding, or something is wrong. */
import { type Engine, plain } from '../engine/engine.ts';
import type { FeedForwards } from '../ffn/feedForward.ts';
import { reshape } from '../tensor/operations.ts';
import { type ParameterTensors, parameterInputs } from '../tensor/parameters.ts';
import type { Value } from '../tensor/program.ts';
import { int32 } from '../tensor/tensor.ts';
import { trace } from '../tensor/trace.ts';
import type { DecoderConfig } from './config.ts';
import { languageModel, logits } from './decoder.ts';

const tokens = 16;

/** An LLM with its adapters beside the weights, and with them merged. */
export interface MergedLlm {
  readonly config: DecoderConfig;
  readonly feedForward: FeedForwards;
  readonly apart: ParameterTensors;
  readonly merged: ParameterTensors;
}

/**
 * The largest difference between the logits of both on a sequence of tokens from all over the vocabulary, as a share of
 * the largest logit. Weights are fed where they lie: it takes no memory to speak of.
 */
export async function mergeError(
  { config, feedForward, apart, merged }: MergedLlm,
  engine: Engine,
): Promise<number> {
  const ids = Array.from({ length: tokens }, (_, at) => Math.floor((at * config.vocabularySize) / tokens));
  const run = async (parameters: ParameterTensors) => {
    const types = { ...parameterInputs(parameters), ids: { dtype: 'int32', shape: [1, tokens] } as const };
    const program = trace<string>(types, (inputs) => {
      const weights = new Map(Object.entries(inputs));
      const hidden = languageModel(config, weights, inputs.ids as Value, feedForward);
      return { logits: logits(config, weights, reshape(hidden, [tokens, config.hiddenSize])) };
    });
    const executable = await engine.compile(program);
    try {
      const outputs = await executable.run({
        ...Object.fromEntries(parameters),
        ids: int32([1, tokens], ids),
      });
      return plain(outputs, 'logits').data as Float32Array;
    } finally {
      await executable.dispose();
    }
  };
  const expected = await run(apart);
  const found = await run(merged);
  let [difference, largest] = [0, 0];
  for (let at = 0; at < expected.length; at++) {
    difference = Math.max(difference, Math.abs((found[at] as number) - (expected[at] as number)));
    largest = Math.max(largest, Math.abs(expected[at] as number));
  }
  return difference / largest;
}
