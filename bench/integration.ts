/**
 * `npm run bench -- integration [--shape SHAPE] [--steps N] [--rounds N] [--json]`: what a training step costs when 512
 * audio tokens are rows in front of 100 text tokens (prefix), and when they give keys and values alone
 * (attention-only), in every layer, with the same LLM, connector and encoder frames.
 */
import { parseArgs } from 'node:util';
import { formatTable } from '../src/cli/terminal/table.ts';
import { alternate, formatRatio, palkit, type Run } from './alternate.ts';
import { benchShapeName } from './measure.ts';

interface IntegrationRun extends Run {
  readonly stepMB: number;
  readonly activationMB: number;
  readonly gigaflops: number;
}

const { values } = parseArgs({
  allowPositionals: true,
  options: {
    shape: { type: 'string', default: 'smollm2-135m' },
    steps: { type: 'string', default: '4' },
    rounds: { type: 'string', default: '2' },
    json: { type: 'boolean', default: false },
  },
});
const shape = benchShapeName(values.shape);
const results = alternate<IntegrationRun>(
  ['prefix', 'attention-only'].map((mode) =>
    palkit(mode, ['bench/integrationOnce.ts', shape, mode, values.steps]),
  ),
  Number(values.rounds),
).map(({ runs, ...measured }) => {
  const { activationMB = 0, gigaflops = 0 } = runs[0] ?? {};
  return { ...measured, stepMB: Math.max(...runs.map(({ stepMB }) => stepMB)), activationMB, gigaflops };
});
type Result = (typeof results)[number];
const [prefix, attentionOnly] = results as [Result, Result];
const fields = ['medianMs', 'bestMs', 'stepMB', 'activationMB', 'peakMB', 'gigaflops'] as const;
const ratios = Object.fromEntries(fields.map((field) => [field, attentionOnly[field] / prefix[field]]));
if (values.json)
  process.stdout.write(`${JSON.stringify({ benchmark: 'integration', ...values, results, ratios })}\n`);
else {
  const row = (name: string, cells: readonly (number | string)[]) => [name, ...cells];
  const table = formatTable(
    ['integration', 'median ms', 'best ms', 'memory of a step MB', 'by liveness MB', 'process MB', 'GFLOP'],
    [
      ...results.map((result) =>
        row(
          result.name,
          fields.map((field) => Math.round(result[field])),
        ),
      ),
      row(
        'attention-only / prefix',
        fields.map((field) => formatRatio(ratios[field] as number)),
      ),
    ],
  );
  process.stdout.write(
    `${shape}, batch 4, 512 audio and 100 text tokens, 16 of them with a loss; all parameters train\n\n${table}\n`,
  );
}
