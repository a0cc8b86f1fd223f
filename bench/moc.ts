/**
 * `npm run bench -- moc [--rounds N] [--json]`: a mixture of channels beside the dense layer, on two threads: a training
 * step of one layer of width 576, a training step of SmolLM2-135M's shape, what a layer holds for the backward pass, and
 * a generation step of layers of width 2048.
 */
import { parseArgs } from 'node:util';
import { formatTable } from '../src/cli/terminal/table.ts';
import { alternate, formatRatio, type Measured, palkit, type Run } from './alternate.ts';
import { median } from './measure.ts';

const { values } = parseArgs({
  allowPositionals: true,
  options: { rounds: { type: 'string', default: '3' }, json: { type: 'boolean', default: false } },
});
const rounds = Number(values.rounds);
const mixture = { kind: 'moc', active: null, select: 'gate', recompute: false };
const kinds: Readonly<Record<string, object>> = {
  dense: { kind: 'dense' },
  'K = d/2': mixture,
  'K = d/2, recomputing': { ...mixture, recompute: true },
  'K = d/2 by magnitude': { ...mixture, select: 'magnitude' },
  'two of eight': { ...mixture, select: 'structured' },
};

interface Held extends Run {
  readonly activationMB: number;
  readonly countedMB: number;
}

const contenders = (script: (config: string) => readonly string[]) =>
  Object.entries(kinds).map(([name, config]) => palkit(name, script(JSON.stringify(config))));
const layer = alternate<Run>(
  contenders((config) => ['bench/ffnOnce.ts', config, '2048', '1536', '8']),
  rounds,
);
const model = alternate<Run>(
  contenders((config) => ['bench/trainStepOnce.ts', 'smollm2-135m', '4', '--optimizer', '--ffn', config]),
  rounds,
);
const depths = [2, 6] as const;
const stacks = depths.map((depth) =>
  alternate<Held>(
    contenders((config) => ['bench/mocOnce.ts', 'train', config, String(depth), '2048', '576', '1536', '2']),
    1,
  ),
);
const generation = alternate<Run>(
  contenders((config) => ['bench/mocOnce.ts', 'decode', config, '4', '1', '2048', '8192', '40']),
  rounds,
);

/** What one layer more adds, in megabytes. */
const held = Object.keys(kinds).map((name, at) => {
  const [few, many] = stacks.map((stack) => stack[at] as Measured<Held>) as [Measured<Held>, Measured<Held>];
  const added = (field: 'activationMB' | 'countedMB') =>
    (median(many.runs.map((run) => run[field])) - median(few.runs.map((run) => run[field]))) /
    (depths[1] - depths[0]);
  return { name, measuredMB: added('activationMB'), countedMB: added('countedMB') };
});

const plain = (results: readonly Measured<Run>[]) =>
  results.map(({ name, medianMs, bestMs, peakMB }) => ({ name, medianMs, bestMs, peakMB }));
if (values.json) {
  const results = { layer: plain(layer), model: plain(model), held, generation: plain(generation) };
  process.stdout.write(`${JSON.stringify({ benchmark: 'moc', rounds, results })}\n`);
} else {
  const times = (title: string, results: readonly Measured<Run>[], per = 1) => {
    const [dense] = results;
    const table = formatTable(
      ['feed-forward', 'best ms', 'of dense', 'median ms', 'of dense', 'process MB'],
      results.map(({ name, bestMs, medianMs, peakMB }) => [
        name,
        (bestMs / per).toFixed(1),
        formatRatio(bestMs / (dense?.bestMs ?? 0)),
        (medianMs / per).toFixed(1),
        formatRatio(medianMs / (dense?.medianMs ?? 0)),
        peakMB,
      ]),
    );
    return `${title}\n\n${table}`;
  };
  const [dense] = held;
  const table = formatTable(
    ['feed-forward', 'measured MB', 'of dense', 'counted MB', 'of dense'],
    held.map(({ name, measuredMB, countedMB }) => [
      name,
      measuredMB.toFixed(1),
      formatRatio(measuredMB / (dense?.measuredMB ?? 0)),
      countedMB.toFixed(1),
      formatRatio(countedMB / (dense?.countedMB ?? 0)),
    ]),
  );
  process.stdout.write(
    `${[
      times('A training step of one layer: 2,048 tokens, width 576, 1,536 channels, all gradients', layer),
      times('A training step of the shape of SmolLM2-135M with AdamW: 4 x 128 tokens', model),
      `What a layer holds for the backward pass, 2,048 tokens, width 576, 1,536 channels: (6 layers - 2 layers) / 4\n\n${table}`,
      times('A generation step of one layer: width 2048, 8,192 channels', generation, 4),
    ].join('\n\n')}\n`,
  );
}
