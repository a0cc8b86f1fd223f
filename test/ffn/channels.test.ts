/** What must hold of a mixture of channels exactly, whatever PyTorch says (Wu et al. 2025, arXiv 2511.09323). */
import { afterAll, describe, expect, it } from 'vitest';
import { random } from '../../src/config/random.ts';
import { onnxEngine } from '../../src/engine/onnx/engine.ts';
import { describeHeld, heldActivations, heldByLayers } from '../../src/ffn/accounting.ts';
import { channelsFeedForward, keptChannels } from '../../src/ffn/channels.ts';
import {
  type ChannelsConfig,
  type ChannelsLayer,
  type FeedForwardLayer,
  feedForwardLayers,
} from '../../src/ffn/config.ts';
import { denseFeedForward, type FeedForward } from '../../src/ffn/feedForward.ts';
import { feedForwardOf } from '../../src/ffn/layers.ts';
import { gradients } from '../../src/tensor/gradients.ts';
import { interpret } from '../../src/tensor/interpret.ts';
import { liveness } from '../../src/tensor/liveness.ts';
import { add, constant, multiply, sum } from '../../src/tensor/operations.ts';
import { frozen, parameterInputs } from '../../src/tensor/parameters.ts';
import { simplify } from '../../src/tensor/passes.ts';
import { countFlops } from '../../src/tensor/print.ts';
import type { Program, Value } from '../../src/tensor/program.ts';
import { schedule } from '../../src/tensor/schedule.ts';
import { float32, type Tensor } from '../../src/tensor/tensor.ts';
import { maskPrefix, trace, withDropout } from '../../src/tensor/trace.ts';
import { fill } from '../llm/formula.ts';
import { layerParameters, runOn, sizes } from './layer.ts';

const engine = onnxEngine({ threads: 2 });
afterAll(() => engine.dispose());

const run = (program: Program, feeds: Record<string, Tensor>) => runOn(engine, program, feeds);

const mixture = (own: Partial<ChannelsConfig> = {}): ChannelsConfig => ({
  kind: 'moc',
  select: 'gate',
  active: null,
  recompute: false,
  ...own,
});

function mixtureOf(own: Partial<ChannelsConfig>, channels = sizes.intermediateSize): ChannelsLayer {
  const [layer] = feedForwardLayers(mixture(own), { ...sizes, intermediateSize: channels });
  return layer as ChannelsLayer;
}

const prefix = 'model.layers.0.mlp';
const x = fill('hidden_states_embed', [9, sizes.hiddenSize]);
const targets = fill('targets_embed', [9, sizes.hiddenSize]);

/** Output and all gradients of a layer. */
function gradientProgram(feedForward: FeedForward, parameters: ReadonlyMap<string, Tensor>) {
  const feeds: Record<string, Tensor> = { x, targets, ...Object.fromEntries(parameters) };
  const program = trace<string>(parameterInputs(new Map(Object.entries(feeds))), (inputs) => {
    const { y } = feedForward(inputs.x as Value, new Map(Object.entries(inputs)), { layer: 0, prefix });
    const wanted = ['x', ...parameters.keys()];
    const parts = gradients(
      sum(multiply(y, inputs.targets as Value)),
      wanted.map((name) => inputs[name] as Value),
    );
    return { y, ...Object.fromEntries(wanted.map((name, at) => [`gradient.${name}`, parts[at] as Value])) };
  });
  return { program, feeds };
}

describe('which channels a token keeps', () => {
  const gates = [-3, -0.2, 0.1, 2, -1.278, 0.05, -0.9, 0.7, 1.5, -2.5, -0.1, 0.3];
  const kept = (own: Partial<ChannelsConfig>, values: readonly number[]) => {
    const layer = mixtureOf(own, values.length);
    const program = trace({}, () => ({
      kept: keptChannels(layer, constant(float32([1, values.length], values))),
    }));
    return [...(interpret(program, {}).kept?.data ?? [])].sort((a, b) => a - b);
  };

  it('the largest signed gates, the largest magnitudes after SiLU, two of eight', () => {
    expect(kept({ active: 4 }, gates)).toEqual([3, 7, 8, 11]);
    expect(kept({ active: 4, select: 'magnitude' }, gates)).toEqual([3, 4, 7, 8]);
    expect(kept({ select: 'structured' }, gates)).toEqual([3, 7, 8, 11]);
  });

  it('of a shorter group at the end two, or what is there', () => {
    expect(kept({ select: 'structured' }, gates.slice(0, 9))).toEqual([3, 7, 8]);
    expect(kept({ select: 'structured' }, [5, 4, 3])).toEqual([0, 1]);
    expect(mixtureOf({ select: 'structured' }, 2730).active).toBe(2 * 341 + 2);
  });

  it('the lower one of two that tie', () => {
    expect(kept({ active: 2 }, [1, 3, 1, 1])).toEqual([0, 1]);
    expect(kept({ active: 2, select: 'magnitude' }, [0, 0, 0, 0])).toEqual([0, 1]);
  });
});

