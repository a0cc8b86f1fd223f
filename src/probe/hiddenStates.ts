/** What a model makes of texts and clips, layer by layer. */
import { type Engine, plain } from '../engine/engine.ts';
import { type AudioLlm, audioInputs, forward } from '../pal/audioLlm.ts';
import { audioFeeds, bucket, type Row, validRows } from '../pal/batch.ts';
import { divide, multiply, reshape, sum } from '../tensor/operations.ts';
import { frozen, type ParameterTensors } from '../tensor/parameters.ts';
import type { Value } from '../tensor/program.ts';
import { float32, int32, type Tensor } from '../tensor/tensor.ts';
import { trace } from '../tensor/trace.ts';

export interface HiddenStatesOptions {
  readonly engine: Engine;
  readonly model: AudioLlm;
  readonly parameters: ParameterTensors;
  /** Sequences per batch. */
  readonly batchSize: number;
  readonly onProgress?: (done: number) => void;
}

/**
 * The hidden states after each layer, for every sequence the mean of its text rows: prefix audio is none of them.
 * @returns for each layer [sequences, hidden]
 * @throws BatchError naming a sample without the features of an encoder, or with too many
 */
export async function meanHiddenStates(
  rows: readonly Omit<Row, 'targets'>[],
  { engine, model, parameters, batchSize, onProgress }: HiddenStatesOptions,
): Promise<(Tensor & { dtype: 'float32' })[]> {
  const { layers, hiddenSize } = model.llm;
  const batch = Math.min(batchSize, rows.length);
  const textRows = bucket(Math.max(...rows.map(({ ids }) => ids.length)));
  const types = {
    ids: { dtype: 'int32' as const, shape: [batch, textRows] },
    lengths: { dtype: 'int32' as const, shape: [batch] },
    ...audioInputs(model.streams, batch),
  };
  const executable = await engine.compile(
    trace<string>(types, (inputs) => {
      const { ids, lengths } = inputs as { ids: Value; lengths: Value };
      const validBT = () => validRows(lengths, textRows);
      const { layersBTD } = forward(model, frozen(parameters), ids, inputs, validBT);
      const validBT1 = reshape(validBT(), [batch, textRows, 1]);
      const countB1 = sum(reshape(validBT1, [batch, textRows]), [1], { keepDimensions: true });
      const means = layersBTD.map((hiddenBTD, layer): [string, Value] => [
        `hidden.${layer}`,
        divide(sum(multiply(hiddenBTD, validBT1), [1]), countB1),
      ]);
      return Object.fromEntries(means);
    }),
  );
  const states = Array.from({ length: layers }, () => new Float32Array(rows.length * hiddenSize));
  try {
    for (let start = 0; start < rows.length; start += batch) {
      const own = rows.slice(start, start + batch);
      // A last batch is filled up with its first sequence.
      const full = Array.from({ length: batch }, (_, at) => own[at] ?? (own[0] as (typeof own)[0]));
      const ids = new Int32Array(batch * textRows);
      for (const [at, row] of full.entries()) ids.set(row.ids, at * textRows);
      const outputs = await executable.run({
        ids: int32([batch, textRows], ids),
        lengths: int32(
          [batch],
          full.map((row) => row.ids.length),
        ),
        ...audioFeeds(model.streams, batch, full),
      });
      for (const [layer, all] of states.entries()) {
        const made = plain(outputs, `hidden.${layer}`).data as Float32Array;
        all.set(made.subarray(0, own.length * hiddenSize), start * hiddenSize);
      }
      onProgress?.(Math.min(start + batch, rows.length));
    }
  } finally {
    await executable.dispose();
  }
  return states.map((data) => float32([rows.length, hiddenSize], data));
}
