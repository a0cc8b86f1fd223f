/** Answers by generation: the prompt in one pass, then token by token with cached keys and values. */
import { type Engine, plain } from '../engine/engine.ts';
import { logits } from '../llm/decoder.ts';
import { type CacheLayout, cacheNames, continueSequences, stepProgram } from '../llm/generate.ts';
import type { Decoding } from '../llm/sampling.ts';
import { type TextStream, textStream } from '../llm/textStream.ts';
import type { Tokenizer } from '../llm/tokenizer.ts';
import { constant, gather, pad, reshape, subtract } from '../tensor/operations.ts';
import { frozen, type Parameters, type ParameterTensors } from '../tensor/parameters.ts';
import type { Program, Value } from '../tensor/program.ts';
import { int32 } from '../tensor/tensor.ts';
import { trace } from '../tensor/trace.ts';
import { type AudioLlm, audioInputs, type ForwardPass, forward } from './audioLlm.ts';
import { audioFeeds, BatchError, bucket, type Row, validRows } from './batch.ts';
import { layoutOf } from './layout.ts';

export interface GenerateOptions {
  readonly engine: Engine;
  readonly model: AudioLlm;
  readonly parameters: ParameterTensors;
  /** Prompts; their targets are ignored. */
  readonly rows: readonly Omit<Row, 'targets'>[];
  readonly maxNewTokens: number;
  readonly decoding: Decoding;
  /** Is told of every token as it is made; a sequence for which it says true ends with that token. */
  readonly onToken?: ((sequence: number, id: number) => boolean) | undefined;
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
    const last = inputs.last as Value;
    const pass = forward(model, weights, inputs.ids as Value, inputs, () =>
      promptRowsValid(last, promptRows),
    );
    return cacheOutputs(model, weights, pass, textSlots - promptRows, last);
  });
}

/**
 * 1 for a prompt's rows, 0 for the padding behind them, [B, T].
 * @param lastB where each sequence's last row stands in [B * T]
 */
export function promptRowsValid(lastB: Value, promptRows: number): Value {
  const batch = lastB.shape[0] as number;
  const starts = constant(
    int32(
      [batch],
      Array.from({ length: batch }, (_, row) => row * promptRows - 1),
    ),
  );
  return validRows(subtract(lastB, starts), promptRows);
}

/**
 * What a prompt leaves behind: its keys and values with room for what follows, and the logits of the next token.
 * @param roomRows empty rows behind those of the prompt
 * @param lastB where each sequence's last row stands in [B * T]
 */
export function cacheOutputs(
  { llm }: AudioLlm,
  parameters: Parameters,
  { hiddenBTD, keysValues, audioBias }: ForwardPass,
  roomRows: number,
  lastB: Value,
): Record<string, Value> {
  const outputs: Record<string, Value> = {};
  for (const [layer, { keysBKSH, valuesBKSH }] of keysValues.entries()) {
    const names = cacheNames(layer);
    outputs[names.keys] = pad(keysBKSH, 2, 0, roomRows);
    outputs[names.values] = pad(valuesBKSH, 2, 0, roomRows);
    const bias = audioBias[layer];
    if (bias !== undefined) outputs[names.bias] = bias;
  }
  const [batch, rows, width] = hiddenBTD.shape as [number, number, number];
  const flat = reshape(hiddenBTD, [batch * rows, width]);
  return { ...outputs, logits: logits(llm, parameters, gather(flat, lastB, 0)) };
}

/**
 * Generates an answer to each prompt. Returns token ids without the stop token.
 * @throws BatchError naming a sample that is longer, answer and audio included, than the LLM was made for; RangeError
 *   for a number of tokens or a decoding that cannot be
 */
export async function generate(options: GenerateOptions): Promise<number[][]> {
  const { engine, model, parameters, rows, maxNewTokens, decoding, onToken } = options;
  if (!Number.isInteger(maxNewTokens) || maxNewTokens < 1)
    throw new RangeError(`maxNewTokens: ${maxNewTokens}: expected a whole number above 0`);
  if (rows.length === 0) return [];
  const lengths = rows.map((row) => row.ids.length);
  // Batches whose longest prompts are about as long share their programs.
  const promptRows = bucket(Math.max(...lengths));
  const layout = cacheLayoutOf(model, rows.length, promptRows, maxNewTokens);
  mustFit(model, layout, rows, maxNewTokens);
  const ids = new Int32Array(rows.length * promptRows);
  for (const [index, row] of rows.entries()) ids.set(row.ids, index * promptRows);
  const program = prefillProgram(model, parameters, layout, promptRows);
  const caches = [...program.outputs.keys()].filter((name) => name !== 'logits');
  const prefill = await engine.compile(program, { keepOnDevice: engine.inPlace ? [] : caches });
  try {
    const outputs = await prefill.run({
      ids: int32([rows.length, promptRows], ids),
      last: int32(
        [rows.length],
        lengths.map((length, row) => row * promptRows + length - 1),
      ),
      ...audioFeeds(model.streams, rows.length, rows),
    });
    // Its packed weights make room for those of the next program. What it left on a device is still needed.
    if (engine.inPlace) await prefill.dispose();
    const { logits: first, ...cache } = outputs;
    return await continueSequences({
      engine,
      step: stepProgram(model.llm, parameters, model.feedForward, layout),
      layout,
      cache,
      prompts: rows.map((row) => row.ids),
      logits: plain({ first: first as never }, 'first').data as Float32Array,
      stopIds: model.llm.eosTokenIds,
      maxNewTokens,
      decoding,
      onToken,
    });
  } finally {
    await prefill.dispose();
  }
}

export interface GenerateTextOptions extends Omit<GenerateOptions, 'onToken'> {
  readonly tokenizer: Tokenizer;
  /** Texts before which an answer ends. */
  readonly stop: readonly string[];
  /** Is told of every piece of text as soon as it is certain. */
  readonly onText?: ((sequence: number, piece: string) => void) | undefined;
}

/** Generates an answer to each prompt, as text. @throws as `generate` */
export async function generateText(options: GenerateTextOptions): Promise<string[]> {
  const { tokenizer, stop, onText, ...rest } = options;
  const streams = options.rows.map(() => textStream(tokenizer, stop));
  const tell = (sequence: number, piece: string) => {
    if (piece !== '') onText?.(sequence, piece);
  };
  await generate({
    ...rest,
    onToken: (sequence, id) => {
      const stream = streams[sequence] as TextStream;
      tell(sequence, stream.push(id));
      return stream.stopped;
    },
  });
  return streams.map((stream, sequence) => {
    tell(sequence, stream.end());
    return stream.text;
  });
}

function mustFit(
  { llm }: AudioLlm,
  { layers }: CacheLayout,
  rows: GenerateOptions['rows'],
  maxNewTokens: number,
): void {
  const audio = Math.max(...layers.map(({ textOffset }) => textOffset));
  for (const { id, ids } of rows) {
    const length = ids.length + audio + maxNewTokens;
    if (length <= llm.maxPositions) continue;
    throw new BatchError(
      `sample "${id}": ${ids.length} text tokens, ${audio} positions of audio and an answer of up to ${maxNewTokens} ` +
        `tokens are more than the ${llm.maxPositions} positions that the LLM was made for: lower maxNewTokens, or ` +
        'shorten the prompt',
    );
  }
}