it('is the dense layer to the bit where every channel is kept', async () => {
  const layer = mixtureOf({ active: sizes.intermediateSize });
  const parameters = layerParameters(layer);
  const own = gradientProgram(feedForwardOf([layer])(0) as FeedForward, parameters);
  const dense = gradientProgram(denseFeedForward, parameters);
  expect(await run(own.program, own.feeds)).toEqual(await run(dense.program, dense.feeds));
  // Nor does going through the choice change more than the order of sums.
  const chosen = gradientProgram(channelsFeedForward(layer), parameters);
  const [a, b] = [interpret(chosen.program, chosen.feeds), interpret(dense.program, dense.feeds)];
  for (const [name, { data }] of Object.entries(b))
    for (const [at, value] of data.entries()) expect(a[name]?.data[at]).toBeCloseTo(value, 12);
});

it.each([false, true])(
  'drops the same inputs of an adapter in both passes, as the dense layer does: recompute %o',
  (recompute) => {
    const layer = mixtureOf({ active: sizes.intermediateSize, recompute });
    const parameters = new Map(layerParameters(layer));
    for (const name of ['gate_proj', 'up_proj', 'down_proj']) {
      const [outputs, inputs] = (parameters.get(`${prefix}.${name}.weight`) as Tensor).shape as [
        number,
        number,
      ];
      parameters.set(`lora.${prefix}.${name}.A`, fill(`${name}.A_embed`, [2, inputs]));
      parameters.set(`lora.${prefix}.${name}.B`, fill(`${name}.B_embed`, [outputs, 2]));
    }
    parameters.set('lora.scale', float32([], [0.5]));
    const gradientsOf = (feedForward: FeedForward) => {
      const inTraining: FeedForward = (...given) => withDropout(() => feedForward(...given));
      const { program, feeds } = gradientProgram(inTraining, parameters);
      const masks = [...program.inputs].filter(([name]) => name.startsWith(maskPrefix));
      expect(masks).toHaveLength(3);
      const drawn = masks.map(([name, { shape }]): [string, Tensor] => {
        const { uniform } = random(name);
        const count = shape.reduce((product, size) => product * size, 1);
        return [
          name,
          float32(
            shape,
            Float32Array.from({ length: count }, () => (uniform() < 0.5 ? 2 : 0)),
          ),
        ];
      });
      return interpret(program, { ...feeds, ...Object.fromEntries(drawn) });
    };
    const [own, dense] = [gradientsOf(channelsFeedForward(layer)), gradientsOf(denseFeedForward)];
    // Nothing trains the scale.
    delete dense['gradient.lora.scale'];
    for (const [name, { data }] of Object.entries(dense))
      for (const [at, value] of data.entries()) expect(own[name]?.data[at], name).toBeCloseTo(value, 10);
  },
);

it.each(['gate', 'magnitude', 'structured'] as const)(
  'gives the same bits when the backward pass computes SiLU and product again (%s)',
  async (select) => {
    const active = select === 'structured' ? null : 5;
    const bits = async (recompute: boolean) => {
      const layer = mixtureOf({ select, active, recompute });
      const { program, feeds } = gradientProgram(channelsFeedForward(layer), layerParameters(layer));
      return run(program, feeds);
    };
    expect(await bits(true)).toEqual(await bits(false));
  },
);

