/** Which blocks every row of some texts and clips chooses, in each layer that chooses. */
import { type Engine, plain } from '../engine/engine.ts';
import type { AudioLlm } from '../pal/audioLlm.ts';
import { type BatchShape, batchFeeds, batchInputs, bucket, forwardBatch, type Row } from '../pal/batch.ts';
import type { LayerLayout } from '../pal/layout.ts';
import { audioTokens } from '../pal/streams.ts';
import { cast, filled } from '../tensor/operations.ts';
import { frozen, type ParameterTensors } from '../tensor/parameters.ts';
import type { Program, Value } from '../tensor/program.ts';
import { trace } from '../tensor/trace.ts';

/** The choices of a layer's real rows: those of prefix audio, where some pass, and of text. */
export interface RoutedRows {
  /** 0-based. */
  readonly layer: number;
  /** How many there are to choose from. */
  readonly blocks: number;
  /** How many a row chooses. */
  readonly active: number;
  /** The blocks of each row, [rows, active]. */
  readonly chosen: Int32Array;
  /** What tells a row: layers through which the same row passes have the same number for it. Rising. */
  readonly row: Float64Array;
  /** The text that a row belongs to, as a position among those given. */
  readonly text: Int32Array;
  /** 1 for an audio row, 0 for a text row. */
  readonly audio: Uint8Array;
  /** Choices that had no place in a batch of this size. */
  readonly dropped: number;
}

export interface ChoicesOptions {
  readonly engine: Engine;
  readonly model: AudioLlm;
  readonly parameters: ParameterTensors;
  /** Sequences per batch. */
  readonly batchSize: number;
  readonly onProgress?: (done: number) => void;
}

/**
 * Sends sequences through the forward pass and collects what their rows choose.
 * @returns the layers that choose; none for a model without such
 * @throws BatchError naming a sample without the features of an encoder, or with too many
 */
export async function choicesOf(
  texts: readonly Row[],
  { engine, model, parameters, batchSize, onProgress }: ChoicesOptions,
): Promise<RoutedRows[]> {
  const longest = (of: (row: Row) => number) => texts.reduce((most, row) => Math.max(most, of(row)), 1);
  const rows = Math.min(batchSize, texts.length);
  const shape = {
    rows,
    textRows: bucket(longest(({ ids }) => ids.length)),
    targets: rows * longest(({ targets }) => targets.length),
  };
  const { program, layers } = choicesProgram(model, parameters, shape);
  if (layers.length === 0) return [];
  const collected = layers.map((): Collected => ({ chosen: [], row: [], text: [], audio: [], dropped: 0 }));
  const executable = await engine.compile(program);
  try {
    for (let start = 0; start < texts.length; start += rows) {
      const own = texts.slice(start, start + rows);
      const outputs = await executable.run(batchFeeds(model, shape, own));
      const read = (name: string) => plain(outputs, name).data as Int32Array | Float32Array;
      for (const [at, layer] of layers.entries())
        collect(collected[at] as Collected, layer, read, { start, texts: own.length });
      onProgress?.(start + own.length);
    }
  } finally {
    await executable.dispose();
  }
  return layers.map(({ layer, blocks, active }, at) => {
    const { chosen, row, text, audio, dropped } = collected[at] as Collected;
    return {
      layer,
      blocks,
      active,
      chosen: joined(chosen),
      row: Float64Array.from(row),
      text: Int32Array.from(text),
      audio: Uint8Array.from(audio),
      dropped,
    };
  });
}

function joined(parts: readonly Int32Array[]): Int32Array {
  const all = new Int32Array(parts.reduce((total, { length }) => total + length, 0));
  let next = 0;
  for (const part of parts) {
    all.set(part, next);
    next += part.length;
  }
  return all;
}

/** A layer whose choices are outputs of the program: `<layer>.blocks`, `<layer>.valid`, `<layer>.kept`. */
interface ChoosingLayer extends Pick<RoutedRows, 'layer' | 'blocks' | 'active'> {
  readonly drops: boolean;
  /** Of the rows of one text, in their order: which row it is in any layer. */
  readonly places: readonly { readonly place: number; readonly isAudio: boolean }[];
  /** How many rows a text has in all layers together. */
  readonly perText: number;
}

function choicesProgram(
  model: AudioLlm,
  parameters: ParameterTensors,
  shape: BatchShape,
): { program: Program; layers: ChoosingLayer[] } {
  const layers: ChoosingLayer[] = [];
  const program = trace<string>(batchInputs(model, shape), (inputs) => {
    const { feedForward, layout } = forwardBatch(model, frozen(parameters), inputs);
    const outputs: Record<string, Value> = {};
    for (const [layer, { choices }] of feedForward.entries()) {
      if (choices === undefined) continue;
      const { blocksTC, validT, keptTC, blocks } = choices;
      const [tokens, active] = blocksTC.shape as [number, number];
      outputs[`${layer}.blocks`] = cast(blocksTC, 'int32');
      outputs[`${layer}.valid`] = validT ?? filled('float32', [tokens], 1);
      if (keptTC !== undefined) outputs[`${layer}.kept`] = keptTC;
      const drops = keptTC !== undefined;
      layers.push({ layer, blocks, active, drops, ...placesOf(model, layout[layer] as LayerLayout) });
    }
    return outputs;
  });
  return { program, layers };
}

/** Streams stand in the order of the model, the text behind all of them, whether or not a layer has them. */
function placesOf({ streams }: AudioLlm, { rows }: LayerLayout): Pick<ChoosingLayer, 'places' | 'perText'> {
  const first = new Map<AudioLlm['streams'][number] | undefined, number>();
  let next = 0;
  for (const stream of streams) {
    first.set(stream, next);
    next += audioTokens(stream);
  }
  first.set(undefined, next);
  const places = rows.flatMap(({ stream, rows: count }) =>
    Array.from({ length: count }, (_, row) => ({
      place: (first.get(stream) as number) + row,
      isAudio: stream !== undefined,
    })),
  );
  return { places, perText: next + (rows.at(-1)?.rows ?? 0) };
}

interface Collected {
  /** Of each batch: all of it as numbers would take twice the memory. */
  readonly chosen: Int32Array[];
  readonly row: number[];
  readonly text: number[];
  readonly audio: number[];
  dropped: number;
}

/** Adds the real rows of a batch; behind its last text the batch is padding. */
function collect(
  to: Collected,
  { layer, active, drops, places, perText }: ChoosingLayer,
  read: (name: string) => Int32Array | Float32Array,
  batch: { readonly start: number; readonly texts: number },
): void {
  const [chosen, valid] = [read(`${layer}.blocks`), read(`${layer}.valid`)];
  const kept = drops ? read(`${layer}.kept`) : undefined;
  const ofBatch: number[] = [];
  for (let own = 0; own < batch.texts; own++) {
    const text = batch.start + own;
    for (const [at, { place, isAudio }] of places.entries()) {
      const row = own * places.length + at;
      if (valid[row] !== 1) continue;
      to.row.push(text * perText + place);
      to.text.push(text);
      to.audio.push(Number(isAudio));
      for (let choice = row * active; choice < (row + 1) * active; choice++) {
        ofBatch.push(chosen[choice] as number);
        if (kept?.[choice] === 0) to.dropped++;
      }
    }
  }
  to.chosen.push(Int32Array.from(ofBatch));
}
