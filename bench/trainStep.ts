/**
 * `npm run bench -- train-step [--shape SHAPE] [--steps N] [--rounds N] [--optimizer] [--recompute] [--peers]
 * [--python FILE] [--json]`: a training step of a language model, with all gradients. `--optimizer` adds clipping and
 * AdamW; `--recompute` compares with the same step that computes the activations of every layer again; `--peers` with
 * PyTorch, eager and compiled.
 */
import { parseArgs } from 'node:util';
import { formatTable } from '../src/cli/terminal/table.ts';
import { alternate, type Contender, formatRatio, palkit, type Run } from './alternate.ts';
import { benchShapeName } from './measure.ts';

interface StepRun extends Run {
  /** Peak of the activations, read off the program; a peer does not tell it. */
  readonly activationMB?: number;
  /** Milliseconds of the optimizer's update in each step. */
  readonly updatesMs?: readonly number[];
}

const { values } = parseArgs({
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
const shape = benchShapeName(values.shape);

const optimizer = values.optimizer ? ['--optimizer'] : [];
const own = (...flags: string[]) =>
  palkit(['palkit', ...flags].join(' '), [
    'bench/trainStepOnce.ts',
    shape,
    values.steps,
    ...flags,
    ...optimizer,
  ]);
const torch = (name: string, ...flags: string[]): Contender => ({
  name: `PyTorch, ${name}`,
  command: values.python,
  script: ['bench/peers/train_step.py', '--shape', shape, '--steps', values.steps, ...flags, ...optimizer],
});
const results = alternate<StepRun>(
  [
    own(),
    ...(values.recompute ? [own('--recompute')] : []),
    ...(values.peers ? [torch('eager'), torch('torch.compile', '--compile')] : []),
  ],
  Number(values.rounds),
).map(({ runs, ...measured }) => {
  const updates = runs.flatMap(({ times, updatesMs }) =>
    (updatesMs ?? []).slice(1).map((ms, at) => ms / (times[at + 1] as number)),
  );
  return {
    ...measured,
    activationMB: runs[0]?.activationMB,
    // The median step's share: both are disturbed together.
    updateShare: updates.length === 0 ? undefined : updates.sort((a, b) => a - b)[updates.length >> 1],
  };
});
const [base, ...others] = results as [(typeof results)[number], ...typeof results];
const ratios = others.map((other) => ({
  name: other.name,
  throughput: other.medianMs / base.medianMs,
  throughputOfBest: other.bestMs / base.bestMs,
  memory: base.peakMB / other.peakMB,
  activations:
    base.activationMB === undefined || other.activationMB === undefined
      ? undefined
      : base.activationMB / other.activationMB,
}));
if (values.json)
  process.stdout.write(`${JSON.stringify({ benchmark: 'train-step', ...values, results, ratios })}\n`);
else {
  const ratioOf = (ratio: number | undefined) => (ratio === undefined ? '' : formatRatio(ratio));
  const table = formatTable(
    [
      'train-step',
      'median ms',
      'best ms',
      'activation MB',
      'peak MB',
      'palkit: throughput',
      'of the best',
      'activations',
      'memory',
    ],
    results.map((result) => {
      const ratio = ratios.find(({ name }) => name === result.name);
      return [
        result.name,
        Math.round(result.medianMs),
        Math.round(result.bestMs),
        result.activationMB ?? '',
        Math.round(result.peakMB),
        ratioOf(ratio?.throughput),
        ratioOf(ratio?.throughputOfBest),
        ratioOf(ratio?.activations),
        ratioOf(ratio?.memory),
      ];
    }),
  );
  const share =
    base.updateShare === undefined
      ? ''
      : `\nThe update takes ${(100 * base.updateShare).toFixed(1)} % of palkit's step\n`;
  process.stdout.write(`${shape}, batch 4 x 128 tokens, float32, 2 threads\n\n${table}\n${share}`);
}
