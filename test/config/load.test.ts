import { mkdtemp, readdir, rm, symlink, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import fc from 'fast-check';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { z } from 'zod';
import { ConfigError } from '../../src/config/configError.ts';
import { lmSchema } from '../../src/config/lmSchema.ts';
import { formatExperiment, loadExperiment, loadYaml } from '../../src/config/load.ts';
import { experimentSchema } from '../../src/config/schema.ts';

let folder: string;
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'palkit-config-'));
});
afterAll(() => rm(folder, { recursive: true }));

const smallest = `name: small
run: { dir: runs/small }
llm: { from: models/sound-world }
data: { dataset: sound-world, dir: data/sound-world }
streams:
  - name: timbre
    encoder: timbre
    connector: { kind: mlp }
    integration: { mode: attention-only }
train:
  stages:
    - { name: all, trainable: ["connector.*"], steps: 10, learningRate: 1e-3 }
`;

async function write(text: string | Uint8Array, name = 'experiment.yaml'): Promise<string> {
  const path = join(folder, name);
  await writeFile(path, text);
  return path;
}

/** The message of the ConfigError, with the folder's name left out. */
async function messageOf(attempt: Promise<unknown>): Promise<string> {
  const error = await attempt.then(
    () => undefined,
    (reason: unknown) => reason,
  );
  expect(error).toBeInstanceOf(ConfigError);
  return error instanceof ConfigError ? error.message.replaceAll(`${folder}/`, '') : '';
}

const change = (from: string, to: string) => {
  expect(smallest).toContain(from);
  return smallest.replace(from, to);
};

