/**
 * `npm run bench -- train-step [--shape SHAPE] [--steps N] [--rounds N] [--peers] [--optimizer] [--json]`.
 * Every measurement runs in a process of its own; rounds alternate between palkit and its peers (A B A B), because
 * these machines are shared and drift.
 */
import { parseArgs } from 'node:util';
import { formatTable } from '../src/cli/terminal/table.ts';
import { benchShapeName, measure, measureOwn, median } from './measure.ts';

const { positionals, values } = parseArgs({
  allowPositionals: true,
  options: {
    shape: { type: 'string', default: 'smollm2-135m' },
    steps: { type: 'string', default: '6' },
    rounds: { type: 'string', default: '2' },
    python: { type: 'string', default: 'python3' },
    peers: { type: 'boolean', default: false },
    optimizer: { type: 'boolean', default: false },
    json: { type: 'boolean', default: false },
  },
});

interface Run {
  /** Milliseconds of each step; the first one warms up and is left out of the median. */
  readonly times: readonly number[];
  readonly peakMB: number;
}

interface Contender {
  readonly name: string;
  readonly run: () => Run;
}

const [name] = positionals;
benchShapeName(values.shape);

const rounds = Number(values.rounds);
const contenders = values.peers ? [palkit(), torch(false), torch(true)] : [palkit()];
const results = new Map<Contender, Run[]>(contenders.map((contender) => [contender, []]));
for (let round = 0; round < rounds; round++) {
  for (const contender of contenders) {
    process.stderr.write(`round ${round + 1}/${rounds}: ${contender.name}\n`);
    results.get(contender)?.push(contender.run());
  }
}
const rows = [...results].map(([contender, runs]) => ({
  name: contender.name,
  medianMs: median(runs.flatMap(({ times }) => times.slice(1))),
  bestMs: Math.min(...runs.flatMap(({ times }) => times.slice(1))),
  peakMB: median(runs.map(({ peakMB }) => peakMB)),
}));
const [own, ...peers] = rows as [(typeof rows)[number], ...typeof rows];
const ratios = peers.map((peer) => ({
  peer: peer.name,
  throughput: peer.medianMs / own.medianMs,
  throughputOfBest: peer.bestMs / own.bestMs,
  memory: own.peakMB / peer.peakMB,
}));
if (values.json) process.stdout.write(`${JSON.stringify({ benchmark: name, ...values, rows, ratios })}\n`);
else {
  const table = formatTable(
    ['train-step', 'median ms', 'best ms', 'peak MB', 'palkit: throughput', 'memory'],
    rows.map((row) => {
      const ratio = ratios.find(({ peer }) => peer === row.name);
      const compared = ratio
        ? [`${ratio.throughput.toFixed(2)} x`, `${ratio.memory.toFixed(2)} x`]
        : ['', ''];
      return [row.name, Math.round(row.medianMs), Math.round(row.bestMs), row.peakMB, ...compared];
    }),
  );
  process.stdout.write(`${values.shape}, batch 4 x 128 tokens, float32, 2 threads\n\n${table}\n`);
}

function palkit(): Contender {
  const options = values.optimizer ? ['--optimizer'] : [];
  return {
    name: 'palkit',
    run: () => measureOwn('trainStepOnce.ts', values.shape, values.steps, ...options),
  };
}

function torch(compiled: boolean): Contender {
  const script = ['bench/peers/train_step.py', '--shape', values.shape, '--steps', values.steps];
  if (values.optimizer) script.push('--optimizer');
  if (compiled) script.push('--compile');
  return {
    name: compiled ? 'PyTorch, torch.compile' : 'PyTorch, eager',
    run: () => measure(values.python, script),
  };
}
