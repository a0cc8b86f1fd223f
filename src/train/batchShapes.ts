/**
 * Static shapes for a stage's micro-batches. A compiled program takes batches of one size; with a few of them, a
 * batch of short questions is padded less. The order of the questions is not touched.
 */
import type { DecoderConfig } from '../llm/config.ts';
import { type BatchShape, bucket, type Row } from '../pal/batch.ts';
import { copiesPerProgram } from './frozenWeights.ts';

/** What a micro-batch needs: its longest text, and its targets. */
export interface BatchNeed {
  readonly textRows: number;
  readonly targets: number;
}

/** How much arithmetic a padded text token and a padded target cost, in any unit. */
export interface PaddingCost {
  readonly textRow: number;
  readonly target: number;
}

export interface BatchShapes {
  /** The first holds every batch; the others are smaller. */
  readonly shapes: readonly BatchShape[];
  /** Share of the text's arithmetic that the smaller shapes save, of what the first alone would take. */
  readonly saved: number;
  /** Shares of the batches that take each of the shapes; the first has all where no batch is known. */
  readonly shares: readonly number[];
}

/** A program more is compiled for this share of the arithmetic at least. */
const worthCompiling = 0.01;

/** Every compiled program holds copies of the frozen weights; those of the smaller shapes may take this much together. */
export const copiesBudgetBytes = 1e9;

/**
 * How many shapes there may be.
 * @param most as configured
 * @param frozenBytes of the stage's frozen weights
 */
export function affordableShapes(most: number, frozenBytes: number): number {
  const bytesPerProgram = Math.max(1, copiesPerProgram * frozenBytes);
  return Math.min(most, 1 + Math.floor(copiesBudgetBytes / bytesPerProgram));
}

export function needOf(rows: readonly Row[]): BatchNeed {
  return {
    textRows: Math.max(...rows.map((row) => row.ids.length)),
    targets: rows.reduce((total, row) => total + row.targets.length, 0),
  };
}

/** Multiply-adds per token: of the layers for a text row, of the logits for a target. */
export function paddingCost(llm: DecoderConfig): PaddingCost {
  const { hiddenSize, intermediateSize, layers, heads, keyValueHeads, headWidth, vocabularySize } = llm;
  const attention = hiddenSize * headWidth * (2 * heads + 2 * keyValueHeads);
  return {
    textRow: layers * (attention + 3 * hiddenSize * intermediateSize),
    target: hiddenSize * vocabularySize,
  };
}

/**
 * Chooses smaller shapes beside one that holds everything, each the one that saves most, as long as one saves 1 %.
 * @param whole the shape that holds every batch
 * @param needs of the micro-batches that are to come, or a sample of them
 * @param most shapes at most, `whole` among them
 */
export function chooseShapes(
  whole: BatchShape,
  needs: readonly BatchNeed[],
  cost: PaddingCost,
  most: number,
): BatchShapes {
  const arithmetic = ({ textRows, targets }: BatchNeed) =>
    whole.rows * textRows * cost.textRow + targets * cost.target;
  const rounded = needs.map(
    ({ textRows, targets }): BatchNeed => ({ textRows: bucket(textRows), targets: bucket(targets) }),
  );
  const lengths = [...new Set(rounded.map(({ textRows }) => textRows))];
  const targetCounts = [...new Set(rounded.map(({ targets }) => targets))];
  const candidates = lengths.flatMap((textRows) =>
    targetCounts.map((targets) => ({ ...whole, textRows, targets })),
  );
  const shapes = [whole];
  // What each batch takes with the shapes so far.
  let taken = rounded.map(() => arithmetic(whole));
  const all = taken.reduce((total, one) => total + one, 0);
  while (shapes.length < most) {
    let best: { readonly shape: BatchShape; readonly saved: number } | undefined;
    for (const shape of candidates) {
      const own = arithmetic(shape);
      const saved = rounded.reduce(
        (total, need, at) => total + (holds(shape, need) ? Math.max(0, (taken[at] as number) - own) : 0),
        0,
      );
      if (saved > (best?.saved ?? 0)) best = { shape, saved };
    }
    if (best === undefined || best.saved < worthCompiling * all) break;
    const { shape } = best;
    taken = rounded.map((need, at) =>
      holds(shape, need) ? Math.min(taken[at] as number, arithmetic(shape)) : (taken[at] as number),
    );
    shapes.push(shape);
  }
  const left = taken.reduce((total, one) => total + one, 0);
  const counts = shapes.map(() => 0);
  for (const need of rounded) (counts[cheapest(shapes, need, cost)] as number)++;
  return {
    shapes,
    saved: all === 0 ? 0 : 1 - left / all,
    shares: rounded.length === 0 ? [1] : counts.map((count) => count / rounded.length),
  };
}

/** The number of the cheapest shape that holds a batch; the first when none of the smaller ones does. */
export function shapeFor(
  { shapes }: Pick<BatchShapes, 'shapes'>,
  rows: readonly Row[],
  cost: PaddingCost,
): number {
  return cheapest(shapes, needOf(rows), cost);
}

function cheapest(shapes: readonly BatchShape[], need: BatchNeed, cost: PaddingCost): number {
  let chosen = 0;
  let least = Number.POSITIVE_INFINITY;
  for (const [index, shape] of shapes.entries()) {
    const own = shape.textRows * shape.rows * cost.textRow + shape.targets * cost.target;
    if ((index === 0 || holds(shape, need)) && own < least) [chosen, least] = [index, own];
  }
  return chosen;
}

function holds(shape: BatchNeed, need: BatchNeed): boolean {
  return need.textRows <= shape.textRows && need.targets <= shape.targets;
}