describe('what is held for the backward pass', () => {
  const wide = { hiddenSize: 24, intermediateSize: 64 };
  const tokens = 32;
  /** Bytes at the peak of a stack of layers, forward and backward. */
  const peak = (layer: FeedForwardLayer, depth: number) => {
    const names = ['gate_proj', 'up_proj', 'down_proj'];
    const shapes = Array.from({ length: depth }, (_, at) =>
      names.map((name): [string, Tensor] => [
        `model.layers.${at}.mlp.${name}.weight`,
        float32(name === 'down_proj' ? [24, 64] : [64, 24], new Float32Array(24 * 64)),
      ]),
    ).flat();
    const types = parameterInputs(
      new Map([...shapes, ['x', float32([tokens, 24], new Float32Array(tokens * 24))]]),
    );
    const program = trace<string>(types, (inputs) => {
      const feedForward = feedForwardOf(new Array<FeedForwardLayer>(depth).fill(layer));
      let hidden = inputs.x as Value;
      for (let at = 0; at < depth; at++) {
        const context = { layer: at, prefix: `model.layers.${at}.mlp` };
        const own = feedForward(at) as FeedForward;
        hidden = add(hidden, own(hidden, new Map(Object.entries(inputs)), context).y);
      }
      const parts = gradients(
        sum(hidden),
        shapes.map(([name]) => inputs[name] as Value),
      );
      return Object.fromEntries(parts.map((part, at) => [`gradient.${at}`, part]));
    });
    return liveness(schedule(simplify(program)), 'elsewhere').peakBytes;
  };

  it.each([
    ['dense', { kind: 'dense' }, 4 * 64 + 24],
    ['moc', mixture(), 5 * 12 + 24],
    ['moc that recomputes', mixture({ recompute: true }), 3 * 12 + 24],
    ['moc, structured', mixture({ select: 'structured' }), 5 * 16 + 24],
    ['moc by magnitude', mixture({ select: 'magnitude', active: 10 }), 5 * 10 + 24],
  ] as const)('a layer more of a program holds what the accounting says: %s', (_, config, elements) => {
    const [layer] = feedForwardLayers(config, { layers: 1, ...wide });
    expect(heldActivations(layer as FeedForwardLayer, wide)?.elements).toBe(elements);
    // The output of a layer is what the residual stream holds once more.
    const [three, four] = [3, 4].map((depth) => peak(layer as FeedForwardLayer, depth)) as [number, number];
    expect(four - three).toBe(4 * tokens * elements);
  });

  // Peak memory of training, decimal GB, dense less MoC and less MoC with recomputation: results of the paper's code.
  it.each([
    [{ hiddenSize: 512, intermediateSize: 1376, layers: 8 }, 256, 4.42, 4.96],
    [{ hiddenSize: 768, intermediateSize: 2048, layers: 12 }, 256, 9.87, 11.08],
    [{ hiddenSize: 1024, intermediateSize: 2736, layers: 24 }, 128, 13.28, 14.89],
    [{ hiddenSize: 2048, intermediateSize: 5461, layers: 24 }, 64, 13.15, 14.76],
  ])('saves what was published: %o', (model, batch, published, recomputed) => {
    const held = (config: ChannelsConfig | { kind: 'dense' }) =>
      feedForwardLayers(config, model).reduce(
        (total, layer) => total + (heldActivations(layer, model)?.elements ?? Number.NaN),
        0,
      );
    const bytes = 2 * batch * 256;
    const saved = (recompute: boolean) =>
      ((held({ kind: 'dense' }) - held(mixture({ recompute }))) * bytes) / 1e9;
    expect(Math.abs(saved(false) / published - 1)).toBeLessThan(0.03);
    expect(Math.abs(saved(true) / recomputed - 1)).toBeLessThan(0.03);
  });

  it('is told by layers that hold alike', () => {
    const asked = [
      { ...mixture(), layers: '1..2' },
      { ...mixture({ recompute: true }), layers: '3..3' },
    ];
    const held = heldByLayers(feedForwardLayers(asked, { layers: 4, ...wide }), wide);
    expect(describeHeld(held)).toEqual([
      'feed-forward activations, dense (layers 0): 4F + d = 280 elements a token',
      'feed-forward activations, moc (layers 1, 2): 5K + d = 84 elements a token, 0.30 x dense',
      'feed-forward activations, moc (layers 3): 3K + d = 60 elements a token, 0.21 x dense',
    ]);
    expect(describeHeld(heldByLayers([{ kind: 'dense' }], wide))).toEqual([]);
  });
});

