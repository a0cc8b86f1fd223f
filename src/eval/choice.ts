/** Multiple choice by the log-likelihood of each option as the answer. */
import { type Engine, plain } from '../engine/engine.ts';
import type { AudioLlm } from '../pal/audioLlm.ts';
import {
  batchFeeds,
  batchInputs,
  bucket,
  type ClipFeatures,
  type Row,
  targetLogProbabilities,
} from '../pal/batch.ts';
import { frozen, type ParameterTensors } from '../tensor/parameters.ts';
import { trace } from '../tensor/trace.ts';

/** A question whose options are to be compared. */
export interface ChoiceItem {
  readonly id: string;
  readonly promptIds: readonly number[];
  /** Token ids of each option as it would follow the prompt. */
  readonly options: readonly (readonly number[])[];
  readonly clip: ClipFeatures | undefined;
}

export interface ChoiceScoring {
  readonly engine: Engine;
  readonly model: AudioLlm;
  readonly parameters: ParameterTensors;
  /** Sequences per batch. */
  readonly batchSize: number;
  readonly onProgress?: (done: number, total: number) => void;
}

/** One sequence to run, and which option's score each of its probabilities belongs to. */
interface PlannedRow {
  readonly row: Row;
  readonly owners: readonly { readonly item: number; readonly option: number }[];
}

/**
 * The sum of log-probabilities of each option's tokens, [item][option]. Options that share their first tokens
 * share a sequence: eight one-word options cost one pass, not eight.
 */
export async function scoreChoices(
  items: readonly ChoiceItem[],
  scoring: ChoiceScoring,
): Promise<number[][]> {
  const { engine, model, parameters, batchSize, onProgress } = scoring;
  const scores = items.map((item) => item.options.map(() => 0));
  const planned = items.flatMap((item, index) => planRows(item, index));
  // Sequences of one length run together; a program is compiled per length.
  const buckets = groupByLength(planned);
  let done = 0;
  for (const [textRows, rows] of [...buckets].sort(([a], [b]) => a - b)) {
    const perRow = Math.max(...rows.map(({ row }) => row.targets.length));
    const shape = { rows: Math.min(batchSize, rows.length), textRows, targets: 0 };
    const full = { ...shape, targets: shape.rows * perRow };
    const executable = await engine.compile(
      trace<string>(batchInputs(model, full), (inputs) => ({
        logProbabilities: targetLogProbabilities(model, frozen(parameters), inputs),
      })),
    );
    try {
      for (let start = 0; start < rows.length; start += full.rows) {
        const slice = rows.slice(start, start + full.rows);
        const feeds = batchFeeds(
          model,
          full,
          slice.map(({ row }) => row),
        );
        const outputs = await executable.run(feeds);
        const values = plain(outputs, 'logProbabilities').data as Float32Array;
        for (const [at, { item, option }] of slice.flatMap(({ owners }) => owners).entries()) {
          const own = scores[item] as number[];
          own[option] = (own[option] as number) + (values[at] as number);
        }
        done += slice.length;
        onProgress?.(done, planned.length);
      }
    } finally {
      await executable.dispose();
    }
  }
  return scores;
}

function groupByLength(planned: readonly PlannedRow[]): Map<number, PlannedRow[]> {
  const groups = new Map<number, PlannedRow[]>();
  for (const one of planned) {
    const length = bucket(one.row.ids.length);
    const group = groups.get(length);
    if (group === undefined) groups.set(length, [one]);
    else group.push(one);
  }
  return groups;
}

/** The fewest sequences that hold, for every token of every option, the tokens in front of it. */
function planRows(item: ChoiceItem, index: number): PlannedRow[] {
  const contexts = item.options.map((option) => option.slice(0, -1));
  const longest = contexts.filter(
    (context, at) =>
      !contexts.some(
        (other, otherAt) => startsWith(other, context) && (other.length > context.length || otherAt < at),
      ),
  );
  const rows = longest.map((context) => ({
    context,
    targets: [] as Row['targets'][number][],
    owners: [] as PlannedRow['owners'][number][],
  }));
  for (const [option, tokens] of item.options.entries()) {
    const row = rows.find(({ context }) => startsWith(context, contexts[option] as readonly number[]));
    if (row === undefined) continue;
    for (const [offset, id] of tokens.entries()) {
      row.targets.push({ position: item.promptIds.length - 1 + offset, id });
      row.owners.push({ item: index, option });
    }
  }
  return rows.map(({ context, targets, owners }) => ({
    row: { id: item.id, ids: [...item.promptIds, ...context], clip: item.clip, targets },
    owners,
  }));
}

function startsWith(sequence: readonly number[], beginning: readonly number[]): boolean {
  return beginning.every((id, at) => sequence[at] === id);
}

/** The position of the largest score; the first of equals. */
export function best(scores: readonly number[]): number {
  return scores.indexOf(Math.max(...scores));
}