describe('problems of a file', () => {
  const first = (message: string) => message.split('\n')[0];
  const cases: [string, () => string, string][] = [
    [
      'a misspelt field',
      () => change('{ mode: attention-only }', '{ mode: attention-only, startlayer: 2 }'),
      'experiment.yaml:9:42  streams.0.integration.startlayer: unknown field (did you mean "startLayer"?)',
    ],
    [
      'an unknown field like no other',
      () => change('run: { dir: runs/small }', 'run: { dir: runs/small, xylophone: 1 }'),
      'experiment.yaml:2:25  run.xylophone: unknown field; known here: dir',
    ],
    [
      'a feed-forward layer that does not say how tokens choose',
      () =>
        change(
          'llm: { from: models/sound-world }',
          'llm: { from: models/sound-world, ffn: { kind: sparse, blockSize: 4 } }',
        ),
      'experiment.yaml:3:34  llm.ffn.select: is missing; one of switch, topk, hash, avg-k, vanilla-memory, pkm, lowrank-memory',
    ],
    [
      'a field of another way to choose',
      () =>
        change(
          'llm: { from: models/sound-world }',
          'llm: { from: models/sound-world, ffn: { kind: sparse, select: switch, blockSize: 4, heads: 2 } }',
        ),
      'experiment.yaml:3:85  llm.ffn.heads: has no effect with select: switch; only with select: pkm',
    ],
    [
      'a field of sparse feed-forward layers',
      () =>
        change(
          'llm: { from: models/sound-world }',
          'llm: { from: models/sound-world, ffn: { kind: dense, blockSize: 4 } }',
        ),
      'experiment.yaml:3:54  llm.ffn.blockSize: has no effect with kind: dense; only with kind: sparse',
    ],
    [
      'an entry in a list of feed-forward layers',
      () =>
        change(
          'llm: { from: models/sound-world }',
          'llm: { from: models/sound-world, ffn: [{ kind: dense }, { kind: sparse, select: topk, blockSize: 4, active: 0 }] }',
        ),
      'experiment.yaml:3:109  llm.ffn.1.active: expected at least 1, found 0',
    ],
    [
      'feed-forward layers that are neither a map nor a list',
      () => change('llm: { from: models/sound-world }', 'llm: { from: models/sound-world, ffn: 3 }'),
      'experiment.yaml:3:39  llm.ffn: expected map | list of maps, found 3',
    ],
    [
      'a width that is neither a number nor the word',
      () =>
        change(
          'llm: { from: models/sound-world }',
          'llm: { from: models/sound-world, ffn: { kind: wide, width: al } }',
        ),
      'experiment.yaml:3:60  llm.ffn.width: expected whole number | all | null, found "al"',
    ],
    [
      'a shared feed-forward without units',
      () =>
        change(
          'llm: { from: models/sound-world }',
          'llm: { from: models/sound-world, ffn: { kind: wide, width: 0 } }',
        ),
      'experiment.yaml:3:60  llm.ffn.width: expected at least 1, found 0',
    ],
    [
      'more than one block of a switch',
      () =>
        change(
          'llm: { from: models/sound-world }',
          'llm: { from: models/sound-world, ffn: { kind: sparse, select: switch, blockSize: 4, active: 2 } }',
        ),
      'experiment.yaml:3:93  llm.ffn.active: expected at most 1, found 2',
    ],
    [
      'a field of the other mode',
      () => change('{ mode: attention-only }', '{ mode: prefix, audioNorm: own }'),
      'experiment.yaml:9:34  streams.0.integration.audioNorm: has no effect with mode: prefix; only with mode: attention-only',
    ],
    [
      'a field of the other connector',
      () => change('{ kind: mlp }', '{ kind: mlp, tokens: 8 }'),
      'experiment.yaml:8:29  streams.0.connector.tokens: has no effect with kind: mlp; only with kind: latent',
    ],
    [
      'a connector per layer in a prefix stream',
      () =>
        change(
          '{ kind: mlp }\n    integration: { mode: attention-only }',
          '{ kind: mlp, perLayer: true }\n    integration: { mode: prefix }',
        ),
      'experiment.yaml:8:29  streams.0.connector.perLayer: has no effect with mode: prefix; only with mode: attention-only',
    ],
    [
      'startLayer and layers at once',
      () => change('{ mode: attention-only }', '{ mode: prefix, startLayer: 1, layers: [1] }'),
      'experiment.yaml:9:49  streams.0.integration.layers: startLayer and layers exclude each other; keep one of them',
    ],
    [
      'an unknown kind',
      () => change('kind: mlp', 'kind: latents'),
      'experiment.yaml:8:24  streams.0.connector.kind: expected one of mlp, latent; found "latents" (did you mean "latent"?)',
    ],
    [
      'a missing kind',
      () => change('{ kind: mlp }', '{}'),
      'experiment.yaml:8:5  streams.0.connector.kind: is missing; one of mlp, latent',
    ],
    [
      'a value outside an enumeration',
      () => `${smallest}engine: { provider: webgp }\n`,
      'experiment.yaml:13:21  engine.provider: expected one of cpu, webgpu, cuda; found "webgp" (did you mean "webgpu"?)',
    ],
    [
      'an option of the other engine',
      () => `${smallest}engine: { kind: tfjs, provider: cpu }\n`,
      'experiment.yaml:13:23  engine.provider: has no effect with kind: tfjs; only with kind: onnx',
    ],
    [
      'an option of the engine that is not the default',
      () => `${smallest}engine: { backend: wasm }\n`,
      'experiment.yaml:13:11  engine.backend: has no effect with kind: onnx; only with kind: tfjs',
    ],
    [
      'an engine that there is not',
      () => `${smallest}engine: { kind: tfj }\n`,
      'experiment.yaml:13:17  engine.kind: expected one of onnx, tfjs; found "tfj" (did you mean "tfjs"?)',
    ],
    [
      'a missing field',
      () => change('llm: { from: models/sound-world }', 'llm: {}'),
      'experiment.yaml:3:1  llm.from: is missing (The LLM: a folder, a .safetensors or .gguf file, or a name on the Hugging Face hub (organisation/name[@revision][:file]))',
    ],
    [
      'a fraction for a whole number',
      () => `${smallest}seed: 1.5\n`,
      'experiment.yaml:13:7  seed: expected a whole number, found 1.5',
    ],
    [
      'a quoted number',
      () => `${smallest}seed: "7"\n`,
      'experiment.yaml:13:7  seed: expected a whole number, found "7"; without quotes?',
    ],
    [
      'nothing',
      () => `${smallest}seed:\n`,
      'experiment.yaml:13:6  seed: expected a whole number, found nothing',
    ],
    [
      'infinity',
      () => change('learningRate: 1e-3', 'learningRate: .inf'),
      'experiment.yaml:12:73  train.stages.0.learningRate: expected a number, found Infinity',
    ],
    [
      'a number that is too small',
      () => change('steps: 10', 'steps: 0'),
      'experiment.yaml:12:55  train.stages.0.steps: expected at least 1, found 0',
    ],
    [
      'an empty list',
      () => change('["connector.*"]', '[]'),
      'experiment.yaml:12:31  train.stages.0.trainable: expected at least 1 entry, found an empty list',
    ],
    [
      'a name with a dot',
      () => change('name: timbre', 'name: tim.bre'),
      'experiment.yaml:6:11  streams.0.name: expected letters, digits, "-" and "_", beginning with a letter or digit, found "tim.bre"',
    ],
    [
      'more warm-up than steps',
      () => change('steps: 10', 'warmupSteps: 11, steps: 10'),
      'experiment.yaml:12:48  train.stages.0.warmupSteps: 11 steps of warm-up do not fit into 10 steps',
    ],
    [
      'a rising learning rate',
      () => change('steps: 10', 'finalLearningRate: 0.1, steps: 10'),
      'experiment.yaml:12:48  train.stages.0.finalLearningRate: 0.1 is above learningRate (0.001); the rate only falls',
    ],
    [
      'a GPU for a provider without a choice of them',
      () => `${smallest}engine: { provider: webgpu, device: 1 }\n`,
      'experiment.yaml:13:29  engine.device: has no effect with provider: webgpu; only with provider: cuda',
    ],
    [
      'TF32 on the default provider',
      () => `${smallest}engine: { tf32: false }\n`,
      'experiment.yaml:13:11  engine.tf32: has no effect with provider: cpu; only with provider: cuda',
    ],
    [
      'a precision that there is not',
      () => change('train:', 'train:\n  precision: fp16'),
      'experiment.yaml:11:14  train.precision: expected one of float32, float16, bfloat16; found "fp16"',
    ],
    [
      'a template without the question',
      () => `${smallest}prompt: { template: "{audio}Answer:" }\n`,
      'experiment.yaml:13:11  prompt.template: {question} is missing, so no question would be asked',
    ],
    [
      'an unknown placeholder',
      () => `${smallest}prompt: { template: "{audio} {question} {choices}:" }\n`,
      'experiment.yaml:13:11  prompt.template: {choices} is no placeholder; there are {audio}, {question} and {options}',
    ],
    [
      'a template without the audio',
      () => `${smallest}prompt: { template: "{question}:" }\n`,
      'experiment.yaml:13:11  prompt.template: {audio} is missing, so there is no place for the audio',
    ],
    [
      'a template with two places for the audio',
      () => `${smallest}prompt: { template: "{audio}{question}{audio}:" }\n`,
      'experiment.yaml:13:11  prompt.template: {audio} stands here more than once; the audio has one place',
    ],
    [
      'a question in front of the audio',
      () => `${smallest}prompt: { template: "{question} {audio}:" }\n`,
      'experiment.yaml:13:11  prompt.template: {question} stands in front of {audio}, where the text must be the same for every question',
    ],
    [
      'a template that ends in a space',
      () => `${smallest}prompt: { template: "{audio}{question} " }\n`,
      'experiment.yaml:13:11  prompt.template: ends in a space; the answer brings its own',
    ],
    [
      'variables of a chat that is none',
      () => `${smallest}prompt: { variables: { enable_thinking: false } }\n`,
      'experiment.yaml:13:11  prompt.variables: has no effect with chat: false; only with chat: true',
    ],
    [
      'the day of a chat that is none',
      () => `${smallest}prompt: { date: "2024-07-05" }\n`,
      'experiment.yaml:13:11  prompt.date: has no effect with chat: false; only with chat: true',
    ],
    [
      'a temperature that nobody uses',
      () => `${smallest}eval: { open: { temperature: 0.5 } }\n`,
      'experiment.yaml:13:17  eval.open.temperature: has no effect with decoding: greedy; leave it at 1 or set decoding: sample',
    ],
    [
      'a stream name used twice',
      () =>
        change(
          'train:\n',
          '  - { name: timbre, encoder: pitch, connector: { kind: mlp }, integration: { mode: prefix } }\ntrain:\n',
        ),
      'experiment.yaml:10:7  streams.1.name: stream timbre is there already (entry 0)',
    ],
    [
      'a prototype name',
      () => `${smallest}__proto__: { polluted: true }\n`,
      'experiment.yaml:13:1  __proto__: "__proto__" is not allowed as a name',
    ],
    [
      'a prototype name further down',
      () => change('{ kind: mlp }', '{ kind: mlp, constructor: {} }'),
      'experiment.yaml:8:29  streams.0.connector.constructor: "constructor" is not allowed as a name',
    ],
    [
      'a field twice',
      () => `${smallest}name: again\n`,
      'experiment.yaml:13:1  not YAML: Map keys must be unique',
    ],
    [
      'a custom tag',
      () => `${smallest}seed: !!js/function "() => 1"\n`,
      'experiment.yaml:13:7  tags are not allowed (Unresolved tag: tag:yaml.org,2002:js/function)',
    ],
    [
      'an alias without an anchor',
      () => `${smallest}seed: *gone\n`,
      'experiment.yaml:13:7  seed: the alias *gone has no anchor',
    ],
    ['a list', () => '- 1\n', 'experiment.yaml:1:1  expected a map, found a list'],
    ['an empty file', () => '# nothing here\n', 'experiment.yaml: is empty'],
  ];

  test.each(cases)('%s', async (_, text, expected) => {
    expect(first(await messageOf(loadExperiment(await write(text()))))).toBe(expected);
  });

  test('every problem is listed in the order of the file, each with its line and a caret', async () => {
    const text = change('name: small', 'nam: small').replace('steps: 10', 'steps: ten');
    expect(await messageOf(loadExperiment(await write(text)))).toBe(
      [
        'experiment.yaml:1:1  name: is missing (Name of the experiment)',
        '    1 | nam: small',
        '      | ^',
        'experiment.yaml:1:1  nam: unknown field (did you mean "name"?)',
        '    1 | nam: small',
        '      | ^',
        'experiment.yaml:12:55  train.stages.0.steps: expected a whole number, found "ten"',
        '   12 |     - { name: all, trainable: ["connector.*"], steps: ten, learningRate: 1e-3 }',
        '      |                                                       ^',
      ].join('\n'),
    );
  });

  test('control characters of the file do not reach the message', async () => {
    const message = await messageOf(loadExperiment(await write(`${smallest}seed: "\u001b]0;title\u0007"\n`)));
    expect(message).toContain('seed: expected a whole number');
    expect(message).not.toMatch(/[^\P{Cc}\n]/u);
  });
});

