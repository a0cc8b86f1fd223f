/**
 * `npm run bench -- ffn [--tokens N] [--memory N] [--steps N] [--rounds N] [--json]`: a training step of one
 * feed-forward layer of width 576 (forward, backward, all gradients): dense, and with a quarter of the memory in use.
 */
import { parseArgs } from 'node:util';
import { formatTable } from '../src/cli/terminal/table.ts';
import { alternate, formatRatio, palkit, type Run } from './alternate.ts';

interface FeedForwardRun extends Run {
  readonly gigaflops: number;
}

const { values } = parseArgs({
  allowPositionals: true,
  options: {
    tokens: { type: 'string', default: '2048' },
    memory: { type: 'string', default: '6144' },
    steps: { type: 'string', default: '3' },
    rounds: { type: 'string', default: '2' },
    json: { type: 'boolean', default: false },
  },
});
const memory = Number(values.memory);
const router = { balanceLoss: 0.01, zLoss: 0 };
const averages = { select: 'avg-k', gate: 'indicator', active: 4, blockSize: memory / 16 };
const layers: Readonly<Record<string, object | undefined>> = {
  dense: undefined,
  'switch, 1 of 4, room for 1.25': {
    select: 'switch',
    active: 1,
    blockSize: memory / 4,
    capacityFactor: 1.25,
    ...router,
  },
  'switch, 1 of 4, room for all': { select: 'switch', active: 1, blockSize: memory / 4, ...router },
  'avg-k, 4 of 16, room for 1.25': { ...averages, capacityFactor: 1.25 },
  'avg-k, 4 of 16, room for all': averages,
};
const results = alternate<FeedForwardRun>(
  Object.entries(layers).map(([name, config]) => {
    const kind = config === undefined ? 'dense' : JSON.stringify(config);
    return palkit(name, ['bench/ffnOnce.ts', kind, values.tokens, values.memory, values.steps]);
  }),
  Number(values.rounds),
).map(({ runs, ...measured }) => ({ ...measured, gigaflops: runs[0]?.gigaflops ?? 0 }));
const [dense] = results;
if (values.json) process.stdout.write(`${JSON.stringify({ benchmark: 'ffn', ...values, results })}\n`);
else {
  const table = formatTable(
    ['layer', 'best ms', 'of dense', 'median ms', 'GFLOP', 'of dense', 'process MB'],
    results.map(({ name, bestMs, medianMs, gigaflops, peakMB }) => [
      name,
      Math.round(bestMs),
      formatRatio(bestMs / (dense?.bestMs ?? 0)),
      Math.round(medianMs),
      gigaflops.toFixed(1),
      formatRatio(gigaflops / (dense?.gigaflops ?? 0)),
      peakMB,
    ]),
  );
  process.stdout.write(
    `${values.tokens} tokens, width 576, ${values.memory} cells; all gradients\n\n${table}\n`,
  );
}
