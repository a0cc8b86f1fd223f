/**
 * `npm run bench -- compile [--shape SHAPE]... [--frozen] [--rounds N] [--json]`: what it takes to compile a training
 * step, by phase. Without a shape, of the deep one (more than 50,000 nodes) and of SmolLM2-135M's.
 */
import { parseArgs } from 'node:util';
import { formatTable } from '../src/cli/terminal/table.ts';
import { benchShapeName, measureOwn, median } from './measure.ts';

const { values } = parseArgs({
  allowPositionals: true,
  options: {
    shape: { type: 'string', multiple: true, default: ['deep', 'smollm2-135m'] },
    frozen: { type: 'boolean', default: false },
    rounds: { type: 'string', default: '1' },
    json: { type: 'boolean', default: false },
  },
});

interface Run {
  readonly nodes: number;
  readonly phasesMs: Readonly<Record<string, number>>;
  readonly weightsMB: number;
  readonly constantsMB: number;
  readonly beforeMB: number;
  readonly afterMB: number;
  readonly peakMB: number;
}

const shapes = values.shape.map(benchShapeName);
const results = shapes.map((shape) => ({ shape, runs: [] as Run[] }));
for (let round = 0; round < Number(values.rounds); round++) {
  for (const { shape, runs } of results) {
    process.stderr.write(`round ${round + 1}/${values.rounds}: ${shape}\n`);
    runs.push(measureOwn('compileOnce.ts', shape, ...(values.frozen ? ['--frozen'] : [])));
  }
}
const rows = results.map(({ shape, runs }) => {
  const middle = (of: (run: Run) => number) => median(runs.map(of));
  const phases = Object.keys(runs[0]?.phasesMs ?? {});
  return {
    shape,
    nodes: middle(({ nodes }) => nodes),
    phasesMs: Object.fromEntries(
      phases.map((phase) => [phase, middle(({ phasesMs }) => phasesMs[phase] ?? Number.NaN)]),
    ),
    weightsMB: middle(({ weightsMB }) => weightsMB),
    constantsMB: middle(({ constantsMB }) => constantsMB),
    beforeMB: middle(({ beforeMB }) => beforeMB),
    afterMB: middle(({ afterMB }) => afterMB),
    peakMB: middle(({ peakMB }) => peakMB),
  };
});

if (values.json) process.stdout.write(`${JSON.stringify({ benchmark: 'compile', ...values, rows })}\n`);
else {
  const seconds = (ms: number) => (ms / 1000).toFixed(2);
  const phases = Object.keys(rows[0]?.phasesMs ?? {});
  const lines: [string, (row: (typeof rows)[number]) => string | number][] = [
    ['nodes', ({ nodes }) => nodes],
    ...phases.map((phase): [string, (row: (typeof rows)[number]) => string] => [
      `${phase}, s`,
      ({ phasesMs }) => seconds(phasesMs[phase] ?? Number.NaN),
    ]),
    ['all, s', ({ phasesMs }) => seconds(Object.values(phasesMs).reduce((total, ms) => total + ms, 0))],
    ['weights, MB', ({ weightsMB }) => weightsMB],
    ['of them constants of the program, MB', ({ constantsMB }) => constantsMB],
    ['resident before, MB', ({ beforeMB }) => beforeMB],
    ['resident afterwards, MB', ({ afterMB }) => afterMB],
    ['peak, MB', ({ peakMB }) => peakMB],
  ];
  process.stdout.write(
    `${formatTable(
      ['compile', ...shapes],
      lines.map(([name, of]) => [name, ...rows.map(of)]),
    )}\n`,
  );
}
