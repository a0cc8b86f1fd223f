/** Runs side by side: what their models' layers make of the same held-out questions, and how alike that is. */
import type { Experiment } from '../../config/schema.ts';
import { ensureDataset, readSplit } from '../../data/dataset.ts';
import type { Example } from '../../data/manifest.ts';
import type { Engine } from '../../engine/engine.ts';
import type { Row } from '../../pal/batch.ts';
import { meanHiddenStates } from '../../probe/hiddenStates.ts';
import {
  type Geometry,
  geometryOf,
  linearCka,
  localNeighbourhoodSimilarity,
  neighboursOf,
} from '../../probe/similarity.ts';
import { float32, type Tensor } from '../../tensor/tensor.ts';
import { someOf } from '../../train/evaluateRun.ts';
import { readTrained } from '../../train/export.ts';
import { questionRows } from '../../train/heldOut.ts';
import { makeEngine, RunError, type Watch } from '../../train/setup.ts';

export interface LayerScores {
  /** Linear CKA, and local neighbourhood similarity. */
  readonly cka: number;
  readonly lns: number;
}

/** Shares of other scores; null: of nothing. */
export interface ScoreShares {
  readonly cka: number | null;
  readonly lns: number | null;
}

export interface Pair {
  readonly runs: readonly [string, string];
  /** The same layer of both. */
  readonly layers: readonly LayerScores[];
  /** Those divided by what the baselines have in the layer; null without baselines. */
  readonly normalised: readonly ScoreShares[] | null;
}

export interface Comparison {
  readonly dataset: string;
  readonly split: string;
  readonly questions: number;
  /** Questions in a neighbourhood. */
  readonly neighbours: number;
  /** Questions that a run could not take: no run is asked them. */
  readonly leftOut: readonly { readonly run: string; readonly id: string; readonly reason: string }[];
  /** Linear CKA between all layers of a run's model: redundant ones are alike. */
  readonly runs: readonly { readonly run: string; readonly selfSimilarity: readonly (readonly number[])[] }[];
  readonly pairs: readonly Pair[];
  /** Two runs that differ in the seed alone, the most alike that runs can be expected to be. */
  readonly baseline: Omit<Pair, 'normalised'> | null;
}

export interface CompareOptions {
  /** Two runs of one experiment that differ in their seed. */
  readonly baseline?: readonly [string, string] | undefined;
  /** Questions at most. */
  readonly limit: number;
  /** That of the first run when left out. */
  readonly split?: Experiment['eval']['split'] | undefined;
  readonly watch: Watch;
}

/**
 * Compares runs on the questions of the first one's dataset, drawn alike each time, each with its right answer behind it.
 * @param runs folders of runs, or of models
 * @throws RunError for runs that cannot be compared, and as `readTrained` and `encodeClips`
 */
export async function compareRuns(
  runs: readonly string[],
  { baseline, limit, split: wanted, watch }: CompareOptions,
): Promise<Comparison> {
  const all = [...new Set([...runs, ...(baseline ?? [])])];
  const { experiment } = await readTrained(all[0] as string);
  const { data } = experiment;
  const split = wanted ?? experiment.eval.split;
  await ensureDataset(data.dataset, data.dir, () => undefined);
  const examples = someOf(await readSplit(data.dir, split), limit);
  const engine = await makeEngine(experiment, watch.note);
  const read: RunStates[] = [];
  try {
    for (const run of all) read.push(await statesOf(run, { data, examples, engine, watch }));
  } finally {
    await engine.dispose();
  }
  mustBeAsDeep(read);
  const common = examples.filter(({ id }) => read.every(({ rowOf }) => rowOf.has(id)));
  if (common.length < 3)
    throw new RunError(`${common.length} questions that all runs can take are too few to compare them by`);
  const geometries = new Map(
    read.map(({ run, rowOf, layers }) => {
      const rows = common.map(({ id }) => rowOf.get(id) as number);
      return [run, layers.map((states) => geometryOf(rowsOf(states, rows)))];
    }),
  );
  const layersOf = (run: string) => geometries.get(run) as Geometry[];
  const scores = (one: string, other: string) =>
    layersOf(one).map((own, layer): LayerScores => {
      const others = layersOf(other)[layer] as Geometry;
      return { cka: linearCka(own, others), lns: localNeighbourhoodSimilarity(own, others) };
    });
  const ceiling = baseline === undefined ? null : scores(...baseline);
  return {
    dataset: data.dataset,
    split,
    questions: common.length,
    neighbours: neighboursOf(common.length),
    leftOut: read.flatMap(({ run, leftOut }) => leftOut.map((own) => ({ run, ...own }))),
    runs: runs.map((run) => ({
      run,
      selfSimilarity: layersOf(run).map((a) => layersOf(run).map((b) => linearCka(a, b))),
    })),
    pairs: runs.flatMap((one, at) =>
      runs.slice(at + 1).map((other): Pair => {
        const layers = scores(one, other);
        return { runs: [one, other], layers, normalised: ceiling && layers.map(byLayer(ceiling)) };
      }),
    ),
    baseline: baseline === undefined || ceiling === null ? null : { runs: baseline, layers: ceiling },
  };
}

