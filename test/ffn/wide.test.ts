/** Layers that share a feed-forward, and layers without one: against PyTorch, and the paper's own counts. */
import { readFileSync } from 'node:fs';
import { afterAll, describe, expect, it } from 'vitest';
import { plain } from '../../src/engine/engine.ts';
import { onnxEngine } from '../../src/engine/onnx/engine.ts';
import { tfjsEngine } from '../../src/engine/tfjs/engine.ts';
import { type FeedForwardLayer, feedForwardLayers } from '../../src/ffn/config.ts';
import { feedForwardOf } from '../../src/ffn/layers.ts';
import { feedForwardParameters, isReplaced } from '../../src/ffn/parameters.ts';
import { sharedFrom, untied, type WideConfig, type WideLayer } from '../../src/ffn/wide.ts';
import { type DecoderConfig, parameterShapes } from '../../src/llm/config.ts';
import { languageModel, logits } from '../../src/llm/decoder.ts';
import type { AudioLlm } from '../../src/pal/audioLlm.ts';
import { interpret } from '../../src/tensor/interpret.ts';
import { reshape } from '../../src/tensor/operations.ts';
import { type ParameterTensors, parameterInputs } from '../../src/tensor/parameters.ts';
import type { Value } from '../../src/tensor/program.ts';
import { int32, sizeOf, type Tensor } from '../../src/tensor/tensor.ts';
import { trace } from '../../src/tensor/trace.ts';
import { answerBatch, answerObjective } from '../../src/train/loss.ts';
import { gradientProgram } from '../../src/train/step.ts';
import { fill, smallLlama } from '../llm/formula.ts';
import type { Asked } from '../pal/fixture.ts';

interface Golden {
  readonly ffn: Asked;
  readonly uses: readonly (number | 'own' | null)[];
  readonly bias?: boolean;
  readonly logits: readonly number[];
  readonly loss: number;
  readonly gradients: Readonly<Record<string, { norm: number; every199: number[] }>>;
}

const golden = JSON.parse(readFileSync('test/golden/wide.json', 'utf8')) as {
  ids: number[][];
  cases: Record<string, Golden>;
};
const engines = { onnx: onnxEngine({ threads: 2 }), tfjs: await tfjsEngine({ backend: 'wasm' }) };
afterAll(() => Promise.all(Object.values(engines).map((engine) => engine.dispose())));

const { ids } = golden;
const [rows, length] = [ids.length, ids[0]?.length as number];

function llmOf(bias = false): DecoderConfig {
  return { ...smallLlama, layers: 4, eosTokenIds: [], biases: { ...smallLlama.biases, feedForward: bias } };
}

/** Shapes of all that a model has, by name. */
function shapesOf(llm: DecoderConfig, layers: readonly FeedForwardLayer[]) {
  const own = [...parameterShapes(llm)].filter(([name]) => !isReplaced(layers, name));
  const added = [...feedForwardParameters(layers, llm)].map(([name, { shape }]) => [name, shape] as const);
  return new Map<string, readonly number[]>([...own, ...added]);
}

function filled(llm: DecoderConfig, layers: readonly FeedForwardLayer[]) {
  return new Map([...shapesOf(llm, layers)].map(([name, shape]) => [name, fill(name, shape)]));
}

/** Logits of all rows; loss and gradients of everything. */
function programsOf(llm: DecoderConfig, layers: readonly FeedForwardLayer[], parameters: ParameterTensors) {
  const feedForward = feedForwardOf(layers);
  const types = { ids: { dtype: 'int32' as const, shape: [rows, length] }, ...parameterInputs(parameters) };
  const model: AudioLlm = {
    llm,
    feedForward,
    ffn: layers,
    streams: [],
    integration: { positions: 'reserve', attentionOnlyVisibleToPrefix: true },
    slot: 1,
  };
  const shape = { rows, textRows: length, targets: rows * (length - 1) };
  const batch = answerBatch(
    model,
    shape,
    ids.map((row, index) => ({
      id: String(index),
      ids: row,
      clip: undefined,
      targets: row.slice(1).map((id, position) => ({ position, id })),
    })),
  );
  return [
    {
      program: trace<string>(types, (inputs) => {
        const weights = new Map(Object.entries(inputs));
        const hidden = languageModel(llm, weights, inputs.ids as Value, feedForward);
        return { logits: logits(llm, weights, reshape(hidden, [rows * length, llm.hiddenSize])) };
      }),
      feeds: { ids: int32([rows, length], ids.flat()), ...Object.fromEntries(parameters) },
    },
    {
      program: gradientProgram({
        objective: answerObjective(model, shape),
        trainable: parameters as Map<string, Tensor & { dtype: 'float32' }>,
        frozen: new Map(),
        precision: 'float32',
      }),
      feeds: { ...Object.fromEntries(parameters), ...batch.feeds },
    },
  ] as const;
}

