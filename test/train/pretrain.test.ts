/** `palkit lm` on a small grammar: what it learns, counts, keeps, resumes, converts and refuses. */
import { existsSync, readFileSync } from 'node:fs';
import { cp, readdir, rm, truncate, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { ConfigError } from '../../src/config/configError.ts';
import { lmSchema } from '../../src/config/lmSchema.ts';
import { loadYaml } from '../../src/config/load.ts';
import { onnxEngine } from '../../src/engine/onnx/engine.ts';
import { denseFeedForward } from '../../src/ffn/feedForward.ts';
import { languageModel } from '../../src/llm/decoder.ts';
import { readSafetensors, writeSafetensors } from '../../src/llm/safetensors.ts';
import { loadLlm } from '../../src/llm/weights.ts';
import { interpret } from '../../src/tensor/interpret.ts';
import { frozen } from '../../src/tensor/parameters.ts';
import { simplify } from '../../src/tensor/passes.ts';
import { countFlops } from '../../src/tensor/print.ts';
import type { Value } from '../../src/tensor/program.ts';
import { float32, type Tensor } from '../../src/tensor/tensor.ts';
import { trace } from '../../src/tensor/trace.ts';
import { CheckpointError } from '../../src/train/checkpoint.ts';
import { answerBatch, answerObjective } from '../../src/train/loss.ts';
import { lossProgram, perplexityOf, sequencesOf, textShape } from '../../src/train/perplexity.ts';
import { type LmResult, runLm } from '../../src/train/pretrain.ts';
import { reconstructed, reconstructionObjective } from '../../src/train/reconstruction.ts';
import { gradientProgram } from '../../src/train/step.ts';
import { pretrained, textModel, tokenizedText } from '../../src/train/textModel.ts';
import { silentWatch } from './fixture.ts';
import { makeTextWorld, type TextWorld } from './textWorld.ts';

let world: TextWorld;
/** A dense model that has learned the grammar. */
let dense: { result: LmResult; model: string };

const folderOf = (name: string) => join(world.folder, name);

async function run(
  name: string,
  overrides: readonly string[] = [],
  options: { resume?: boolean; stopAfter?: number } = {},
): Promise<LmResult | undefined> {
  const experiment = await world.experiment(`run.dir=${folderOf(name)}`, ...overrides);
  let steps = 0;
  return runLm(experiment, {
    watch: silentWatch,
    resume: options.resume ?? true,
    interrupted: () => ++steps === options.stopAfter,
  });
}

const finished = async (...given: Parameters<typeof run>) => (await run(...given)) as LmResult;

const bytesOf = (name: string, file = 'model.safetensors') =>
  readFileSync(join(folderOf(name), 'model', file));

interface Line {
  readonly step: number;
  readonly stage: string;
  readonly loss: number;
}
const linesOf = (name: string) =>
  readFileSync(join(folderOf(name), 'metrics.jsonl'), 'utf8')
    .trimEnd()
    .split('\n')
    .map((line) => JSON.parse(line) as Line);

const measuredOf = ({ measured }: LmResult) =>
  Object.fromEntries(measured.map(({ model, nll }) => [model, nll]));

/** Overrides by which the dense model is the one to begin with. */
const converted = (ffn: string) => [
  `llm={ kind: pretrained, from: ${dense.model}, ffn: ${ffn} }`,
  'train.learningRate=0.003',
];

beforeAll(async () => {
  world = await makeTextWorld();
  dense = { result: await finished('dense', ['train.steps=150']), model: join(folderOf('dense'), 'model') };
});
afterAll(() => world.remove());

describe('a new dense model', () => {
  it('learns more than how often each token occurs', async () => {
    const text = await tokenizedText(await world.experiment(), undefined, silentWatch);
    const counts = new Float64Array(text.tokenizer.size).fill(1);
    for (const id of text.training) counts[id] = (counts[id] as number) + 1;
    const total = counts.reduce((sum, count) => sum + count, 0);
    const unigram =
      text.heldOut.reduce((sum, id) => sum - Math.log((counts[id] as number) / total), 0) /
      text.heldOut.length;
    const { initial, trained } = measuredOf(dense.result);
    expect(initial).toBeGreaterThan(unigram);
    expect(trained).toBeLessThan(unigram - 0.3);
    for (const { nll, perplexity, bitsPerByte, tokens } of dense.result.measured) {
      expect(perplexity).toBeCloseTo(Math.exp(nll), 9);
      expect(bitsPerByte).toBeCloseTo((nll / Math.LN2) * (text.heldOut.length / text.heldOutBytes), 9);
      expect(tokens).toBe(Math.floor(600 / 16) * 16);
    }
  });

  it('reads texts as the tokenizer of another model begins and ends them', async () => {
    const experiment = await world.experiment('llm.tokenizer=models/sound-world');
    const { training, heldOut, facts } = await tokenizedText(experiment, undefined, silentWatch);
    const [bos, eos] = [0, 1];
    for (const [ids, files] of [
      [training, facts.files.training],
      [heldOut, facts.files.heldOut],
    ] as const) {
      expect([ids[0], ids.at(-1)]).toEqual([bos, eos]);
      expect([bos, eos].map((id) => ids.filter((own) => own === id).length)).toEqual([files, files]);
    }
  });

  it('writes every step once, and the same numbers in result.json', () => {
    expect(linesOf('dense').map(({ step }) => step)).toEqual([...Array(150).keys()].map((at) => at + 1));
    expect(JSON.parse(readFileSync(join(folderOf('dense'), 'result.json'), 'utf8'))).toEqual(dense.result);
  });

  it('counts parameters, tokens and the operations of the programs that run', async () => {
    const { result } = dense;
    const experiment = await world.experiment();
    const text = await tokenizedText(experiment, undefined, silentWatch);
    const { model, parameters } = textModel(experiment, text, undefined);
    const vocabulary = text.tokenizer.size;
    const layer = 4 * 16 * 16 + 3 * 16 * 32;
    expect(result.parameters).toBe(vocabulary * 16 + 2 * (layer + 2 * 16) + 16);
    expect(result.activeParameters).toBe(result.parameters);
    const shape = textShape(4, 16);
    const forward = countFlops(simplify(lossProgram(model, parameters, shape))) / 64;
    const training =
      countFlops(
        simplify(
          gradientProgram({
            objective: answerObjective(model, shape),
            trainable: parameters,
            frozen: new Map(),
          }),
        ),
      ) / 64;
    expect(result.flopsPerToken).toEqual({ forward, training });
    // Every weight is multiplied and added once for a token; the rest is attention, norms and the loss.
    expect(forward / (2 * (vocabulary * 16 + 2 * layer))).toBeGreaterThan(1);
    expect(forward / (2 * (vocabulary * 16 + 2 * layer))).toBeLessThan(1.5);
    expect(result).toMatchObject({ steps: 150, tokens: 150 * 64, flops: 150 * 64 * training });
  });

  it('has a model folder that is read as any, with the same perplexity', async () => {
    const loaded = await loadLlm(dense.model);
    const experiment = await world.experiment(...converted('{ kind: dense }'));
    const text = await tokenizedText(experiment, loaded.tokenizer, silentWatch);
    const { model } = textModel(experiment, text, loaded);
    const engine = onnxEngine({ provider: 'cpu', threads: 1 });
    try {
      const { nll } = await perplexityOf(
        { engine, model, parameters: loaded.parameters },
        sequencesOf(text.heldOut, 16),
        {
          batchSize: 4,
          length: 16,
          mostTokens: 600,
        },
      );
      expect(nll).toBe(measuredOf(dense.result).trained);
    } finally {
      await engine.dispose();
    }
  });

  it('that goes on learning keeps its chat template', async () => {
    const own = folderOf('with a template');
    await cp(dense.model, own, { recursive: true });
    const template = '{% for message in messages %}{{ message.content }}{% endfor %}';
    await writeFile(join(own, 'chat_template.jinja'), template);
    const result = await finished('gone on', [`llm={ kind: pretrained, from: ${own} }`]);
    expect(result.measured.map(({ model }) => model)).toEqual(['dense', 'trained']);
    expect(measuredOf(result).dense).toBe(measuredOf(dense.result).trained);
    expect(bytesOf('gone on', 'chat_template.jinja').toString()).toBe(template);
  });

  it('is decided by the seed, to the byte', async () => {
    for (const [name, seed] of [
      ['one', 1],
      ['again', 1],
      ['two', 2],
    ] as const)
      await run(name, [`seed=${seed}`]);
    expect(bytesOf('again').equals(bytesOf('one'))).toBe(true);
    expect(bytesOf('two').equals(bytesOf('one'))).toBe(false);
  });

  it('trains for as many steps as the budget of operations pays for', async () => {
    const { training } = dense.result.flopsPerToken;
    const { steps, flops } = await finished('budget', [
      'train.steps=null',
      `train.flops=${3.9 * 64 * training}`,
    ]);
    expect(steps).toBe(3);
    expect(flops).toBe(3 * 64 * training);
    expect(linesOf('budget')).toHaveLength(3);
  });
});

describe('every kind of feed-forward', () => {
  const sparse = (select: string, rest = '') => `{ kind: sparse, select: ${select}, blockSize: 4, ${rest} }`;
  it.each([
    ['switch', sparse('switch')],
    ['topk', sparse('topk', 'active: 2')],
    ['hash', sparse('hash', 'active: 2')],
    ['avg-k', sparse('avg-k', 'active: 2')],
    ['vanilla-memory', sparse('vanilla-memory', 'active: 2')],
    ['pkm', `{ kind: sparse, select: pkm, memory: 64, blockSize: 4, active: 2, queryWidth: 8 }`],
    ['lowrank-memory', sparse('lowrank-memory', 'active: 2, rank: 4')],
    ['moc', '{ kind: moc }'],
    ['wide and none', '[{ kind: wide, layers: "0..0", width: all }, { kind: none, layers: "1..1" }]'],
  ])('%s trains, is measured and written; transformers finds no config.json', async (name, ffn) => {
    const result = await finished(name, [`llm.ffn=${ffn}`]);
    expect(result.steps).toBe(3);
    const { initial, trained } = measuredOf(result);
    expect(initial).toBeGreaterThan(3);
    expect(trained).toBeLessThan(initial as number);
    const chooses = name !== 'wide and none';
    expect(Object.keys(result.feedForward ?? {}).length > 0).toBe(chooses);
    expect(result.activeParameters < result.parameters).toBe(chooses);
    expect((await readdir(join(folderOf(name), 'model'))).sort()).toEqual([
      'lm.yaml',
      'tokenizer.json',
      'tokenizer_config.json',
      'weights.safetensors',
    ]);
    const weights = await readSafetensors(join(folderOf(name), 'model', 'weights.safetensors'));
    const counted = [...weights].filter(([own]) => !own.endsWith('.table'));
    expect(counted.reduce((total, [, { data }]) => total + data.length, 0)).toBe(result.parameters);
  });

  it('variants of a seed begin alike in all that they share, and read the same', async () => {
    const ofVariant = async (ffn: string) => {
      const experiment = await world.experiment(`llm.ffn=${ffn}`);
      const text = await tokenizedText(experiment, undefined, silentWatch);
      return { hash: text.hash, parameters: textModel(experiment, text, undefined).parameters };
    };
    const plain = await ofVariant('{ kind: dense }');
    const sizes = (parameters: Map<string, { data: ArrayLike<number> }>) =>
      [...parameters].reduce((total, [, { data }]) => total + data.length, 0);
    for (const [ffn, norms] of [
      ['{ kind: wide, width: all }', 0],
      ['{ kind: wide, width: all, groups: 2 }', 0],
      ['[{ kind: wide, layers: "0..0", width: all }, { kind: none, layers: "1..1" }]', 16],
      ['{ kind: moc, active: 4 }', 0],
      [
        '[{ kind: sparse, layers: "1..1", memory: 128, select: switch, blockSize: 32, active: 1 }]',
        undefined,
      ],
    ] as const) {
      const { hash, parameters } = await ofVariant(ffn);
      expect(hash).toBe(plain.hash);
      const common = [...plain.parameters].filter(([name]) => parameters.has(name));
      expect(common.length).toBeGreaterThanOrEqual(13);
      for (const [name, { data }] of common) expect(parameters.get(name)?.data, name).toEqual(data);
      if (norms !== undefined) expect(sizes(parameters)).toBe(sizes(plain.parameters) - norms);
    }
  });

  it('shared layers that begin as the average do so in a new model too', async () => {
    const experiment = await world.experiment('llm.ffn={ kind: wide, from: average }');
    const text = await tokenizedText(experiment, undefined, silentWatch);
    const plain = textModel(await world.experiment(), text, undefined).parameters;
    const { parameters } = textModel(experiment, text, undefined);
    const own = parameters.get('ffn.shared.0.up_proj.weight')?.data as Float32Array;
    const [a, b] = [0, 1].map((at) => plain.get(`model.layers.${at}.mlp.up_proj.weight`)?.data) as [
      Float32Array,
      Float32Array,
    ];
    expect(own).toHaveLength(a.length);
    for (const [at, weight] of own.entries())
      expect(weight).toBeCloseTo(((a[at] as number) + (b[at] as number)) / 2, 7);
  });
});

describe('a converted model', () => {
  it.each([
    ['moc with all channels', '{ kind: moc, active: 32 }'],
    ['avg-k with all blocks', '{ kind: sparse, select: avg-k, blockSize: 8, active: 4 }'],
  ])('%s is the dense one', async (name, ffn) => {
    const result = await finished(name, [...converted(ffn), 'train.steps=0']);
    const { dense: before, converted: after } = measuredOf(result);
    expect(before).toBe(measuredOf(dense.result).trained);
    expect(after).toBe(before);
    expect(result.measured.map(({ model }) => model)).toEqual(['dense', 'converted']);
  });

  it('is told before, after, reconstructed and trained', async () => {
    const result = await finished('moc converted', [
      ...converted('{ kind: moc, active: 3 }'),
      'reconstruct={ steps: 30, learningRate: 0.01 }',
      'train.steps=10',
    ]);
    expect(result.measured.map(({ model }) => model)).toEqual([
      'dense',
      'converted',
      'reconstructed',
      'trained',
    ]);
    const { dense: before, converted: after, reconstructed: learned } = measuredOf(result);
    expect(after).toBeGreaterThan(before as number);
    expect(learned).toBeLessThan(after as number);
    const lines = linesOf('moc converted');
    expect(lines.map(({ step, stage }) => [step, stage])).toEqual(
      [...Array(40).keys()].map((at) => [at + 1, at < 30 ? 'reconstructed' : 'trained']),
    );
    expect(result).toMatchObject({ steps: 10, tokens: 640 });
  });

  it('shared by averaging trains, and a layer that is dropped has nothing to learn', async () => {
    const shared = await finished('averaged', [
      ...converted('{ kind: wide, from: average }'),
      'reconstruct={ steps: 2, learningRate: 0.001 }',
    ]);
    expect(shared.measured).toHaveLength(4);
    for (const ffn of ['{ kind: none }', '{ kind: moc, active: 32 }']) {
      const attempt = run('nothing', [...converted(ffn), 'reconstruct={ steps: 2, learningRate: 0.001 }']);
      await expect(attempt).rejects.toThrow('reconstruct: no feed-forward layer has anything to learn');
    }
  });
});

describe('reconstruction', () => {
  const kinds = [
    ['moc in one layer', '{ kind: moc, active: 3, layers: "1..1" }', /^model\.layers\.1\.mlp\./],
    ['avg-k', '{ kind: sparse, select: avg-k, blockSize: 4, active: 2 }', /^model\.layers\.\d\.mlp\./],
    ['hash', '{ kind: sparse, select: hash, blockSize: 4, active: 2 }', /^model\.layers\.\d\.mlp\./],
    ['wide', '{ kind: wide, from: average }', /^ffn\.shared\.0\./],
  ] as const;

  it.each(kinds)(
    '%s: its loss is the relative error of each replaced layer, and falls',
    async (name, ffn, own) => {
      const overrides = [...converted(ffn), 'reconstruct={ steps: 20, learningRate: 0.01 }', 'train.steps=0'];
      const experiment = await world.experiment(...overrides);
      const given = await pretrained(experiment);
      const text = await tokenizedText(experiment, given?.tokenizer, silentWatch);
      const { model, parameters, dense: before } = textModel(experiment, text, given);
      const shape = textShape(2, 16);
      const sequences = sequencesOf(text.training, 16);
      const { feeds } = answerBatch(model, shape, [sequences.row(0), sequences.row(1)]);
      const teacher = before?.parameters ?? new Map();
      const program = (of: typeof parameters) => {
        const { inputs, summedLoss } = reconstructionObjective(model, teacher, shape);
        return trace<string>(inputs, (values) => ({ loss: summedLoss(frozen(of), values).loss }));
      };
      const lossOf = (of: typeof parameters) =>
        (interpret(program(of), feeds).loss?.data[0] as number) / shape.targets;
      const first = lossOf(parameters);
      expect(first).toBeGreaterThan(0);
      expect([...reconstructed(model, parameters)].every((one) => own.test(one))).toBe(true);

      await run(`reconstruct ${name}`, overrides);
      const folder = join(folderOf(`reconstruct ${name}`), 'model');
      const learned = await readSafetensors(join(folder, 'weights.safetensors'));
      expect([...learned.keys()].sort()).toEqual([...parameters.keys()].sort());
      for (const [key, { data }] of parameters) {
        const after = learned.get(key)?.data as Float32Array;
        expect(
          Buffer.from(after.buffer, after.byteOffset, after.byteLength).equals(
            Buffer.from(data.buffer, data.byteOffset, data.byteLength),
          ),
          key,
        ).toBe(!own.test(key));
      }
      expect(lossOf(learned as typeof parameters)).toBeLessThan(first);
    },
  );
});

describe('the error of reconstruction', () => {
  it('is that of layers written out by hand, added up', async () => {
    const active = 3;
    const experiment = await world.experiment(...converted(`{ kind: moc, active: ${active} }`));
    const given = await pretrained(experiment);
    const text = await tokenizedText(experiment, given?.tokenizer, silentWatch);
    const { model, parameters, dense: before } = textModel(experiment, text, given);
    const shape = textShape(2, 16);
    const sequences = sequencesOf(text.training, 16);
    const { feeds } = answerBatch(model, shape, [sequences.row(3), sequences.row(5)]);
    const teacher = before?.parameters ?? new Map();
    const { inputs, summedLoss } = reconstructionObjective(model, teacher, shape);
    const objective = trace<string>(inputs, (values) => ({
      loss: summedLoss(frozen(parameters), values).loss,
    }));
    const loss = (interpret(objective, feeds).loss?.data[0] as number) / shape.targets;

    // What goes into each feed-forward of the model as it was.
    const entering = trace<string>({ ids: { dtype: 'int32', shape: [2, 16] } }, ({ ids }) => {
      const seen: Record<string, Value> = {};
      languageModel(model.llm, frozen(teacher), ids as Value, (layer) => (x, own, context) => {
        seen[`layer ${layer}`] = x;
        return denseFeedForward(x, own, context);
      });
      return seen;
    });
    const states = interpret(entering, { ids: feeds.ids as Tensor });
    const matrix = (layer: number, name: string) =>
      teacher.get(`model.layers.${layer}.mlp.${name}.weight`)?.data as Float32Array;
    const product = (weights: Float32Array, x: readonly number[]) =>
      Array.from({ length: weights.length / x.length }, (_, row) =>
        x.reduce((sum, value, at) => sum + value * (weights[row * x.length + at] as number), 0),
      );
    const errors = [0, 1].map((layer) => {
      const data = [...(states[`layer ${layer}`]?.data ?? [])];
      let [missed, all] = [0, 0];
      for (let token = 0; token < 32; token++) {
        const x = data.slice(16 * token, 16 * (token + 1));
        const gates = product(matrix(layer, 'gate_proj'), x);
        const cells = product(matrix(layer, 'up_proj'), x).map(
          (up, at) => (up * (gates[at] as number)) / (1 + Math.exp(-(gates[at] as number))),
        );
        const least = gates.toSorted((a, b) => b - a)[active - 1] as number;
        const kept = cells.map((cell, at) => ((gates[at] as number) >= least ? cell : 0));
        const y = product(matrix(layer, 'down_proj'), kept);
        for (const [at, target] of product(matrix(layer, 'down_proj'), cells).entries()) {
          missed += ((y[at] as number) - target) ** 2;
          all += target ** 2;
        }
      }
      return missed / all;
    });
    expect(Math.min(...errors)).toBeGreaterThan(0.01);
    expect(loss).toBeCloseTo(
      errors.reduce((sum, error) => sum + error, 0),
      9,
    );
  });
});

describe('a run that was stopped', () => {
  const overrides = () => [
    ...converted('{ kind: sparse, select: switch, blockSize: 4 }'),
    'reconstruct={ steps: 4, learningRate: 0.003 }',
    'train.steps=4',
    'train.checkpointEvery=3',
  ];
  const comparable = ({ seconds: _, ...rest }: LmResult) => rest;
  let whole: LmResult;
  beforeAll(async () => {
    whole = await finished('whole', overrides());
  });

  it.each([2, 5, 6])('after step %i ends as if it had not been, to the byte', async (stopAfter) => {
    const name = `stopped ${stopAfter}`;
    expect(await run(name, overrides(), { stopAfter })).toBeUndefined();
    expect(existsSync(join(folderOf(name), 'model'))).toBe(false);
    const result = await finished(name, overrides());
    expect(comparable(result)).toEqual(comparable(whole));
    expect(result.measured).toHaveLength(4);
    expect(bytesOf(name, 'weights.safetensors').equals(bytesOf('whole', 'weights.safetensors'))).toBe(true);
    expect(linesOf(name).map(({ step, loss }) => [step, loss])).toEqual(
      linesOf('whole').map(({ step, loss }) => [step, loss]),
    );
  });

  it('a finished one says again what it found, and takes no step', async () => {
    const lines = linesOf('whole');
    const result = await finished('whole', overrides());
    expect(comparable(result)).toEqual(comparable(whole));
    expect(linesOf('whole')).toEqual(lines);
  });

  it('is not taken up with another configuration, text or pretrained model, and keeps its record', async () => {
    const own = (await world.experiment(...overrides())).llm as { from: string };
    const model = folderOf('changing model');
    const text = folderOf('changing text');
    await cp(own.from, model, { recursive: true });
    await cp(world.text, text, { recursive: true });
    const changing = [...overrides(), `llm.from=${model}`, `corpus.folders=[${text}]`];
    await run('changing', changing, { stopAfter: 2 });
    const record = readFileSync(join(folderOf('changing'), 'config.yaml'), 'utf8');
    const refused = async (...more: string[]) => {
      const attempt = run('changing', [...changing, ...more]);
      await expect(attempt).rejects.toThrow('of another configuration, text or pretrained model');
      await expect(attempt).rejects.toBeInstanceOf(CheckpointError);
      expect(readFileSync(join(folderOf('changing'), 'config.yaml'), 'utf8')).toBe(record);
    };
    await refused('seed=8');
    await writeFile(join(text, 'more.txt'), 'A sentence that was not there before.\n');
    await refused();
    await rm(join(text, 'more.txt'));
    const weights = join(model, 'model.safetensors');
    const bytes = readFileSync(weights);
    const last = bytes.length - 4;
    bytes.writeFloatLE(bytes.readFloatLE(last) + 1, last);
    await writeFile(weights, bytes);
    await refused();
  });

  it('without what it had measured is an error; --resume never starts over', async () => {
    await run('unmeasured', overrides(), { stopAfter: 5 });
    const path = join(folderOf('unmeasured'), 'measured.json');
    await truncate(path, 20);
    await expect(run('unmeasured', overrides())).rejects.toThrow(`${path}: is not what a run writes`);
    await rm(path);
    await expect(run('unmeasured', overrides())).rejects.toThrow(`${path}: cannot be read (ENOENT)`);
    const result = await finished('unmeasured', overrides(), { resume: false });
    expect(comparable(result)).toEqual(comparable(whole));
  });

  it('what was left of an older run is not taken for one that started over', async () => {
    await run('over', overrides(), { stopAfter: 6 });
    await run('over', overrides(), { resume: false, stopAfter: 1 });
    const { step } = JSON.parse(
      readFileSync(join(folderOf('over'), 'checkpoints', 'step-000001', 'state.json'), 'utf8'),
    );
    expect(step).toBe(1);
    expect(await readdir(join(folderOf('over'), 'checkpoints'))).toEqual(['step-000001']);
    expect(comparable(await finished('over', overrides()))).toEqual(comparable(whole));
  });
});

describe('a loss that is no number', () => {
  it('names the model that was measured, and nothing is written as finished', async () => {
    const broken = folderOf('broken model');
    await cp(dense.model, broken, { recursive: true });
    const weights = await readSafetensors(join(broken, 'model.safetensors'));
    weights.set('model.norm.weight', float32([16], new Float32Array(16).fill(1e38)));
    await writeSafetensors(join(broken, 'model.safetensors'), weights, { format: 'pt' });
    const attempt = run('diverging', [`llm={ kind: pretrained, from: ${broken} }`]);
    await expect(attempt).rejects.toThrow(
      /^measuring the dense model: the loss on the held-out text is (NaN|Infinity)/,
    );
    expect(await readdir(folderOf('diverging'))).toEqual(['config.yaml', 'skipped.json']);
  });
});

describe('tokenised text', () => {
  it('is kept, and refused where it is damaged', async () => {
    const cache = folderOf('own cache');
    const experiment = await world.experiment(`corpus.cache=${cache}`);
    const text = await tokenizedText(experiment, undefined, silentWatch);
    const [folder = ''] = await readdir(cache);
    const again = await tokenizedText(experiment, undefined, silentWatch);
    expect(again.training).toEqual(text.training);
    const path = join(cache, folder, 'training.bin');
    const bytes = readFileSync(path);
    await truncate(path, bytes.length - 2);
    await expect(tokenizedText(experiment, undefined, silentWatch)).rejects.toThrow(
      `${path}: ${bytes.length - 2} bytes are no token ids: remove ${join(cache, folder)}`,
    );
    bytes.writeInt32LE(text.tokenizer.size, 4);
    await writeFile(path, bytes);
    await expect(tokenizedText(experiment, undefined, silentWatch)).rejects.toThrow(
      `token ${text.tokenizer.size} is none of the tokenizer's`,
    );
  });

  it('gives the text back; the spelling of a special token stays text', async () => {
    const folder = folderOf('spellings');
    const said = 'An <eos> is what ends a text, and a <pad> is what fills it.';
    await cp(world.text, folder, { recursive: true });
    for (let at = 0; at < 10; at++) await writeFile(join(folder, `said-${at}.txt`), `${said} Number ${at}.`);
    const experiment = await world.experiment(`corpus.folders=[${folder}]`);
    const { tokenizer, training, heldOut, heldOutBytes, facts } = await tokenizedText(
      experiment,
      undefined,
      silentWatch,
    );
    const files = (ids: Int32Array) => {
      const end = tokenizer.eosTokenId as number;
      const texts: string[] = [];
      let start = 0;
      for (const [at, id] of ids.entries())
        if (id === end) {
          texts.push(tokenizer.decode([...ids.subarray(start, at)], { skipSpecial: false }));
          start = at + 1;
        }
      expect(start).toBe(ids.length);
      return texts;
    };
    const [learned, asked] = [files(training), files(heldOut)];
    expect([learned.length, asked.length]).toEqual([facts.files.training, facts.files.heldOut]);
    expect([...learned, ...asked].filter((text) => text.startsWith(said))).toHaveLength(10);
    expect(Buffer.byteLength(asked.join(''))).toBe(heldOutBytes);
  });
});

describe('what cannot be', () => {
  const from = '{ kind: pretrained, from: models/none, ffn: { kind: moc } }';
  it.each([
    [
      'steps and flops',
      ['train.flops=1000'],
      /train\.steps: the length of training is either steps or flops: give one/,
    ],
    ['neither', ['train.steps=null'], /train\.steps: the length of training is either steps or flops/],
    [
      'reconstruction of a new model',
      ['reconstruct={ steps: 1, learningRate: 0.1 }'],
      /reconstruct: a new model has no feed-forward layers/,
    ],
    [
      'reconstruction of dense layers',
      [`llm=${from}`, 'llm.ffn=[{ kind: dense }]', 'reconstruct={ steps: 1, learningRate: 0.1 }'],
      /reconstruct: every feed-forward layer is the one that the model has/,
    ],
    [
      'more warm-up than reconstruction',
      [`llm=${from}`, 'reconstruct={ steps: 1, learningRate: 0.1, warmupSteps: 2 }'],
      /reconstruct\.warmupSteps: 2 steps of warm-up do not fit into 1 steps/,
    ],
    [
      'heads that do not divide',
      ['llm.heads=3'],
      /llm\.heads: 16 \/ 3 heads = 5\.33: expected an even width/,
    ],
    ['an odd width of a head', ['llm.heads=16'], /llm\.heads: 16 \/ 16 heads = 1: expected an even width/],
    [
      'heads of keys',
      ['llm.heads=4', 'llm.keyValueHeads=3'],
      /llm\.keyValueHeads: 4 heads \/ 3 = 1\.33: no whole/,
    ],
  ])('%s: the field', async (_, overrides, message) => {
    const attempt = world.experiment(...overrides);
    await expect(attempt).rejects.toThrow(message);
    await expect(attempt).rejects.toBeInstanceOf(ConfigError);
  });

  it('names file, line and column', async () => {
    const path = folderOf('bad.yaml');
    const yaml = readFileSync(world.config, 'utf8').replace('heads: 2', 'heads: 3');
    await writeFile(path, yaml);
    const line = yaml.split('\n').findIndex((one) => one.includes('heads: 3')) + 1;
    await expect(loadYaml(path, lmSchema)).rejects.toThrow(`${path}:${line}:3  llm.heads: 16 / 3 heads`);
  });

  it.each([
    ['a folder that is not there', ['corpus.folders=[nowhere]'], 'corpus.folders: nowhere: is not there'],
    [
      'long sequences',
      ['train.sequenceLength=4000'],
      'train.sequenceLength: 4000: the text that is held out is shorter',
    ],
    [
      'beyond the positions',
      ['train.sequenceLength=5000'],
      'train.sequenceLength: 5000, and the model has 4096 positions',
    ],
    ['too few operations', ['train.steps=null', 'train.flops=10'], 'train.flops: 10: one step takes'],
    [
      'more warm-up than operations pay for',
      ['train.steps=null', 'train.flops=1e8', 'train.warmupSteps=1000'],
      /train\.warmupSteps: 1000 steps of warm-up do not fit into the \d+ steps that train\.flops pays for/,
    ],
    ['what does not exist', ['train.trainable=["model.layer.*"]'], 'train.trainable'],
    [
      'blocks that do not divide',
      ['llm.ffn={ kind: sparse, select: avg-k, blockSize: 5, active: 1 }'],
      'llm.ffn.blockSize: 32 cells = 6 x 5 + 2',
    ],
  ])('%s: the field', async (_, overrides, message) => {
    await expect(run('bad', overrides)).rejects.toThrow(message);
    expect(existsSync(join(folderOf('bad'), 'model'))).toBe(false);
    expect(existsSync(join(folderOf('bad'), 'result.json'))).toBe(false);
  });
});