describe('hostile and broken files', () => {
  test('an alias bomb is refused before it is expanded', async () => {
    const layers = Array.from(
      { length: 30 },
      (_, i) => `a${i}: &a${i} [${`*a${i - 1},`.repeat(i === 0 ? 0 : 9)}1]`,
    );
    expect(await messageOf(loadExperiment(await write(layers.join('\n'))))).toContain(
      'more than 100 aliases',
    );
  });

  test('an alias inside its own anchor', async () => {
    expect(await messageOf(loadExperiment(await write('a: &a [*a]')))).toMatch(
      /more than (64 levels|100 aliases)/,
    );
  });

  test('half a million brackets', async () => {
    expect(await messageOf(loadExperiment(await write('['.repeat(500_000))))).toMatch(
      /nested too deeply|not YAML/,
    );
  });

  test('a file above the limit', async () => {
    const path = await write(new Uint8Array(1_000_001).fill(0x20));
    expect(await messageOf(loadExperiment(path))).toBe(
      'experiment.yaml: has 1000001 bytes; a YAML file may have 1000000',
    );
  });

  test('bytes that are not UTF-8', async () => {
    const path = await write(new Uint8Array([0x6e, 0xff, 0xfe]));
    expect(await messageOf(loadExperiment(path))).toBe('experiment.yaml: is not UTF-8 text');
  });

  test('a byte-order mark and CRLF are tolerated', async () => {
    const path = await write(`\uFEFF${smallest.replaceAll('\n', '\r\n')}`);
    expect((await loadExperiment(path)).experiment.name).toBe('small');
  });

  test('a missing file: the near name, or the names that are there', async () => {
    await write(smallest);
    expect(await messageOf(loadExperiment(join(folder, 'experimnt.yaml')))).toBe(
      'experimnt.yaml: there is no such file (did you mean "experiment.yaml"?)',
    );
    expect(await messageOf(loadExperiment(join(folder, 'else.yaml')))).toMatch(
      /^else.yaml: there is no such file; \S+ has .*experiment.yaml/,
    );
  });

  test('any text is either loaded or refused with a ConfigError', async () => {
    await fc.assert(
      fc.asyncProperty(fc.string({ unit: 'binary', maxLength: 300 }), async (noise) => {
        const path = await write(`${smallest}${noise}`);
        await loadExperiment(path).catch((error: unknown) => {
          if (!(error instanceof ConfigError)) throw error;
        });
      }),
      { numRuns: 300 },
    );
    expect(Object.prototype).not.toHaveProperty('polluted');
  });
});

