/**
 * Numbers that must not drift: the loss of every step of a short run, and the training program of every shipped
 * configuration. A change that means to move them says so: UPDATE_GOLDEN=1 npx vitest run test/train/golden.test.ts
 */
import { createHash } from 'node:crypto';
import { readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { loadExperiment } from '../../src/config/load.ts';
import { loadLlm } from '../../src/llm/weights.ts';
import { simplify } from '../../src/tensor/passes.ts';
import { countFlops, printProgram } from '../../src/tensor/print.ts';
import { answerObjective } from '../../src/train/loss.ts';
import { runTraining } from '../../src/train/run.ts';
import { assemble, initialParameters } from '../../src/train/setup.ts';
import { trainableByStage } from '../../src/train/stage.ts';
import { gradientProgram } from '../../src/train/step.ts';
import { makeWorld, silentWatch, type World } from './fixture.ts';

const path = 'test/golden/training.json';
const update = process.env.UPDATE_GOLDEN === '1';

interface Golden {
  losses: number[];
  programs: Record<string, { sha256: string; nodes: number; flops: number }>;
}

const golden: Golden = update ? { losses: [], programs: {} } : JSON.parse(readFileSync(path, 'utf8'));
let world: World;
beforeAll(async () => {
  world = await makeWorld();
});
afterAll(async () => {
  await world.remove();
  if (update) writeFileSync(path, `${JSON.stringify(golden, null, 2)}\n`);
});

it('the loss of every step of a short run through the three stages', async () => {
  const { experiment } = await loadExperiment(world.config, []);
  await runTraining(experiment, { watch: silentWatch, resume: false, evaluate: false });
  const lines = readFileSync(join(experiment.run.dir, 'metrics.jsonl'), 'utf8').trim().split('\n');
  const losses = lines.map((line) => JSON.parse(line).loss as number);
  if (update) golden.losses = losses.map((loss) => Number(loss.toPrecision(7)));
  expect(losses).toHaveLength(golden.losses.length);
  // Processors differ in how they sum; a change of the mathematics is far larger.
  for (const [step, loss] of losses.entries())
    expect(loss / (golden.losses[step] as number)).toBeCloseTo(1, 3);
});

describe('the training program of', async () => {
  const llm = await loadLlm('models/sound-world');
  const widths = new Map([
    ['timbre', { width: 48 }],
    ['pitch', { width: 48 }],
    ['openwakeword-speech', { width: 96 }],
  ]);
  const configs = readdirSync('configs', { recursive: true, encoding: 'utf8' })
    // Those of language models have a schema of their own.
    .filter((name) => name.endsWith('.yaml') && !name.startsWith('lm/'))
    .sort();
  for (const name of configs) {
    const { experiment } = await loadExperiment(join('configs', name), []);
    // The language models of others are on the hub.
    if (experiment.llm.from !== 'models/sound-world') continue;
    it(name, async () => {
      const frames = new Map(experiment.streams.map((stream) => [stream.name, 30]));
      const model = assemble(experiment, llm, widths, frames);
      const parameters = initialParameters(model, llm.parameters, experiment.seed);
      const trainable = trainableByStage(experiment, parameters.keys()).at(-1) as Set<string>;
      const program = simplify(
        gradientProgram({
          objective: answerObjective(model, { rows: 4, textRows: 24, targets: 16 }),
          trainable: new Map([...parameters].filter(([key]) => trainable.has(key))),
          frozen: new Map([...parameters].filter(([key]) => !trainable.has(key))),
        }),
      );
      const text = printProgram(program);
      const found = {
        sha256: createHash('sha256').update(text).digest('hex'),
        nodes: program.nodes.length,
        flops: countFlops(program),
      };
      if (update) golden.programs[name] = found;
      expect(found).toEqual(golden.programs[name]);
    });
  }
});

describe('the shipped variants of the embedded experiment', () => {
  it('differ in streams alone: same data order, seeds and curriculum, and the same initial LLM', async () => {
    const { experiment: base } = await loadExperiment('configs/default.yaml', []);
    for (const name of ['prefix', 'delayed', 'attention-only', 'ensemble', 'hybrid']) {
      const { experiment } = await loadExperiment(`configs/${name}.yaml`, []);
      const { name: _, run: __, streams: ___, ...rest } = experiment;
      const { name: ____, run: _____, streams: ______, ...expected } = base;
      expect(rest).toEqual(expected);
    }
  });
});
