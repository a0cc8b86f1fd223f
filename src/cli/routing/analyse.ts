/** How the rows of held-out questions choose blocks in a trained model. */
import { random } from '../../config/random.ts';
import { isSparse } from '../../ffn/config.ts';
import { choicesOf, type RoutedRows } from '../../probe/choices.ts';
import {
  busiest,
  type Chosen,
  evenness,
  layerOverlap,
  loadPerBlock,
  shareOverlap,
} from '../../probe/routing.ts';
import { readTrained } from '../../train/export.ts';
import { heldOutRows } from '../../train/heldOut.ts';
import { makeEngine, RunError, type Watch } from '../../train/setup.ts';
import type { SkippedSample } from '../../train/textLength.ts';

/** How the choices of some rows fall. */
export interface Fall {
  readonly rows: number;
  /** How often each block was chosen. */
  readonly load: readonly number[];
  /** Choices of the busiest block, as a multiple of its fair share. */
  readonly busiest: number | null;
  /** Of the blocks' shares, by the largest possible. */
  readonly entropy: number | null;
}

export interface LayerRouting {
  /** 0-based. */
  readonly layer: number;
  /** The selection: `topk`; of a mixture of channels `moc, gate`. */
  readonly kind: string;
  readonly blocks: number;
  readonly active: number;
  readonly all: Fall;
  readonly text: Fall;
  /** null where no audio row passes the layer. */
  readonly audio: Fall | null;
  /** Sum over the blocks of the smaller of text's and audio's share. */
  readonly textAudioOverlap: number | null;
  readonly deadBlocks: number;
  /** Share of the choices that had no place in a batch of `batchSize` questions. */
  readonly overflow: number;
  /** By what questions are about: their load, and its overlap with that of all questions. */
  readonly byCategory: Readonly<
    Record<string, { readonly load: readonly number[]; readonly overlap: number | null }>
  >;
}

export type Matrix = readonly (readonly (number | null)[])[];

export interface Routing {
  /** As it was named. */
  readonly run: string;
  readonly experiment: string;
  readonly dataset: string;
  readonly split: string;
  readonly seed: number;
  readonly questions: number;
  readonly batchSize: number;
  readonly leftOut: readonly SkippedSample[];
  readonly layers: readonly LayerRouting[];
  /**
   * Normalised mutual information of the blocks that the same row chooses in two layers, in the order of `layers`; and
   * the same with shuffled rows. null: a layer that uses one block, or too many choices (`tooMany`).
   */
  readonly overlap: { readonly measured: Matrix; readonly shuffled: Matrix; readonly tooMany: boolean };
}

export interface AnalyseOptions {
  /** Of the experiment: `path.to.field=value`. */
  readonly overrides?: readonly string[];
  /** Questions at most. */
  readonly limit: number;
  /** Of what is drawn: the questions, and the shuffled rows. */
  readonly seed: number;
  readonly watch: Watch;
}

/**
 * Sends held-out questions, each with its clip and right answer, through a trained model.
 * @param run a run's folder, or a model's
 * @throws RunError for a model whose layers do not choose, and as `readTrained` and `heldOutRows`
 */
export async function analyseRouting(
  run: string,
  { overrides = [], limit, seed, watch }: AnalyseOptions,
): Promise<Routing> {
  const trained = await readTrained(run, overrides);
  const { experiment, model, parameters } = trained;
  const { ffn = [] } = model;
  if (!isSparse(ffn)) throw new RunError(`${run}: no layer chooses among blocks or channels (llm.ffn)`);
  const { examples, rows, leftOut } = await heldOutRows(trained, { limit, seed, watch });
  const { batchSize } = experiment.eval;
  const engine = await makeEngine(experiment, watch.note);
  const bar = watch.progress('asking', rows.length);
  const routed = await choicesOf(rows, {
    engine,
    model,
    parameters,
    batchSize,
    onProgress: (done) => bar.update(done),
  }).finally(async () => {
    bar.stop();
    await engine.dispose();
  });
  if (routed.length === 0)
    throw new RunError(
      `${run}: no layer chooses among blocks or channels: every token uses all of them (llm.ffn)`,
    );
  const kindOf = (layer: number) => {
    const own = ffn[layer];
    if (own?.kind === 'moc') return `moc, ${own.select}`;
    return own?.kind === 'sparse' ? own.select : 'dense';
  };
  return {
    run,
    experiment: experiment.name,
    dataset: experiment.data.dataset,
    split: experiment.eval.split,
    seed,
    questions: rows.length,
    batchSize,
    leftOut,
    layers: routed.map((own) =>
      layerRouting(own, kindOf(own.layer), (text) => examples[text]?.category ?? ''),
    ),
    overlap: overlaps(routed, seed, watch),
  };
}

function layerRouting(routed: RoutedRows, kind: string, categoryOf: (text: number) => string): LayerRouting {
  const { layer, blocks, active, audio, text, dropped, chosen } = routed;
  const all = fall(routed, () => true);
  const hasAudio = audio.includes(1);
  const ofText = hasAudio ? fall(routed, (row) => audio[row] === 0) : all;
  const ofAudio = hasAudio ? fall(routed, (row) => audio[row] === 1) : null;
  const category = Array.from(text, categoryOf);
  const byCategory = [...new Set(category)].sort().map((name) => {
    const load = loadPerBlock(routed, (row) => category[row] === name);
    return [name, { load, overlap: shareOverlap(load, all.load) }] as const;
  });
  return {
    layer,
    kind,
    blocks,
    active,
    all,
    text: ofText,
    audio: ofAudio,
    textAudioOverlap: ofAudio && shareOverlap(ofText.load, ofAudio.load),
    deadBlocks: all.load.filter((own) => own === 0).length,
    overflow: dropped / chosen.length,
    byCategory: Object.fromEntries(byCategory),
  };
}

function fall(routed: Chosen, isCounted: (row: number) => boolean): Fall {
  const load = loadPerBlock(routed, isCounted);
  const rows = load.reduce((sum, own) => sum + own, 0) / routed.active;
  return { rows, load, busiest: busiest(load), entropy: evenness(load) };
}

function overlaps(routed: readonly RoutedRows[], seed: number, watch: Watch): Routing['overlap'] {
  const square = () => routed.map(() => new Array<number | null>(routed.length).fill(null));
  const [measured, shuffled] = [square(), square()];
  let tooMany = false;
  const bar = watch.progress('comparing layers', routed.length);
  for (const [a, one] of routed.entries()) {
    for (const [b, other] of routed.entries()) {
      if (b < a) continue;
      const found = layerOverlap(one, other, random(seed, 'shuffled rows', one.layer, other.layer));
      tooMany ||= found === undefined;
      for (const [row, column] of [
        [a, b],
        [b, a],
      ] as const) {
        (measured[row] as (number | null)[])[column] = found?.measured ?? null;
        (shuffled[row] as (number | null)[])[column] = found?.shuffled ?? null;
      }
    }
    bar.update(a + 1);
  }
  bar.stop();
  return { measured, shuffled, tooMany };
}