describe('a step of few tokens, weights being constants', () => {
  const layer = mixtureOf({ active: 3 });
  const rows = (count: number) =>
    float32([count, sizes.hiddenSize], x.data.slice(0, count * sizes.hiddenSize));
  const step = (count: number, parameters: ReadonlyMap<string, Tensor>) =>
    trace(parameterInputs(new Map([['x', rows(count)]])), ({ x: given }) => {
      const context = { layer: 0, prefix };
      return { y: channelsFeedForward(layer)(given as Value, frozen(parameters), context).y };
    });
  const whole = (count: number, parameters: ReadonlyMap<string, Tensor>) => {
    const fed = { x: rows(count), ...Object.fromEntries(parameters) };
    const program = trace<string>(parameterInputs(new Map(Object.entries(fed))), (inputs) => ({
      y: channelsFeedForward(layer)(inputs.x as Value, new Map(Object.entries(inputs)), { layer: 0, prefix })
        .y,
    }));
    return { program, fed };
  };

  it.each([
    [1, false],
    [1, true],
    [2, true],
  ])('reads only the weights of kept channels: %i tokens, biases %o', async (count, bias) => {
    const parameters = layerParameters(layer, { bias });
    const program = step(count, parameters);
    const { program: all, fed } = whole(count, parameters);
    const [few, expected] = [await run(program, { x: rows(count) }), await run(all, fed)];
    for (const [at, value] of (expected.y as Float32Array).entries())
      expect(few.y?.[at]).toBeCloseTo(value, 5);
    const products = 2 * count * sizes.hiddenSize;
    const saved = products * 2 * (16 - 3);
    expect(countFlops(all) - countFlops(program)).toBeGreaterThan(0.9 * saved);
  });

  it('reads all where more tokens keep more than there is, and with adapters', async () => {
    const parameters = layerParameters(layer);
    expect(countFlops(step(3, parameters))).toBeGreaterThan(2 * 3 * sizes.hiddenSize * 3 * 16);
    const { normal } = random('adapter');
    const matrix = (shape: readonly [number, number]) =>
      float32(shape, Float32Array.from({ length: shape[0] * shape[1] }, normal));
    const [a, b] = [matrix([2, 16]), matrix([sizes.hiddenSize, 2])];
    const down = `${prefix}.down_proj`;
    const adapted = new Map<string, Tensor>([
      ...parameters,
      [`lora.${down}.A`, a],
      [`lora.${down}.B`, b],
      ['lora.scale', float32([], [0.5])],
    ]);
    const weight = parameters.get(`${down}.weight`) as Tensor & { dtype: 'float32' };
    const merged = float32(
      weight.shape,
      weight.data.map((value, at) => {
        const [row, column] = [Math.floor(at / 16), at % 16];
        const low = [0, 1].reduce(
          (total, rank) => total + (b.data[row * 2 + rank] ?? 0) * (a.data[rank * 16 + column] ?? 0),
          0,
        );
        return value + 0.5 * low;
      }),
    );
    const beside = await run(step(1, adapted), { x: rows(1) });
    const inside = await run(step(1, new Map([...parameters, [`${down}.weight`, merged]])), { x: rows(1) });
    for (const [at, value] of (inside.y as Float32Array).entries())
      expect(beside.y?.[at]).toBeCloseTo(value, 5);
  });
});

describe('configurations that cannot be', () => {
  it.each([
    [{ active: 17 }, /llm\.ffn\.active: 17 of 16 channels/],
    [
      { active: 3, select: 'structured' },
      /llm\.ffn\.active: 3, and 2 of every 8 of 16 channels are 2 x 2 \+ 0 of 0 = 4/,
    ],
  ] as const)('%o', (own, message) => {
    expect(() => mixtureOf(own)).toThrow(message);
  });

  it('half the hidden size, where that is more than there is', () => {
    expect(() => feedForwardLayers(mixture(), { layers: 1, hiddenSize: 40, intermediateSize: 16 })).toThrow(
      /active: 20 = 40 hidden \/ 2 of 16 channels/,
    );
  });
});
