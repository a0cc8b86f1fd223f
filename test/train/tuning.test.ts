/** Training moves what a configuration declares, and nothing else: by the bytes of every tensor. */
import { readFileSync } from 'node:fs';
import { readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { loadExperiment } from '../../src/config/load.ts';
import type { Experiment } from '../../src/config/schema.ts';
import type { ParameterTensors } from '../../src/tensor/parameters.ts';
import { loadModel } from '../../src/train/modelFolder.ts';
import { runTraining } from '../../src/train/run.ts';
import { assemble, initialParameters, loadExperimentLlm } from '../../src/train/setup.ts';
import type { StageTrains } from '../../src/train/trains.ts';
import { makeWorld, silentWatch, type World } from './fixture.ts';

let world: World;
beforeAll(async () => {
  world = await makeWorld();
});
afterAll(() => world.remove());

const widths = new Map([['timbre', { width: 48 }]]);

interface Outcome {
  readonly before: ParameterTensors;
  readonly after: ParameterTensors;
  readonly losses: readonly number[];
  readonly announced: readonly StageTrains[];
}

let runs = 0;

/** Trains in a folder of its own; `stopAt` interrupts after so many steps and then goes on. */
async function train(
  overrides: readonly string[],
  { config = world.config, stopAt }: { config?: string; stopAt?: number } = {},
): Promise<Outcome> {
  const dir = join(world.folder, `run-${++runs}`);
  const { experiment } = await loadExperiment(config, [...overrides, `run.dir=${dir}`]);
  let announced: readonly StageTrains[] = [];
  let asked = 0;
  const once = (interrupted: () => boolean) =>
    runTraining(experiment, {
      watch: silentWatch,
      resume: true,
      evaluate: false,
      interrupted,
      announce: (stages) => {
        announced = stages;
      },
    });
  if (stopAt !== undefined) expect(await once(() => ++asked === stopAt)).toMatchObject({ steps: stopAt });
  await once(() => false);
  const lines = (await readFile(join(dir, 'metrics.jsonl'), 'utf8')).trim().split('\n');
  const { parameters } = await loadModel(join(dir, 'model'), (llm, frames) =>
    assemble(experiment, llm, widths, frames),
  );
  return {
    before: await initial(experiment),
    after: parameters,
    losses: lines.map((line) => JSON.parse(line).loss as number),
    announced,
  };
}

async function initial(experiment: Experiment): Promise<ParameterTensors> {
  const llm = await loadExperimentLlm(experiment);
  const model = assemble(experiment, llm, widths, new Map([['timbre', 30]]));
  return initialParameters(model, llm.parameters, experiment.seed);
}

/** The names of the tensors whose bytes differ. */
function moved({ before, after }: Pick<Outcome, 'before' | 'after'>): string[] {
  expect([...after.keys()].sort()).toEqual([...before.keys()].sort());
  const bytes = (tensors: ParameterTensors, name: string) => {
    const { buffer, byteOffset, byteLength } = (
      tensors.get(name) as NonNullable<ReturnType<typeof tensors.get>>
    ).data;
    return Buffer.from(buffer, byteOffset, byteLength);
  };
  return [...before.keys()].filter((name) => !bytes(before, name).equals(bytes(after, name)));
}

function namesOf({ before }: Pick<Outcome, 'before'>, wanted: (name: string) => boolean): string[] {
  return [...before.keys()].filter(wanted);
}

const stages = (trainable: string, steps = 4) =>
  `train.stages=[{ name: only, steps: ${steps}, learningRate: 0.01, trainable: ${trainable} }]`;
const lora = 'llm.lora={ rank: 2, alpha: 4, dropout: 0.25, targets: [k_proj, "*.mlp.*"], layers: 1..2 }';

describe('the recipes of docs/tuning.md', () => {
  const recipes: Record<string, (name: string) => boolean> = {
    full: () => true,
    frozen: (name) => name.startsWith('connector.'),
    lora: (name) => /^(connector|lora)\./.test(name) && name !== 'lora.scale',
    'frozen-ffn': (name) => !name.includes('.mlp.'),
    'frozen-attention': (name) => !name.includes('.self_attn.'),
    layers: (name) => /^connector\.|^model\.layers\.[23]\./.test(name),
  };
  const text = readFileSync('docs/tuning.md', 'utf8');
  const fragments = [...text.matchAll(/```yaml\n([\s\S]*?)```/g)].map(([, fragment]) => fragment as string);

  it('are all of those below', () => {
    const last = fragments.map((fragment) => [...fragment.matchAll(/name: ([\w-]+)/g)].at(-1)?.[1]);
    expect(last).toEqual(Object.keys(recipes));
  });

  for (const [index, [name, declared]] of Object.entries(recipes).entries()) {
    it(`${name} trains what it says`, async () => {
      const config = join(world.folder, `${name}.yaml`);
      const fragment = (fragments[index] as string)
        .replace('./default.yaml', './config.yaml')
        .replaceAll(/steps: \d+/g, 'steps: 3');
      await writeFile(config, fragment);
      const outcome = await train(['train.checkpoint.everySteps=100'], { config });
      expect(moved(outcome)).toEqual(namesOf(outcome, declared));
      const last = outcome.announced.at(-1) as StageTrains;
      const trained = new Set(last.groups.map(({ group }) => group.split('.')[0]));
      if (name === 'lora') expect([...trained]).toEqual(['lora']);
      expect(last.all.tensors).toBe(namesOf(outcome, (key) => key !== 'lora.scale').length);
    });
  }
});

describe('low-rank adapters in training', () => {
  const adapters = (name: string) =>
    /^lora\.model\.layers\.[12]\.(self_attn\.k_proj|mlp\.\w+)\.[AB]$/.test(name);
  let whole: Outcome;
  beforeAll(async () => {
    whole = await train([lora, stages('["lora.*"]')]);
  });

  it('alone move, all of them', () => {
    const names = moved(whole);
    expect(names).toHaveLength(2 * 2 * 4);
    expect(names.every(adapters)).toBe(true);
    expect(new Set(whole.losses).size).toBe(4);
  });

  it('are announced with their counts before anything trains', () => {
    const width = 2;
    const mlp = 2 * 3 * width * (32 + 48);
    const attention = 2 * width * (32 + 16);
    expect(whole.announced).toMatchObject([
      {
        stage: 'only',
        groups: [
          { group: 'lora.model.layers.*.mlp', tensors: 12, parameters: mlp },
          { group: 'lora.model.layers.*.self_attn', tensors: 4, parameters: attention },
        ],
        trained: { tensors: 16, parameters: mlp + attention },
      },
    ]);
  });

  it('end with the same bytes after an interruption, masks and all', async () => {
    const resumed = await train([lora, stages('["lora.*"]')], { stopAt: 3 });
    expect(moved({ before: whole.after, after: resumed.after })).toEqual([]);
    expect(resumed.losses).toEqual(whole.losses);
  });

  it('end elsewhere without dropout', async () => {
    const without = await train([lora.replace('0.25', '0'), stages('["lora.*"]')]);
    expect(moved({ before: whole.after, after: without.after }).length).toBeGreaterThan(0);
    // The first step begins with B = 0: no mask shows yet.
    expect(without.losses[0]).toBe(whole.losses[0]);
    expect(without.losses[3]).not.toBe(whole.losses[3]);
  });

  it('end with the same bytes when activations are computed again', async () => {
    const again = await train([lora, stages('["lora.*"]'), 'train.recompute={ kind: all }']);
    expect(moved({ before: whole.after, after: again.after })).toEqual([]);
  });

  it('learn the same on a device, with accumulation and without', async () => {
    const tfjs = 'engine={ kind: tfjs, backend: wasm }';
    const near = (a: readonly number[], b: readonly number[]) => {
      expect(a).toHaveLength(b.length);
      for (const [at, loss] of a.entries()) expect(loss / (b[at] as number)).toBeCloseTo(1, 4);
    };
    near((await train([lora, stages('["lora.*"]'), tfjs])).losses, whole.losses);
    const twice = [lora, stages('["lora.*"]', 2), 'train.accumulate=2', 'train.batchSize=2'];
    near((await train([...twice, tfjs])).losses, (await train(twice)).losses);
  });

  it('learn in half precision, with several sizes of micro-batches', async () => {
    const { losses, ...outcome } = await train([
      lora,
      stages('["lora.*", "connector.*"]'),
      'train.precision=bfloat16',
      'train.batchShapes=2',
      'train.lossOn=all',
    ]);
    expect(losses.every(Number.isFinite)).toBe(true);
    expect(moved(outcome)).toEqual(
      namesOf(outcome, (name) => adapters(name) || name.startsWith('connector.')),
    );
  });
});

describe('a configuration that trains nothing where it says so', () => {
  const failing: Record<string, [overrides: string[], message: string]> = {
    'adapters that no stage trains': [[lora, stages('["connector.*"]')], 'no stage trains "lora.*"'],
    'adapters that are not there': [[stages('["lora.*"]')], '"lora.*" matches no parameter; near to it: '],
    'layers that are not there': [
      [stages('["model.layers.{4..9}.*"]')],
      '"model.layers.{4..9}.*" matches no parameter; its layers are 0 to 3',
    ],
    'a misspelt pattern': [
      [stages('["model.layers.*.self_atn.*"]')],
      'near to it: model.layers.*.self_attn.*',
    ],
    'an exclusion that matches nothing': [[stages('["*", "!*.ffn.*"]')], '"!*.ffn.*" matches no parameter'],
    'an exclusion that takes nothing away': [
      [stages('["connector.*", "!*.mlp.*"]')],
      '"!*.mlp.*" takes nothing away',
    ],
    'exclusions alone': [[stages('["!*.mlp.*"]')], 'begin with "*"'],
    'nothing left': [[stages('["*.mlp.*", "!model.*"]')], 'leave no parameter'],
    'a range that falls': [[stages('["model.layers.{3..1}.*"]')], '1 is below 3'],
    'other braces': [[stages('["model.layers.{1,2}.*"]')], 'braces hold a range of layers'],
  };
  for (const [what, [overrides, message]] of Object.entries(failing)) {
    it(what, async () => {
      await expect(train(overrides)).rejects.toThrow(message);
      await expect(train(overrides)).rejects.toHaveProperty('name', 'ConfigError');
    });
  }
});