describe('extends', () => {
  test('maps merge, lists replace, paths are relative to the file', async () => {
    await write(smallest, 'base.yaml');
    const path = await write(
      `extends: ./base.yaml
name: child
eval: { batchSize: 3 }
train:
  batchSize: 4
  stages: [{ name: one, trainable: ["model.*"], steps: 5, learningRate: 1 }]
`,
      'child.yaml',
    );
    const { experiment, source } = await loadExperiment(path, ['seed=3']);
    expect(experiment).toMatchObject({ name: 'child', run: { dir: 'runs/small' }, eval: { batchSize: 3 } });
    expect(experiment.train.batchSize).toBe(4);
    expect(experiment.train.stages.map(({ name }) => name)).toEqual(['one']);
    expect(source.replaceAll(`${folder}/`, '')).toBe('child.yaml (extends base.yaml; --set seed=3)');
  });

  test('a problem is reported in the file that has it', async () => {
    await write(change('steps: 10', 'steps: 0'), 'base.yaml');
    const path = await write('extends: base.yaml\nseed: -1\n', 'child.yaml');
    const message = await messageOf(loadExperiment(path));
    expect(message).toContain('base.yaml:12:55  train.stages.0.steps');
    expect(message).toContain('child.yaml:2:7  seed: expected at least 0, found -1');
  });

  test('circles, missing files and absolute paths', async () => {
    await write('extends: ./b.yaml\n', 'a.yaml');
    await write('extends: ./a.yaml\n', 'b.yaml');
    expect(await messageOf(loadExperiment(join(folder, 'a.yaml')))).toContain(
      'b.yaml:1:10  extends: goes in a circle: a.yaml -> b.yaml -> a.yaml',
    );
    const lost = await write('extends: ./bas.yaml\n', 'lost.yaml');
    expect(await messageOf(loadExperiment(lost))).toContain(
      'lost.yaml:1:10  extends: bas.yaml: there is no such file (did you mean "base.yaml"?)',
    );
    const absolute = await write('extends: /etc/hosts\n', 'absolute.yaml');
    expect(await messageOf(loadExperiment(absolute))).toContain('relative to this one');
  });

  test('a circle through a symbolic link ends', async () => {
    await write('extends: ./link.yaml\n', 'self.yaml');
    await symlink(join(folder, 'self.yaml'), join(folder, 'link.yaml'));
    expect(await messageOf(loadExperiment(join(folder, 'self.yaml')))).toContain('goes in a circle');
  });
});

