/** Batches as an audio-LLM's programs take them: padded token ids, tokens whose probability is wanted, audio. */
import { tokenLogProbabilities, tokenLoss } from '../llm/score.ts';
import { gather, reshape } from '../tensor/operations.ts';
import type { Parameters } from '../tensor/parameters.ts';
import type { Value, ValueType } from '../tensor/program.ts';
import { float32, int32, type Tensor } from '../tensor/tensor.ts';
import { scope } from '../tensor/trace.ts';
import { type AudioLlm, audioInputNames, audioInputs, forward } from './audioLlm.ts';
import type { Stream } from './streams.ts';

/** What the encoders made of a clip: encoder name -> [frames, width]. */
export type ClipFeatures = ReadonlyMap<string, Tensor & { dtype: 'float32' }>;

/** Static sizes of a batch. */
export interface BatchShape {
  readonly rows: number;
  /** Text tokens per row, padding included. */
  readonly textRows: number;
  /** Tokens whose probability is computed, padding included. */
  readonly targets: number;
}

/** One sequence of a batch. */
export interface Row {
  readonly ids: readonly number[];
  /** What the model hears; undefined for a model without streams. */
  readonly clip: ClipFeatures | undefined;
  /** Tokens whose probability is wanted, each given what stands up to `position`. */
  readonly targets: readonly { readonly position: number; readonly id: number }[];
  /** Names the sample in errors. */
  readonly id: string;
}

export class BatchError extends Error {
  override readonly name = 'BatchError';
}

export function batchInputs(
  { streams }: AudioLlm,
  { rows, textRows, targets }: BatchShape,
): Record<string, ValueType> {
  return {
    ids: { dtype: 'int32', shape: [rows, textRows] },
    'target.rows': { dtype: 'int32', shape: [targets] },
    'target.ids': { dtype: 'int32', shape: [targets] },
    ...audioInputs(streams, rows),
  };
}

/**
 * The feeds of `batchInputs`. Missing rows are padding, and so are missing targets.
 * @throws BatchError naming a sample whose text or audio is longer than the batch
 */
export function batchFeeds(model: AudioLlm, shape: BatchShape, rows: readonly Row[]): Record<string, Tensor> {
  const ids = new Int32Array(shape.rows * shape.textRows);
  const targetRows = new Int32Array(shape.targets);
  const targetIds = new Int32Array(shape.targets);
  let next = 0;
  for (const [index, row] of rows.entries()) {
    if (row.ids.length > shape.textRows) {
      throw new BatchError(
        `sample "${row.id}" has ${row.ids.length} text tokens, the batch holds ${shape.textRows}`,
      );
    }
    ids.set(row.ids, index * shape.textRows);
    for (const { position, id } of row.targets) {
      targetRows[next] = index * shape.textRows + position;
      targetIds[next] = id;
      next++;
    }
  }
  if (next > shape.targets) throw new BatchError(`${next} targets in a batch that holds ${shape.targets}`);
  return {
    ids: int32([shape.rows, shape.textRows], ids),
    'target.rows': int32([shape.targets], targetRows),
    'target.ids': int32([shape.targets], targetIds),
    ...audioFeeds(model.streams, shape.rows, rows),
  };
}

/**
 * The audio inputs of a batch; clips shorter than the stream's frames are padded.
 * @throws BatchError naming a sample that was not encoded, or whose audio is too long
 */
export function audioFeeds(
  streams: readonly Stream[],
  batch: number,
  rows: readonly Pick<Row, 'id' | 'clip'>[],
): Record<string, Tensor> {
  return Object.fromEntries(
    streams.flatMap((stream): [string, Tensor][] => {
      const { frames, width } = stream;
      const values = new Float32Array(batch * frames * width);
      const valid = new Float32Array(batch * frames);
      for (const [index, { id, clip }] of rows.entries()) {
        const features = clip?.get(stream.encoder);
        if (features === undefined)
          throw new BatchError(`sample "${id}" has no features of encoder "${stream.encoder}"`);
        const [count, found] = features.shape as [number, number];
        if (count > frames || found !== width) {
          throw new BatchError(
            `sample "${id}": encoder "${stream.encoder}" gives ${count} frames of ${found}, the model takes ${frames} of ${width}`,
          );
        }
        values.set(features.data, index * frames * width);
        valid.fill(1, index * frames, index * frames + count);
      }
      const names = audioInputNames(stream);
      return [
        [names.frames, float32([batch, frames, width], values)],
        [names.valid, float32([batch, frames], valid)],
      ];
    }),
  );
}

/**
 * Log-probabilities of the target tokens, [targets]. Logits are computed at their positions only.
 * @param inputs as `batchInputs` declares them
 */
export function targetLogProbabilities(
  model: AudioLlm,
  parameters: Parameters,
  inputs: Readonly<Record<string, Value>>,
): Value {
  const hiddenBTD = hiddenStates(model, parameters, inputs);
  return scope('score', () =>
    tokenLogProbabilities(model.llm, parameters, atTargets(hiddenBTD, inputs), inputs['target.ids'] as Value),
  );
}

/**
 * Cross-entropy of the target tokens, each times its weight, summed up. Logits are computed at their positions only.
 * @param inputs as `batchInputs` declares them
 * @param weights [targets]
 */
export function targetLoss(
  model: AudioLlm,
  parameters: Parameters,
  inputs: Readonly<Record<string, Value>>,
  weights: Value,
): Value {
  const hiddenBTD = hiddenStates(model, parameters, inputs);
  return scope('score', () => {
    const hiddenND = atTargets(hiddenBTD, inputs);
    return tokenLoss(model.llm, parameters, hiddenND, inputs['target.ids'] as Value, weights);
  });
}

function hiddenStates(
  model: AudioLlm,
  parameters: Parameters,
  inputs: Readonly<Record<string, Value>>,
): Value {
  return forward(model, parameters, inputs.ids as Value, inputs).hiddenBTD;
}

/** The hidden states [targets, D] that predict the target tokens. */
function atTargets(hiddenBTD: Value, inputs: Readonly<Record<string, Value>>): Value {
  const [batch, textRows, width] = hiddenBTD.shape as [number, number, number];
  return gather(reshape(hiddenBTD, [batch * textRows, width]), inputs['target.rows'] as Value, 0);
}

/** The next multiple of eight: lengths that share a compiled program. */
export function bucket(length: number): number {
  return Math.ceil(length / 8) * 8;
}
