/** Training moves what a configuration declares, and nothing else: by the bytes of every tensor. */
import { join } from 'node:path';
import { afterAll, beforeAll, it } from 'vitest';
import { loadExperiment } from '../../src/config/load.ts';
import type { Tensor } from '../../src/tensor/tensor.ts';
import { newestCheckpoint } from '../../src/train/checkpoint.ts';
import { runTraining } from '../../src/train/run.ts';
import { makeWorld, silentWatch, type World } from './fixture.ts';

let world: World;
beforeAll(async () => {
  world = await makeWorld();
});
afterAll(() => world.remove());

const lora = '{ rank: 2, alpha: 4, dropout: 0.25, targets: [q_proj, "*.mlp.*"], layers: 1..2 }';

async function train(name: string, trainable: string, ...overrides: string[]) {
  const dir = join(world.folder, name);
  const stages = `[{ name: only, steps: 4, learningRate: 0.01, trainable: ${trainable} }]`;
  const { experiment } = await loadExperiment(world.config, [
    `run.dir=${dir}`,
    `train.stages=${stages}`,
    ...overrides,
  ]);
  await runTraining(experiment, { watch: silentWatch, resume: true, evaluate: false });
  return (await newestCheckpoint(join(dir, 'checkpoints'), () => undefined))?.parameters as ReadonlyMap<
    string,
    Tensor
  >;
}

it('lora', async () => {
  const a = await train('lora', '["lora.*"]', `llm.lora=${lora}`);
  console.log([...a.keys()]);
});