describe('overrides', () => {
  test('fields of what may be a map or a list', async () => {
    const path = await write(smallest);
    const ffnOf = async (sets: string[]) => (await loadExperiment(path, sets)).experiment.llm.ffn;
    const sparse = '{ kind: sparse, select: avg-k, blockSize: 4, active: 1 }';
    expect(await ffnOf([`llm.ffn=${sparse}`, 'llm.ffn.active=3'])).toMatchObject({
      active: 3,
      gate: 'indicator',
    });
    expect(await ffnOf([`llm.ffn=[${sparse}]`, 'llm.ffn.0.active=3'])).toMatchObject([{ active: 3 }]);
    expect(await messageOf(loadExperiment(path, [`llm.ffn=[${sparse}]`, 'llm.ffn.1.active=3']))).toContain(
      'llm.ffn has 1 entry (0)',
    );
  });

  test('fields, list entries in both spellings, whole maps, null', async () => {
    const { experiment } = await loadExperiment(await write(smallest), [
      'train.stages.0.steps=20',
      'train.stages[0].learningRate=0.5',
      'streams.0.connector={kind: latent, tokens: 3}',
      'train.clipNorm=null',
      'eval.open.maxNewTokens=5',
      'seed=1',
      'seed=2',
    ]);
    expect(experiment.train.stages[0]).toMatchObject({ steps: 20, learningRate: 0.5 });
    expect(experiment.streams[0]?.connector).toEqual({
      kind: 'latent',
      tokens: 3,
      heads: 4,
      blocks: 1,
      perLayer: false,
    });
    expect(experiment.train.clipNorm).toBeNull();
    expect(experiment.eval.open.maxNewTokens).toBe(5);
    expect(experiment.seed).toBe(2);
  });

  test.each([
    ['train.stage.0.steps=1', 'train.stage: unknown field (did you mean "stages"?)'],
    ['train.stages.7.steps=1', 'train.stages.7: train.stages has 1 entry (0)'],
    ['seed.x=1', 'seed.x: seed is a single value without fields'],
    ['seed', 'expected path.to.field=value'],
    ['a..b=1', 'the path is not of the form path.to.field or path.0.field or path[0].field'],
    ['__proto__.polluted=1', '__proto__.polluted: "__proto__" is not allowed as a name'],
    ['run.constructor=1', 'run.constructor: "constructor" is not allowed as a name'],
    ['seed=x', 'seed: expected a whole number, found "x"'],
    ['seed=[', 'not YAML: Flow sequence must end with a ]'],
    [
      'streams.0.integration.mode=prefixed',
      'streams.0.integration.mode: expected one of prefix, attention-only; found "prefixed" (did you mean "prefix"?)',
    ],
  ])('%s', async (assignment, expected) => {
    const message = await messageOf(loadExperiment(await write(smallest), [assignment]));
    expect(message).toBe(`--set ${assignment}  ${expected}`);
  });

  test('all wrong paths are listed at once', async () => {
    const message = await messageOf(loadExperiment(await write(smallest), ['sed=1', 'evil.limit=3']));
    expect(message.split('\n')).toHaveLength(2);
  });
});