type Numbers = Readonly<Record<string, ArrayLike<number>>>;

function inFloat64(...given: Parameters<typeof programsOf>): Numbers {
  const outputs = programsOf(...given).map(({ program, feeds }) => interpret(program, feeds));
  return Object.fromEntries(
    outputs.flatMap((own) => Object.entries(own)).map(([name, { data }]) => [name, data]),
  );
}

describe.each(Object.entries(golden.cases))('against transformers: %s', (_, expected) => {
  const llm = llmOf(expected.bias);
  const layers = feedForwardLayers(expected.ffn, llm);
  const parameters = filled(llm, layers);

  const check = (outputs: Numbers, tolerance: number) => {
    const every29 = Array.from(outputs.logits as ArrayLike<number>).filter((_, at) => at % 29 === 0);
    const largest = Math.max(...expected.logits.map(Math.abs));
    expect(every29.length).toBe(expected.logits.length);
    for (const [at, value] of every29.entries())
      expect(Math.abs(value - (expected.logits[at] as number)) / largest, `logits ${at}`).toBeLessThan(
        tolerance,
      );
    expect(Math.abs((outputs.loss?.[0] as number) / expected.loss - 1)).toBeLessThan(tolerance);
    expect([...parameters.keys()].sort()).toEqual(Object.keys(expected.gradients).sort());
    for (const [name, { norm, every199 }] of Object.entries(expected.gradients)) {
      const own = Array.from(outputs[`gradient.${name}`] as ArrayLike<number>);
      // Rounding adds up in a norm.
      expect(Math.abs(Math.hypot(...own) / norm - 1), name).toBeLessThan(3 * tolerance);
      for (const [at, value] of every199.entries())
        expect(Math.abs((own[199 * at] as number) - value) / norm, name).toBeLessThan(tolerance);
    }
  };

  it('layers use what they are said to', () => {
    expect(
      layers.map((layer) => (layer.kind === 'wide' ? layer.shared : layer.kind === 'none' ? null : 'own')),
    ).toEqual(expected.uses);
  });

  it('in float64', () => check(inFloat64(llm, layers, parameters), 1e-6));

  for (const [name, engine] of Object.entries(engines)) {
    it(`on ${name}`, async () => {
      const read: Record<string, ArrayLike<number>> = {};
      for (const { program, feeds } of programsOf(llm, layers, parameters)) {
        const executable = await engine.compile(program);
        const outputs = await executable.run(feeds);
        for (const output of program.outputs.keys())
          read[output] = plain(outputs, output).data as Float32Array;
        await executable.dispose();
      }
      check(read, 1e-5);
    });
  }

  it('untied copies give the same, and their gradients add up to that of the shared one', () => {
    const shared = inFloat64(llm, layers, parameters);
    const own = layers.map((layer): FeedForwardLayer => (layer.kind === 'wide' ? { kind: 'dense' } : layer));
    const width = layers.find((layer): layer is WideLayer => layer.kind === 'wide')?.width;
    const apart = { ...llm, intermediateSize: width ?? llm.intermediateSize };
    const copies = new Map(
      [...untied(layers, parameters)].filter(([name]) => !name.startsWith('ffn.shared.')),
    );
    const separate = inFloat64(apart, own, copies);
    expect(separate.loss).toEqual(shared.loss);
    for (const [at, value] of Array.from(separate.logits as ArrayLike<number>).entries())
      expect(value).toBe(shared.logits?.[at]);
    for (const name of parameters.keys()) {
      const [, number, part] = /^ffn\.shared\.(\d+)\.(.+)$/.exec(name) ?? [];
      if (number === undefined) continue;
      const uses = layers.flatMap((layer, at) =>
        layer.kind === 'wide' && layer.shared === Number(number) ? [at] : [],
      );
      const parts = uses.map(
        (at) => separate[`gradient.model.layers.${at}.mlp.${part}`] as ArrayLike<number>,
      );
      const whole = Array.from(shared[`gradient.${name}`] as ArrayLike<number>);
      const largest = Math.max(...whole.map(Math.abs));
      for (const [at, value] of whole.entries()) {
        const sum = parts.reduce((total, own) => total + (own[at] as number), 0);
        expect(Math.abs(value - sum) / largest).toBeLessThan(1e-12);
      }
    }
  });
});

const wide = (over: Partial<WideConfig> & { layers?: string } = {}) =>
  ({ kind: 'wide', width: null, groups: 1, tie: 'sequence', from: null, ...over }) as const;
const none = (layers: string) => ({ kind: 'none', layers }) as const;

