import { defineCommand } from 'citty';
import { loadExperiment } from '../../config/load.ts';
import { findStage } from '../../train/profile.ts';
import { onnxOptions } from '../../train/setup.ts';
import type { Check } from '../doctor/check.ts';
import { checkPlacement, formatPlacement } from '../doctor/placement.ts';
import { checkProviders } from '../doctor/providers.ts';
import { checkSystem } from '../doctor/system.ts';
import { checkTfjs } from '../doctor/tfjs.ts';
import { experimentOptions, experimentOverrides } from '../experimentOptions.ts';
import { exitCodes, UsageError } from '../run.ts';
import { formatTable } from '../terminal/table.ts';
import { terminalWatch } from '../terminal/watch.ts';

const states: Readonly<Record<Check['status'], string>> = { ok: 'ok', optional: '-', missing: 'MISSING' };

export const doctor = defineCommand({
  meta: {
    name: 'doctor',
    description:
      'Check what this machine has, and say what to do about the rest; with an experiment, where its step runs',
  },
  args: {
    config: { type: 'positional', description: 'An experiment whose step is tried', required: false },
    stage: {
      type: 'string',
      description: 'The stage whose step is tried; the first',
      valueHint: 'name or number',
    },
    ...experimentOptions,
    engine: {
      type: 'enum',
      options: ['cpu', 'webgpu', 'cuda'],
      description: "Where the experiment's step is tried; what it names itself",
    },
    json: { type: 'boolean', description: 'Print one JSON document on standard output' },
  },
  async run({ args, rawArgs }) {
    const json = args.json === true;
    const overrides = experimentOverrides(rawArgs);
    if (args.config !== undefined) return placement(args.config, { ...args, overrides, json });
    if (args.engine !== undefined || args.stage !== undefined || overrides.length > 0) {
      throw new UsageError(
        'palkit doctor: --engine, --stage, --set and --on-bad-sample belong to an experiment: ' +
          'palkit doctor --engine webgpu configs/default.yaml',
      );
    }
    return machine(json);
  },
});

async function machine(json: boolean): Promise<number> {
  const checks = [...(await checkSystem()), ...(await checkProviders()), ...(await checkTfjs())];
  const missing = checks.filter(({ status }) => status === 'missing');
  if (json) process.stdout.write(`${JSON.stringify({ ok: missing.length === 0, checks })}\n`);
  else {
    const rows = checks.map(({ what, status, found, advice }) => [states[status], what, found, advice]);
    const verdict =
      missing.length === 0
        ? 'palkit works here. Lines with "-" are optional.'
        : `${missing.length} of the things palkit needs ${missing.length === 1 ? 'is' : 'are'} missing.`;
    process.stdout.write(`${formatTable(['', 'what', 'found', 'what to do'], rows)}\n\n${verdict}\n`);
  }
  return missing.length === 0 ? exitCodes.done : exitCodes.failed;
}

interface PlacementOptions {
  readonly stage?: string | undefined;
  readonly overrides: readonly string[];
  readonly json: boolean;
}

async function placement(config: string, { stage, overrides, json }: PlacementOptions): Promise<number> {
  const { experiment } = await loadExperiment(config, overrides);
  findStage(experiment, stage);
  const { provider } = onnxOptions(experiment);
  terminalWatch(json).note(`running one step on ${provider}, in a process of its own`);
  const report = await checkPlacement(config, { provider, stage, overrides });
  const ok = report.fallbacks.length === 0;
  process.stdout.write(json ? `${JSON.stringify({ ok, ...report })}\n` : `${formatPlacement(report)}\n`);
  return ok ? exitCodes.done : exitCodes.failed;
}