describe('printing', () => {
  test('what is printed loads to the same experiment', async () => {
    const { experiment } = await loadExperiment(await write(smallest));
    await fc.assert(
      fc.asyncProperty(
        fc.record({
          system: fc.string({ unit: 'grapheme', maxLength: 40 }),
          dir: fc.string({ unit: 'grapheme', minLength: 1, maxLength: 40 }),
          epsilon: fc.double({ min: 1e-300, max: 1, noNaN: true }),
          limit: fc.option(fc.integer({ min: 1 })),
        }),
        async ({ system, dir, epsilon, limit }) => {
          const changed = experimentSchema.parse({
            ...experiment,
            run: { dir },
            prompt: { system, template: `${system}{audio}{question} {options}:\n` },
            train: { ...experiment.train, optimizer: { kind: 'adamw', epsilon } },
            eval: { ...experiment.eval, limit },
          });
          const path = await write(formatExperiment(changed), 'printed.yaml');
          expect((await loadExperiment(path)).experiment).toEqual(changed);
        },
      ),
      { numRuns: 100 },
    );
  });

  test('defaults are written out', async () => {
    const { experiment } = await loadExperiment(await write(smallest));
    expect(formatExperiment(experiment)).toContain('      startLayer: 0\n');
    expect(formatExperiment(experiment)).toContain('provider: cpu\n');
  });
});

