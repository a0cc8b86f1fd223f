/**
 * Benchmarks: `npm run bench -- NAME [--shape SHAPE] [--steps N] [--rounds N] [--peers] [--recompute] [--optimizer]
 * [--json]`. `--recompute` compares with the same step that computes the activations of every layer again.
 * Every measurement runs in a process of its own; rounds alternate between palkit and its peers (A B A B), because
 * these machines are shared and drift.
 */
import { execFileSync } from 'node:child_process';
import { existsSync } from 'node:fs';
import { parseArgs } from 'node:util';
import { formatTable } from '../src/cli/terminal/table.ts';
import { benchShapes } from './models.ts';

const { positionals, values } = parseArgs({
  allowPositionals: true,
  options: {
    shape: { type: 'string', default: 'smollm2-135m' },
    steps: { type: 'string', default: '6' },
    rounds: { type: 'string', default: '2' },
    python: { type: 'string', default: 'python3' },
    peers: { type: 'boolean', default: false },
    optimizer: { type: 'boolean', default: false },
    recompute: { type: 'boolean', default: false },
    json: { type: 'boolean', default: false },
  },
});

interface Run {
  /** Milliseconds of each step; the first one warms up and is left out of the median. */
  readonly times: readonly number[];
  readonly peakMB: number;
  /** Peak of the activations, read off the program; a peer does not tell it. */
  readonly activationMB?: number;
}

interface Contender {
  readonly name: string;
  readonly run: () => Run;
}

const [name] = positionals;
if (name !== 'train-step') fail(`benchmark "${name ?? ''}": there is train-step`);
if (!Object.hasOwn(benchShapes, values.shape))
  fail(`--shape ${values.shape}: there are ${Object.keys(benchShapes).join(', ')}`);

const rounds = Number(values.rounds);
const contenders = [
  palkit(),
  ...(values.recompute ? [palkit('--recompute')] : []),
  ...(values.peers ? [torch(false), torch(true)] : []),
];
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
  activationMB: runs[0]?.activationMB,
}));
const [own, ...peers] = rows as [(typeof rows)[number], ...typeof rows];
const ratios = peers.map((peer) => ({
  peer: peer.name,
  throughput: peer.medianMs / own.medianMs,
  throughputOfBest: peer.bestMs / own.bestMs,
  memory: own.peakMB / peer.peakMB,
  activations:
    own.activationMB === undefined || peer.activationMB === undefined
      ? undefined
      : own.activationMB / peer.activationMB,
}));
if (values.json) process.stdout.write(`${JSON.stringify({ benchmark: name, ...values, rows, ratios })}\n`);
else {
  const table = formatTable(
    [
      'train-step',
      'median ms',
      'best ms',
      'activation MB',
      'peak MB',
      'palkit: throughput',
      'activations',
      'memory',
    ],
    rows.map((row) => {
      const ratio = ratios.find(({ peer }) => peer === row.name);
      const compared = ratio
        ? [times(ratio.throughput), times(ratio.activations), times(ratio.memory)]
        : ['', '', ''];
      const { medianMs, bestMs, activationMB = '', peakMB } = row;
      return [row.name, Math.round(medianMs), Math.round(bestMs), activationMB, peakMB, ...compared];
    }),
  );
  process.stdout.write(`${values.shape}, batch 4 x 128 tokens, float32, 2 threads\n\n${table}\n`);
}

function times(ratio: number | undefined): string {
  return ratio === undefined ? '' : `${ratio.toFixed(2)} x`;
}

function palkit(...flags: string[]): Contender {
  const script = ['bench/trainStepOnce.ts', values.shape, values.steps, ...flags];
  if (values.optimizer) script.push('--optimizer');
  return { name: ['palkit', ...flags].join(' '), run: () => measure('node_modules/.bin/tsx', script) };
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

function measure(command: string, script: readonly string[]): Run {
  if (command.includes('/') && !existsSync(command)) fail(`${command}: is not there`);
  const text = execFileSync(command, script, { encoding: 'utf8', stdio: ['ignore', 'pipe', 'inherit'] });
  return JSON.parse(text.trim().split('\n').at(-1) ?? '') as Run;
}

function median(numbers: readonly number[]): number {
  const sorted = [...numbers].sort((a, b) => a - b);
  const middle = sorted.length / 2;
  const [low, high] = [sorted[Math.ceil(middle) - 1], sorted[Math.floor(middle)]];
  return ((low ?? Number.NaN) + (high ?? Number.NaN)) / 2;
}

function fail(message: string): never {
  process.stderr.write(`${message}\n`);
  process.exit(2);
}
