/**
 * `npm run bench -- lm ffn|moc|wide [--seeds N] [--tokens N] [--only NAME] [--json]`: small language models that differ
 * in nothing but their feed-forward layers, on the text that Debian installs (--folder for other text). Two at a time, a
 * thread each. Perplexities of held-out text: means over seeds with 95 % intervals (t), and differences to the dense model
 * of the same seed.
 */
import { execFile } from 'node:child_process';
import { parseArgs, promisify } from 'node:util';
import { formatTable } from '../src/cli/terminal/table.ts';
import { lmSchema } from '../src/config/lmSchema.ts';
import type { LmResult } from '../src/train/pretrain.ts';
import { tokenizedText } from '../src/train/textModel.ts';
import { fail } from './measure.ts';

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    seeds: { type: 'string', default: '3' },
    tokens: { type: 'string', default: '400000' },
    folder: { type: 'string', multiple: true, default: ['/usr/share/doc', '/usr/share/common-licenses'] },
    rate: { type: 'string', default: '0.006' },
    only: { type: 'string', multiple: true },
    json: { type: 'boolean', default: false },
  },
});

/** The quantile of Student's t for 95 %, by degrees of freedom. */
const student: readonly number[] = [
  Number.NaN,
  12.706,
  4.303,
  3.182,
  2.776,
  2.571,
  2.447,
  2.365,
  2.306,
  2.262,
];

const [hiddenSize, layers] = [96, 4];
const sequence = { length: 128, batch: 16 };
const steps = Math.round(Number(values.tokens) / (sequence.length * sequence.batch));
if (!(steps >= 1))
  fail(
    `--tokens ${values.tokens}: a step takes ${sequence.batch} x ${sequence.length}, and one is the least`,
  );
if (!/^\d+$/.test(values.seeds) || Number(values.seeds) < 1 || Number(values.seeds) > student.length)
  fail(`--seeds ${values.seeds}: expected a whole number from 1 to ${student.length}`);
const seeds = Array.from({ length: Number(values.seeds) }, (_, at) => at + 1);

interface Comparison {
  readonly intermediateSize: number;
  readonly variants: Readonly<Record<string, unknown>>;
}

/** Half of the layers choose among four times the cells of a dense layer, of which a token uses as many as it has. */
function blocks(): Comparison {
  const cells = 4 * hiddenSize;
  const sparse = (select: string, parts: number, fields: object = {}) =>
    [1, 3].map((layer) => ({
      kind: 'sparse',
      layers: `${layer}..${layer}`,
      memory: 4 * cells,
      blockSize: cells / parts,
      active: parts,
      select,
      ...fields,
    }));
  const sizes = [1, 4, 16];
  const over = (select: string) =>
    sizes.map((parts): [string, unknown] => [`${select}, g = ${cells / parts}`, sparse(select, parts)]);
  return {
    intermediateSize: cells,
    variants: {
      dense: { kind: 'dense' },
      [`switch, g = ${cells}`]: sparse('switch', 1),
      ...Object.fromEntries([...over('hash'), ...over('avg-k')]),
      [`avg-k, g = ${cells / 4}, gate: sigmoid`]: sparse('avg-k', 4, { gate: 'sigmoid' }),
    },
  };
}

function channels(): Comparison {
  const cells = (8 * hiddenSize) / 3;
  const kept = (active: number, select = 'gate') => ({ kind: 'moc', active, select });
  return {
    intermediateSize: cells,
    variants: {
      dense: { kind: 'dense' },
      ...Object.fromEntries(
        [0.0625, 0.125, 0.1875, 0.25, 0.5].map((share) => [`K = ${100 * share} % of F`, kept(share * cells)]),
      ),
      'K = 18.75 % by magnitude': kept(0.1875 * cells, 'magnitude'),
      'two of eight': { kind: 'moc', select: 'structured' },
    },
  };
}

function shared(): Comparison {
  return {
    intermediateSize: 4 * hiddenSize,
    variants: {
      dense: { kind: 'dense' },
      'one wide for all': { kind: 'wide', width: 'all' },
      'two wide, in sequence': { kind: 'wide', width: 'all', groups: 2 },
      'lower half dropped, one wide': [
        { kind: 'none', layers: '0..1' },
        { kind: 'wide', layers: '2..3', width: 'all' },
      ],
      'upper half dropped, one wide': [
        { kind: 'wide', layers: '0..1', width: 'all' },
        { kind: 'none', layers: '2..3' },
      ],
      'one shared, not wider': { kind: 'wide' },
      'all dropped': { kind: 'none' },
    },
  };
}

const comparisons: Readonly<Record<string, () => Comparison>> = { ffn: blocks, moc: channels, wide: shared };
const [, name = ''] = positionals;
if (!Object.hasOwn(comparisons, name)) fail(`lm ${name}: there are ${Object.keys(comparisons).join(', ')}`);
const { intermediateSize, variants: all } = (comparisons[name] as () => Comparison)();
for (const variant of values.only ?? [])
  if (!Object.hasOwn(all, variant)) fail(`--only ${variant}: there are ${Object.keys(all).join('; ')}`);
const variants = Object.fromEntries(
  Object.entries(all).filter(([variant]) => values.only?.includes(variant) ?? true),
);

