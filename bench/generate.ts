/**
 * `npm run bench -- generate [--shape SHAPE] [--prompt N] [--tokens N] [--rounds N] [--peers] [--python FILE] [--json]`:
 * milliseconds of each new token of a greedy answer, float32 on two threads. `--peers` compares with transformers and
 * with llama.cpp on an F32 file.
 */
import { parseArgs } from 'node:util';
import { formatTable } from '../src/cli/terminal/table.ts';
import { alternate, type Contender, formatRatio, palkit, type Run } from './alternate.ts';
import { benchShapeName } from './measure.ts';

interface GenerateRun extends Run {
  readonly version?: string;
}

const { values } = parseArgs({
  allowPositionals: true,
  options: {
    shape: { type: 'string', default: 'smollm2-135m' },
    prompt: { type: 'string', default: '64' },
    tokens: { type: 'string', default: '64' },
    rounds: { type: 'string', default: '3' },
    python: { type: 'string', default: 'python3' },
    peers: { type: 'boolean', default: false },
    json: { type: 'boolean', default: false },
  },
});
const shape = benchShapeName(values.shape);
const { prompt, tokens } = values;

const peer = (name: string, file: string): Contender => ({
  name,
  command: values.python,
  script: [`bench/peers/${file}`, '--shape', shape, '--prompt', prompt, '--tokens', tokens],
});
// The first of each run's times is the prompt's, with all that comes before it.
const results = alternate<GenerateRun>(
  [
    palkit('palkit', ['bench/generateOnce.ts', shape, prompt, tokens]),
    ...(values.peers
      ? [peer('transformers', 'generate_transformers.py'), peer('llama.cpp', 'generate_llama_cpp.py')]
      : []),
  ],
  Number(values.rounds),
);
const [base, ...others] = results as [(typeof results)[number], ...typeof results];
const ratios = others.map(({ name, medianMs, bestMs, runs }) => ({
  name,
  version: runs[0]?.version,
  tokensPerSecond: medianMs / base.medianMs,
  tokensPerSecondOfBest: bestMs / base.bestMs,
}));
if (values.json) {
  process.stdout.write(`${JSON.stringify({ benchmark: 'generate', ...values, results, ratios })}\n`);
} else {
  const rows = results.map(({ name, medianMs, bestMs, peakMB }) => [
    name,
    medianMs.toFixed(1),
    bestMs.toFixed(1),
    (1000 / medianMs).toFixed(1),
    peakMB.toFixed(0),
  ]);
  process.stdout.write(`${formatTable(['', 'ms a token', 'best', 'tokens a second', 'peak MB'], rows)}\n`);
  for (const { name, version, tokensPerSecond, tokensPerSecondOfBest } of ratios) {
    process.stdout.write(
      `tokens a second against ${name} (${version}): ${formatRatio(tokensPerSecond)}, of the best ${formatRatio(tokensPerSecondOfBest)}\n`,
    );
  }
}