/** Millions of parameters of a model whose layers' feed-forwards had two matrices, not three: the paper's. */
function millions(baseline: number, asked: Asked, layers: number, d: number, f: number): number {
  const llm = { ...smallLlama, layers, hiddenSize: d, intermediateSize: f };
  const count = (ffn: Asked) => {
    const shapes = shapesOf(llm, feedForwardLayers(ffn, llm));
    return [...shapes]
      .filter(([name]) => name.includes('.mlp.') || name.startsWith('ffn.'))
      .reduce((total, [, shape]) => total + sizeOf(shape), 0);
  };
  return baseline - ((2 / 3) * (count({ kind: 'dense' }) - count(asked))) / 1e6;
}

describe("the paper's parameters, to the million that they are rounded to", () => {
  // Encoder: layers 0 to 5; decoder: 6 to 11.
  const big: readonly (readonly [name: string, Asked, told: number])[] = [
    ['SharedEnc', [wide({ layers: '0..5' })], 186],
    ['SharedDec', [wide({ layers: '6..11' })], 186],
    ['SharedEncSharedDec', [wide({ layers: '0..5' }), wide({ layers: '6..11' })], 144],
    ['SharedEncDec', wide(), 136],
    ['NoEnc', [none('0..5')], 178],
    ['NoDec', [none('6..11')], 178],
    ['NoEncNoDec', { kind: 'none' }, 127],
    ['SharedEncNoDec', [wide({ layers: '0..5' }), none('6..11')], 136],
    ['NoEncSharedDec', [none('0..5'), wide({ layers: '6..11' })], 136],
    ['One Wide, 24,576', [wide({ layers: '0..5', width: 24_576 }), none('6..11')], 177],
    ['One Wide, all: 49,152', [wide({ layers: '0..5', width: 'all' }), none('6..11')], 228],
    ['One Wide, 98,304', [wide({ layers: '0..5', width: 98_304 }), none('6..11')], 328],
    ['Sequence of two', [wide({ layers: '0..5', groups: 2 })], 194],
    ['Cycle of three', [wide({ layers: '0..5', groups: 3, tie: 'cycle' })], 202],
  ];
  it.each(big)('Transformer Big, %s', (_, asked, told) => {
    expect(Math.abs(millions(228, asked, 12, 1024, 4096) - told)).toBeLessThanOrEqual(1);
  });

  const half = [wide({ layers: '0..5' }), none('6..11')];
  const others: readonly (readonly [
    string,
    Asked,
    baseline: number,
    told: number,
    layers: number,
    d: number,
  ])[] = [
    ['Base', half, 70, 47, 12, 512],
    ['Base, all', [wide({ layers: '0..5', width: 'all' }), none('6..11')], 70, 70, 12, 512],
    ['decoder-only, shared', wide(), 202, 110, 12, 1024],
    ['decoder-only, all', wide({ width: 'all' }), 202, 202, 12, 1024],
    ['12 + 2 layers', [wide({ layers: '0..11' }), none('12..13')], 236, 127, 14, 1024],
    ['12 + 2 layers, all', [wide({ layers: '0..11', width: 'all' }), none('12..13')], 236, 236, 14, 1024],
    ['Base EN-RO', half, 64, 41, 12, 512],
    ['multilingual Big', half, 422, 330, 12, 1024],
  ];
  it.each(others)('%s', (_, asked, baseline, told, layers, d) => {
    expect(Math.abs(millions(baseline, asked, layers, d, 4 * d) - told)).toBeLessThanOrEqual(1);
  });

  it('an LLM with SwiGLU saves 3 d f a layer when it shares, and nothing as One Wide', () => {
    const llm = { ...smallLlama, layers: 6, hiddenSize: 64, intermediateSize: 160 };
    const total = (asked: Asked) =>
      [...shapesOf(llm, feedForwardLayers(asked, llm)).values()].reduce(
        (sum, shape) => sum + sizeOf(shape),
        0,
      );
    const dense = total({ kind: 'dense' });
    const layer = 3 * 64 * 160;
    expect(dense - total(wide())).toBe(5 * layer);
    expect(total(wide({ width: 'all' }))).toBe(dense);
    expect(total(wide({ width: 'all', groups: 3, tie: 'cycle' }))).toBe(dense);
    // A dropped layer's norm is not given away.
    expect(dense - total([wide({ layers: '0..2', width: 'all' }), none('3..5')])).toBe(3 * 64);
    expect(dense - total({ kind: 'none' })).toBe(6 * (layer + 64));
  });
});