const configOf = (ffn: unknown, seed: number) => ({
  name,
  seed,
  run: { dir: 'runs' },
  corpus: { folders: values.folder, mostMB: 12 },
  llm: {
    kind: 'new',
    vocabularySize: 2048,
    hiddenSize,
    intermediateSize,
    layers,
    heads: 4,
    initialDeviation: 0.05,
    ffn,
  },
  train: {
    sequenceLength: sequence.length,
    batchSize: sequence.batch,
    steps,
    learningRate: Number(values.rate),
    warmupSteps: Math.round(steps / 10),
    optimizer: { kind: 'adamw', weightDecay: 0.05 },
    threads: 1,
  },
  evaluate: { tokens: 100_000 },
});

const began = performance.now();
process.stderr.write('reading and tokenising the text\n');
// Once, before two processes would do it side by side.
await tokenizedText(lmSchema.parse(configOf({ kind: 'dense' }, 1)), undefined, {
  note: () => {},
  progress: () => ({ update: () => {}, stop: () => {} }),
});

const jobs = seeds.flatMap((seed) =>
  Object.entries(variants).map(([variant, ffn]) => ({ variant, ffn, seed })),
);
const results = new Map<string, LmResult[]>(Object.keys(variants).map((variant) => [variant, []]));
const waiting = [...jobs];
const run = promisify(execFile);
await Promise.all([worker(), worker()]);

async function worker(): Promise<void> {
  for (let job = waiting.shift(); job !== undefined; job = waiting.shift()) {
    const { variant, ffn, seed } = job;
    const { stdout } = await run(
      'node_modules/.bin/tsx',
      ['bench/lmOnce.ts', JSON.stringify(configOf(ffn, seed))],
      { maxBuffer: 2 ** 26 },
    );
    const result = JSON.parse(stdout.trim().split('\n').at(-1) ?? '') as LmResult;
    (results.get(variant) as LmResult[])[seed - 1] = result;
    process.stderr.write(
      `${variant}, seed ${seed}: perplexity ${trained(result).perplexity.toFixed(3)}, ${result.seconds.toFixed(0)} s\n`,
    );
  }
}

function trained({ measured }: LmResult) {
  return measured.at(-1) as LmResult['measured'][number];
}

/** A mean and half the width of its 95 % interval. */
function interval(numbers: readonly number[]): { mean: number; half: number } {
  const mean = numbers.reduce((total, number) => total + number, 0) / numbers.length;
  const squares = numbers.reduce((total, number) => total + (number - mean) ** 2, 0);
  const deviation = Math.sqrt(squares / (numbers.length - 1));
  const quantile = student[numbers.length - 1] as number;
  return { mean, half: (quantile * deviation) / Math.sqrt(numbers.length) };
}

const shown = ({ mean, half }: { mean: number; half: number }, digits: number, sign = '') =>
  `${mean > 0 ? sign : ''}${mean.toFixed(digits)}${Number.isNaN(half) ? '' : ` ± ${half.toFixed(digits)}`}`;
const dense = results.get('dense');
const rows = [...results].map(([variant, runs]) => {
  const [first] = runs as [LmResult];
  const difference =
    variant === 'dense' || dense === undefined
      ? undefined
      : interval(runs.map((own, at) => trained(own).nll - trained(dense[at] as LmResult).nll));
  return {
    variant,
    perplexity: interval(runs.map((own) => trained(own).perplexity)),
    /** In nats, against the dense model of the same seed. */
    difference,
    parameters: first.parameters,
    activeParameters: first.activeParameters,
    flopsPerToken: first.flopsPerToken,
    entropy: meanOf(runs, 'entropy'),
    overflow: meanOf(runs, 'overflow'),
    held: first.held.reduce((total, { elements, layers: own }) => total + elements * own.length, 0),
    seconds: interval(runs.map(({ seconds }) => seconds)).mean,
  };
});
const minutes = (performance.now() - began) / 60_000;

/** Over layers and seeds; null where nothing chooses. */
function meanOf(runs: readonly LmResult[], statistic: string): number | null {
  const found = runs
    .flatMap(({ feedForward = {} }) => Object.entries(feedForward))
    .filter(([key]) => key.endsWith(`.${statistic}`));
  return found.length === 0 ? null : found.reduce((total, [, value]) => total + value, 0) / found.length;
}

if (values.json)
  process.stdout.write(
    `${JSON.stringify({ benchmark: `lm ${name}`, seeds: seeds.length, steps, minutes, rows })}\n`,
  );
else {
  const table = formatTable(
    [
      'feed-forward',
      'perplexity',
      'nats above dense',
      'M parameters',
      'M used',
      'MFLOP/token',
      'entropy',
      's a run',
    ],
    rows.map(
      ({
        variant,
        perplexity,
        difference,
        parameters,
        activeParameters,
        flopsPerToken,
        entropy,
        seconds,
      }) => [
        variant,
        shown(perplexity, 2),
        difference === undefined ? '' : shown(difference, 4, '+'),
        (parameters / 1e6).toFixed(2),
        (activeParameters / 1e6).toFixed(2),
        (flopsPerToken.forward / 1e6).toFixed(2),
        entropy === null ? '' : entropy.toFixed(2),
        Math.round(seconds),
      ],
    ),
  );
  process.stdout.write(
    `${steps} steps of ${sequence.batch} x ${sequence.length} tokens, ${seeds.length} seeds, ${minutes.toFixed(1)} minutes\n\n${table}\n`,
  );
}
