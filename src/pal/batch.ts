/** Batches as an audio-LLM's programs take them: padded token ids, tokens whose probability is wanted, audio. */
import { isSparse } from '../ffn/config.ts';
import { tokenLogProbabilities, tokenLoss } from '../llm/score.ts';
import { add, cast, constant, gather, less, reshape } from '../tensor/operations.ts';
import type { Parameters } from '../tensor/parameters.ts';
import type { Value, ValueType } from '../tensor/program.ts';
import { float32, int32, type Tensor } from '../tensor/tensor.ts';
import { named, scope } from '../tensor/trace.ts';
import { type AudioLlm, audioInputNames, audioInputs, type ForwardPass, forward } from './audioLlm.ts';
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
  { streams, ffn = [] }: AudioLlm,
  { rows, textRows, targets }: BatchShape,
): Record<string, ValueType> {
  return {
    ids: { dtype: 'int32', shape: [rows, textRows] },
    // Sparse feed-forward layers leave out padding.
    ...(isSparse(ffn) && { lengths: { dtype: 'int32' as const, shape: [rows] } }),
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
  const lengths = Array.from({ length: shape.rows }, (_, index) => rows[index]?.ids.length ?? 0);
  return {
    ids: int32([shape.rows, shape.textRows], ids),
    ...(isSparse(model.ffn ?? []) && { lengths: int32([shape.rows], lengths) }),
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
  const { hiddenBTD } = forwardBatch(model, parameters, inputs);
  return scope('score', () =>
    tokenLogProbabilities(model.llm, parameters, atTargets(hiddenBTD, inputs), inputs['target.ids'] as Value),
  );
}

/** The loss of a batch, and what beside it comes of the forward pass. */
export interface TargetLoss {
  /** Cross-entropy of the target tokens, each times its weight, summed up. */
  readonly loss: Value;
  /** Of the feed-forward layers, added up: a scalar. */
  readonly auxiliaryLoss?: Value | undefined;
  /** Scalars of the feed-forward layers: `layers.3.entropy`. */
  readonly statistics: Readonly<Record<string, Value>>;
}

/**
 * The loss of the target tokens. Logits are computed at their positions only.
 * @param inputs as `batchInputs` declares them
 * @param weights [targets]
 */
export function targetLoss(
  model: AudioLlm,
  parameters: Parameters,
  inputs: Readonly<Record<string, Value>>,
  weights: Value,
): TargetLoss {
  const { hiddenBTD, feedForward } = forwardBatch(model, parameters, inputs);
  const loss = scope('score', () => {
    const hiddenND = atTargets(hiddenBTD, inputs);
    return tokenLoss(model.llm, parameters, hiddenND, inputs['target.ids'] as Value, weights);
  });
  const auxiliary = feedForward.flatMap(({ auxiliaryLoss }) => auxiliaryLoss ?? []);
  const statistics = feedForward.flatMap(({ statistics: own = {} }, layer) =>
    Object.entries(own).map(([name, value]): [string, Value] => [`layers.${layer}.${name}`, value]),
  );
  return {
    loss,
    auxiliaryLoss:
      auxiliary.length === 0
        ? undefined
        : scope('loss', () =>
            named(
              'auxiliary',
              auxiliary.reduce((total, own) => add(total, own)),
            ),
          ),
    statistics: Object.fromEntries(statistics),
  };
}

/** The forward pass over inputs as `batchInputs` declares them. */
export function forwardBatch(
  model: AudioLlm,
  parameters: Parameters,
  inputs: Readonly<Record<string, Value>>,
): ForwardPass {
  const { ids, lengths } = inputs as { ids: Value; lengths?: Value };
  const valid = lengths === undefined ? undefined : () => validRows(lengths, ids.shape[1] as number);
  return forward(model, parameters, ids, inputs, valid);
}

/** 1 for each row of a text of this length, 0 for the padding behind it, [B, T]. */
export function validRows(lengthsB: Value, textRows: number): Value {
  const positions = constant(int32([1, textRows], [...Array(textRows).keys()]));
  return cast(less(positions, reshape(lengthsB, [lengthsB.shape[0] as number, 1])), 'float32');
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