const byLayer =
  (ceiling: readonly LayerScores[]) =>
  (own: LayerScores, layer: number): ScoreShares => {
    const { cka, lns } = ceiling[layer] as LayerScores;
    return { cka: shareOf(own.cka, cka), lns: shareOf(own.lns, lns) };
  };

/** With few questions even baselines may have no neighbour in common. */
export function shareOf(own: number, whole: number): number | null {
  const share = own / whole;
  return Number.isFinite(share) ? share : null;
}

interface RunStates {
  readonly run: string;
  /** [questions, hidden] of each layer. */
  readonly layers: readonly (Tensor & { dtype: 'float32' })[];
  /** Of a question's id. */
  readonly rowOf: ReadonlyMap<string, number>;
  readonly leftOut: readonly { readonly id: string; readonly reason: string }[];
}

interface Asked {
  /** What is asked is the first run's, whatever a run was trained on. */
  readonly data: Experiment['data'];
  readonly examples: readonly Example[];
  readonly engine: Engine;
  readonly watch: Watch;
}

async function statesOf(run: string, { data, examples, engine, watch }: Asked): Promise<RunStates> {
  const trained = await readTrained(run);
  const experiment = { ...trained.experiment, data };
  const { rows, leftOut } = await questionRows({ ...trained, experiment }, examples, watch);
  const bar = watch.progress(`hidden states of ${run}`, rows.length);
  const layers = await meanHiddenStates(rows, {
    engine,
    model: trained.model,
    parameters: trained.parameters,
    batchSize: experiment.eval.batchSize,
    onProgress: (done) => bar.update(done),
  }).finally(() => bar.stop());
  mustBeNumbers(run, rows, layers);
  return { run, layers, rowOf: new Map(rows.map(({ id }, at) => [id, at])), leftOut };
}

/** What is no number has neighbours all the same, in some order. */
function mustBeNumbers(run: string, rows: readonly Row[], layers: RunStates['layers']): void {
  for (const [layer, { shape, data }] of layers.entries()) {
    const at = data.findIndex((value) => !Number.isFinite(value));
    if (at < 0) continue;
    const row = rows[Math.floor(at / (shape[1] as number))];
    throw new RunError(
      `${run}: after layer ${layer} the hidden states of question "${row?.id}" are no numbers (${data[at]}): the model has diverged, or its weights are damaged`,
    );
  }
}

function mustBeAsDeep(read: readonly RunStates[]): void {
  const [first] = read as [RunStates];
  const other = read.find(({ layers }) => layers.length !== first.layers.length);
  if (other !== undefined)
    throw new RunError(
      `${first.run} has ${first.layers.length} layers, ${other.run} ${other.layers.length}: runs are compared layer by layer`,
    );
}

function rowsOf({ shape, data }: Tensor & { dtype: 'float32' }, rows: readonly number[]) {
  const width = shape[1] as number;
  const chosen = new Float32Array(rows.length * width);
  for (const [at, row] of rows.entries())
    chosen.set(data.subarray(row * width, (row + 1) * width), at * width);
  return float32([rows.length, width], chosen);
}