describe('which layers share', () => {
  const uses = (config: Partial<WideConfig>, layers: number) =>
    feedForwardLayers(wide(config), { layers, hiddenSize: 4, intermediateSize: 4 }).map(
      (layer) => (layer as WideLayer).shared,
    );
  it.each([
    [{ groups: 1, tie: 'cycle-reverse' }, [0, 0, 0, 0]],
    [{ groups: 4, tie: 'cycle-reverse' }, [0, 1, 2, 3]],
    [{ groups: 2, tie: 'sequence' }, [0, 0, 0, 1, 1, 1]],
    [{ groups: 3, tie: 'cycle' }, [0, 1, 2, 0, 1, 2]],
    // i up to N / 2, then N + 1 - i.
    [{ groups: 3, tie: 'cycle-reverse' }, [0, 1, 2, 2, 1, 0]],
    [{ groups: 2, tie: 'cycle-reverse' }, [0, 1, 0, 1, 1, 0]],
  ] as const)('%j', (config, expected) => {
    expect(uses(config, expected.length)).toEqual(expected);
  });

  it('ranges count on', () => {
    const layers = feedForwardLayers(
      [wide({ layers: '0..3', groups: 2, width: 'all' }), none('4..4'), wide({ layers: '6..7', width: 5 })],
      { layers: 8, hiddenSize: 4, intermediateSize: 4 },
    );
    expect(
      layers.map((layer) => (layer.kind === 'wide' ? `${layer.shared}: ${layer.width}` : layer.kind)),
    ).toEqual([...['0: 10', '0: 10', '1: 10', '1: 10'], ...['none', 'dense', '2: 5', '2: 5']]);
  });
});

it('as wide as all, divided among groups, is a whole number of units', () => {
  const asked = [wide({ layers: '0..1', groups: 2, width: 'all' }), none('2..2')];
  expect(() => feedForwardLayers(asked, { layers: 3, hiddenSize: 4, intermediateSize: 5 })).toThrow(
    /llm\.ffn\[0\]\.width: all: \(2 \+ 1 dropped layers\) x 5 units \/ 2 groups: no whole number/,
  );
});

describe('a shared layer that begins from pretrained ones', () => {
  const llm = llmOf();
  const dense = feedForwardLayers({ kind: 'dense' }, llm);
  const pretrained = filled(llm, dense);
  const begin = (config: Partial<WideConfig>, name: string) =>
    sharedFrom(feedForwardLayers(wide(config), llm), pretrained, name)?.data;
  const of = (layer: number) =>
    pretrained.get(`model.layers.${layer}.mlp.up_proj.weight`)?.data as Float32Array;

  it('as the mean of its layers, one of them, or from the seed', () => {
    const name = 'ffn.shared.1.up_proj.weight';
    const [one, three] = [of(1), of(3)];
    expect(begin({ from: 'average', groups: 2, tie: 'cycle' }, name)).toEqual(
      one.map((value, at) => (value + (three[at] as number)) / 2),
    );
    expect(begin({ from: 2 }, 'ffn.shared.0.up_proj.weight')).toEqual(of(2));
    expect(begin({}, 'ffn.shared.0.up_proj.weight')).toBeUndefined();
    expect(begin({ from: 2 }, 'ffn.layers.0.router.weight')).toBeUndefined();
  });

  it('layers that are equal lose nothing', () => {
    const equal = new Map(pretrained);
    for (const name of pretrained.keys()) {
      const [, part] = /^model\.layers\.[1-3]\.mlp\.(.+)$/.exec(name) ?? [];
      if (part !== undefined) equal.set(name, pretrained.get(`model.layers.0.mlp.${part}`) as never);
    }
    const layers = feedForwardLayers(wide({ from: 'average' }), llm);
    const shared = filled(llm, layers);
    for (const name of shared.keys()) {
      const own = name.startsWith('ffn.') ? sharedFrom(layers, equal, name) : equal.get(name);
      shared.set(name, own as Tensor & { dtype: 'float32' });
    }
    expect(inFloat64(llm, layers, shared).loss).toEqual(inFloat64(llm, dense, equal).loss);
  });
});

it('a dropped layer has neither nodes nor parameters', () => {
  const llm = llmOf();
  const layers = feedForwardLayers([none('1..2')], llm);
  const parameters = filled(llm, layers);
  expect([...parameters.keys()].filter((name) => /layers\.[12]\.(mlp|post)/.test(name))).toEqual([]);
  const [{ program }] = programsOf(llm, layers, parameters);
  const named = program.nodes.flatMap(({ outputs }) => outputs.map(({ name }) => name ?? ''));
  expect(named.filter((name) => /^layers\.[12]\.feedForward\./.test(name))).toEqual([]);
  expect(named.filter((name) => /^layers\.[03]\.feedForward\.output$/.test(name))).toHaveLength(2);
});
