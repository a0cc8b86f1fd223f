/**
 * Runs one step of an experiment and sends where its kernels ran, in a process of its own:
 * `node tryPlacement.js CONFIG STAGE [OVERRIDE...]`. An empty STAGE is the first.
 */
import { loadExperiment } from '../../config/load.ts';
import { profileStep } from '../../train/profile.ts';
import type { Placement } from './placement.ts';

const [, , config = '', stage = '', ...overrides] = process.argv;

async function place(): Promise<Placement> {
  const { experiment } = await loadExperiment(config, overrides);
  const measured = await profileStep(experiment, {
    watch: { note: () => undefined, progress: () => ({ update: () => undefined, stop: () => undefined }) },
    stage: stage === '' ? undefined : stage,
    warmUps: 0,
    steps: 1,
  });
  return {
    ok: true,
    experiment: measured.experiment,
    stage: measured.stage,
    provider: measured.provider,
    kernels: measured.programs.flatMap(({ kernels }) =>
      kernels.map(({ node, operator, provider, value, types }) => ({
        value: value?.name ?? node,
        primitive: value?.node.primitive ?? null,
        operator,
        provider,
        types: [...types],
      })),
    ),
  };
}

process.send?.(
  await place().catch((error: unknown) => ({
    ok: false,
    reason: error instanceof Error ? error.message : String(error),
  })),
  () => process.exit(0),
);