describe('the shipped experiments', async () => {
  const files = (await readdir('configs', { recursive: true })).filter((name) => name.endsWith('.yaml'));
  // Those in lm/ are no experiments with audio: another schema reads them.
  const [names, ofText] = [false, true].map((isText) =>
    files.filter((name) => name.startsWith('lm/') === isText),
  ) as [string[], string[]];

  test('are all there', () => {
    for (const name of ['default', 'prefix', 'delayed', 'attention-only', 'ensemble', 'hybrid']) {
      expect(names).toContain(`${name}.yaml`);
    }
  });

  test.each(names)('%s loads, is named as its file, and survives printing', async (file) => {
    const { experiment } = await loadExperiment(join('configs', file));
    const name = file.replace('.yaml', '').replaceAll('/', '-');
    expect(experiment.name).toBe(name);
    expect(experiment.run.dir).toBe(`runs/${name}`);
    const printed = await write(formatExperiment(experiment), 'printed.yaml');
    expect((await loadExperiment(printed)).experiment).toEqual(experiment);
  });

  test.each(ofText)('%s loads, is named as its file, and survives printing', async (file) => {
    const experiment = await loadYaml(join('configs', file), lmSchema);
    const name = file.replace('.yaml', '').replaceAll('/', '-');
    expect(experiment.name).toBe(name);
    expect(experiment.run.dir).toBe(`runs/${name}`);
    expect(await loadYaml(await write(formatExperiment(experiment), 'printed.yaml'), lmSchema)).toEqual(
      experiment,
    );
  });

  test('the ensemble is the default', async () => {
    const [a, b] = await Promise.all(
      ['default', 'ensemble'].map((name) => loadExperiment(`configs/${name}.yaml`)),
    );
    const nameless = { name: '', run: { dir: '' } };
    expect({ ...a?.experiment, ...nameless }).toEqual({ ...b?.experiment, ...nameless });
  });
});

test('other YAML files get the same errors', async () => {
  const schema = z.strictObject({
    width: z.int(),
    files: z.record(z.string(), z.strictObject({ size: z.int() })),
  });
  const path = await write('width: 3\nfiles:\n  model: { size: big }\n  other: { sise: 1 }\n');
  expect(await messageOf(loadYaml(path, schema))).toBe(
    [
      'experiment.yaml:3:18  files.model.size: expected a whole number, found "big"',
      '    3 |   model: { size: big }',
      '      |                  ^',
      'experiment.yaml:4:3  files.other.size: is missing',
      '    4 |   other: { sise: 1 }',
      '      |   ^',
      'experiment.yaml:4:12  files.other.sise: unknown field (did you mean "size"?)',
      '    4 |   other: { sise: 1 }',
      '      |            ^',
    ].join('\n'),
  );
});
