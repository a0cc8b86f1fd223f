/** Answers by generation: the prompt in one pass, then token by token with cached keys and values. */
import { type Engine, plain } from '../engine/engine.ts';
import { logits } from '../llm/decoder.ts';
import {
  type CacheLayout,
  cacheNames,
  chooseTokens,
  continueSequences,
  type Decoding,
  stepProgram,
} from '../llm/generate.ts';
import { gather, pad, reshape } from '../tensor/operations.ts';
import { frozen, type ParameterTensors } from '../tensor/parameters.ts';
import type { Program, Value } from '../tensor/program.ts';
import { int32 } from '../tensor/tensor.ts';
import { trace } from '../tensor/trace.ts';
import { type AudioLlm, audioInputs, forward } from './audioLlm.ts';
import { audioFeeds, bucket, type Row } from './batch.ts';
import { layoutOf } from './layout.ts';

export interface GenerateOptions {
  readonly engine: Engine;
  readonly model: AudioLlm;
  readonly parameters: ParameterTensors;
  /** Prompts; their targets are ignored. */
  readonly rows: readonly Omit<Row, 'targets'>[];
  readonly maxNewTokens: number;
  readonly decoding: Decoding;
}

/** The cache that prompts of up to `promptRows` tokens and their continuations need. */
export function cacheLayoutOf(
  model: AudioLlm,
  batch: number,
  promptRows: number,
  maxNewTokens: number,
): CacheLayout {
  const { llm, streams, integration, slot } = model;
  const layers = layoutOf({ layerCount: llm.layers, streams, integration, textRows: promptRows, slot });
  return {
    batch,
    textSlots: promptRows + maxNewTokens,
    slot,
    layers: layers.map(({ external, rows, textOffset }) => ({
      context: [
        ...external.flatMap((segment) => Array<null>(segment.rows).fill(null)),
        ...rows.slice(0, -1).flatMap((segment) => segment.positions ?? []),
      ],
      textOffset,
    })),
  };
}

/** Runs the prompts and leaves their keys and values in a cache; audio is encoded into it once. */
export function prefillProgram(
  model: AudioLlm,
  parameters: ParameterTensors,
  layout: CacheLayout,
  promptRows: number,
): Program {
  const { batch, textSlots } = layout;
  const types = {
    ids: { dtype: 'int32', shape: [batch, promptRows] },
    last: { dtype: 'int32', shape: [batch] },
    ...audioInputs(model.streams, batch),
  } as const;
  return trace<string>(types, (inputs) => {
    const weights = frozen(parameters);
    const { hiddenBTD, keysValues, audioBias } = forward(model, weights, inputs.ids as Value, inputs);
    const outputs: Record<string, Value> = {};
    for (const [layer, { keysBKSH, valuesBKSH }] of keysValues.entries()) {
      const names = cacheNames(layer);
      outputs[names.keys] = pad(keysBKSH, 2, 0, textSlots - promptRows);
      outputs[names.values] = pad(valuesBKSH, 2, 0, textSlots - promptRows);
      const bias = audioBias[layer];
      if (bias !== undefined) outputs[names.bias] = bias;
    }
    const flat = reshape(hiddenBTD, [batch * promptRows, model.llm.hiddenSize]);
    return { ...outputs, logits: logits(model.llm, weights, gather(flat, inputs.last as Value, 0)) };
  });
}

/** Generates an answer to each prompt. Returns token ids without the stop token. */
export async function generate(options: GenerateOptions): Promise<number[][]> {
  const { engine, model, parameters, rows, maxNewTokens, decoding } = options;
  if (rows.length === 0) return [];
  const lengths = rows.map((row) => row.ids.length);
  // Batches whose longest prompts are about as long share their programs.
  const promptRows = bucket(Math.max(...lengths));
  const layout = cacheLayoutOf(model, rows.length, promptRows, maxNewTokens);
  const ids = new Int32Array(rows.length * promptRows);
  for (const [index, row] of rows.entries()) ids.set(row.ids, index * promptRows);
  const prefill = await engine.compile(prefillProgram(model, parameters, layout, promptRows));
  try {
    const outputs = await prefill.run({
      ids: int32([rows.length, promptRows], ids),
      last: int32(
        [rows.length],
        lengths.map((length, row) => row * promptRows + length - 1),
      ),
      ...audioFeeds(model.streams, rows.length, rows),
    });
    const { logits: first, ...cache } = outputs;
    return await continueSequences({
      engine,
      step: stepProgram(model.llm, parameters, model.feedForward, layout),
      layout,
      cache,
      promptLengths: lengths,
      firstTokens: chooseTokens(
        plain({ first: first as never }, 'first').data as Float32Array,
        rows.length,
        decoding,
      ),
      stopIds: model.llm.eosTokenIds,
      maxNewTokens,
      decoding,
    });
  } finally {
    await prefill.dispose();
  }
}
