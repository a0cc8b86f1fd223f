import { createHash } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, it } from 'vitest';
import { loadExperiment } from '../../src/config/load.ts';
import { listCheckpoints } from '../../src/train/checkpoint.ts';
import { type RunResult, runTraining } from '../../src/train/run.ts';
import { makeWorld, silentWatch, type World } from './fixture.ts';

let world: World;
let whole: string;
beforeAll(async () => {
  world = await makeWorld();
  await train('whole', Number.POSITIVE_INFINITY);
  whole = weights('whole');
});
afterAll(() => world.remove());

const folder = (name: string) => join(world.folder, 'runs', name);

/** Trains until somebody interrupts after so many steps; stages end at 6, 12 and 18. */
async function train(name: string, stopAfter: number): Promise<RunResult> {
  const { experiment } = await loadExperiment(world.config, [`run.dir=${folder(name)}`]);
  let asked = 0;
  return runTraining(experiment, {
    watch: silentWatch,
    resume: true,
    evaluate: false,
    interrupted: () => ++asked >= stopAfter,
  });
}

function weights(name: string): string {
  const hash = createHash('sha256');
  for (const file of ['model.safetensors', 'streams.safetensors'])
    hash.update(readFileSync(join(folder(name), 'model', file)));
  return hash.digest('hex');
}

for (const [when, stopAfter] of [
  ['inside a stage', 5],
  ['in the last step of a stage', 6],
  ['in the very last step', 18],
] as const) {
  it(`an interrupt ${when} saves that step, and the same command goes on to the same bits`, async () => {
    const name = String(stopAfter);
    expect(await train(name, stopAfter)).toMatchObject({ finished: false, steps: stopAfter });
    expect((await listCheckpoints(join(folder(name), 'checkpoints'))).at(-1)).toBe(
      `step-${String(stopAfter).padStart(6, '0')}`,
    );
    expect(await train(name, Number.POSITIVE_INFINITY)).toMatchObject({ finished: true, steps: 18 });
    expect(weights(name)).toBe(whole);
  });
}
