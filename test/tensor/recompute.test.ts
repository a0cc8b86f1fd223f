import { afterAll, describe, expect, it } from 'vitest';
import { random } from '../../src/config/random.ts';
import { type Engine, plain } from '../../src/engine/engine.ts';
import { onnxEngine } from '../../src/engine/onnx/engine.ts';
import { tfjsEngine } from '../../src/engine/tfjs/engine.ts';
import { gradients } from '../../src/tensor/gradients.ts';
import { interpret, type Numbers } from '../../src/tensor/interpret.ts';
import { liveness } from '../../src/tensor/liveness.ts';
import * as ops from '../../src/tensor/operations.ts';
import { partOf } from '../../src/tensor/parts.ts';
import { simplify } from '../../src/tensor/passes.ts';
import type { Program, Value } from '../../src/tensor/program.ts';
import { recomputableRegions, recompute } from '../../src/tensor/recompute.ts';
import { schedule } from '../../src/tensor/schedule.ts';
import { float32, type Tensor } from '../../src/tensor/tensor.ts';
import { scope, trace } from '../../src/tensor/trace.ts';
import { answerBatch, answerObjective } from '../../src/train/loss.ts';
import { gradientProgram } from '../../src/train/step.ts';
import { stepProgram } from '../../src/train/trainingState.ts';
import { allParameters, attentionOnly, audioLlm, llm, stream } from '../pal/fixture.ts';

const cpu = onnxEngine();
const engines: Engine[] = [cpu];
afterAll(async () => {
  for (const engine of engines) await engine.dispose();
});

const everyLayer = [...Array(llm.layers).keys()];
const variants = {
  'attention-only': [stream('one')],
  'attention-only with weights of its own and one projection for all layers': [
    stream('one', {
      connector: { kind: 'mlp', hidden: 8, perLayer: false },
      integration: { ...attentionOnly, audioNorm: 'own', keyValueProjection: 'separate' },
    }),
  ],
  prefix: [stream('two', { integration: { mode: 'prefix', startLayer: 0 } })],
  delayed: [stream('two', { integration: { mode: 'prefix', startLayer: 2 } })],
  'prefix and latent attention-only': [
    stream('two', { integration: { mode: 'prefix', startLayer: 1 } }),
    stream('three', { connector: { kind: 'latent', tokens: 2, heads: 2, blocks: 1, perLayer: true } }),
  ],
};
const frozenParts = { 'all of it': /^$/, 'the connectors': /^model/, 'the attention': /mlp|embed|norm/ };

function variant(streams: (typeof variants)['prefix'], frozenNames: RegExp, rows = 3, textRows = 8) {
  const model = audioLlm(streams);
  const parameters = allParameters(model);
  const frozen = new Map([...parameters].filter(([name]) => frozenNames.test(name)));
  const trainable = new Map([...parameters].filter(([name]) => !frozen.has(name)));
  const shape = { rows, textRows, targets: rows * textRows };
  const drawn = Array.from({ length: rows }, (_, row) => {
    const draw = random('recompute', row);
    const ids = Array.from({ length: textRows - (row % 2) }, () => draw.integer(llm.vocabularySize));
    const clip = new Map(
      streams.map(({ encoder, frames, width }) => [
        encoder,
        float32(
          [frames, width],
          Array.from({ length: frames * width }, () => draw.normal()),
        ),
      ]),
    );
    return { id: String(row), ids, clip, targets: ids.map((id, position) => ({ position, id })) };
  });
  const { feeds } = answerBatch(model, shape, drawn);
  const options = {
    objective: answerObjective(model, shape),
    trainable,
    frozen,
    optimizer: { kind: 'adamw', beta1: 0.9, beta2: 0.95, epsilon: 1e-8, weightDecay: 0.01 } as const,
    clipNorm: 1,
    accumulate: 1,
  };
  return { options, feeds: { ...Object.fromEntries(trainable), ...feeds } };
}

async function run(engine: Engine, program: Program, feeds: Record<string, Tensor>) {
  const executable = await engine.compile(program);
  const outputs = await executable.run(feeds);
  await executable.dispose();
  return Object.fromEntries(Object.keys(outputs).map((name) => [name, plain(outputs, name).data]));
}

const peak = (program: Program) => liveness(schedule(simplify(program)), 'elsewhere').peakBytes;

describe('recomputed activations', () => {
  for (const [name, streams] of Object.entries(variants)) {
    for (const [what, frozenNames] of Object.entries(frozenParts)) {
      it(`${name}, training ${what}: loss and gradients to the bit, with less memory`, async () => {
        const { options, feeds } = variant(streams, frozenNames);
        const [before, after] = [[], everyLayer].map((layers) =>
          gradientProgram({ ...options, recompute: layers }),
        ) as [Program, Program];
        expect(await run(cpu, after, feeds)).toEqual(await run(cpu, before, feeds));
        // Rows enough that activations outweigh the rest.
        const large = variant(streams, frozenNames, 16, 32).options;
        for (const inPlace of [true, false]) {
          const held = peak(stepProgram(large, inPlace));
          expect(peak(stepProgram({ ...large, recompute: everyLayer }, inPlace))).toBeLessThan(0.7 * held);
        }
      });
    }
  }

  it('with gradients that add up over micro-batches, and only some layers', async () => {
    const { options, feeds } = variant(variants.delayed, /^$/);
    const sums = Object.fromEntries([...options.trainable].map(([name, own]) => [`sum.${name}`, own]));
    const [before, after] = await Promise.all(
      [[], [0, 3]].map((layers) =>
        run(cpu, gradientProgram({ ...options, recompute: layers }, { accumulates: true }), {
          ...feeds,
          ...sums,
        }),
      ),
    );
    expect(after).toEqual(before);
  });

  it('are the same numbers on the reference interpreter and on TensorFlow.js', async () => {
    const { options, feeds } = variant(variants['prefix and latent attention-only'], /^$/);
    const programs = [[], everyLayer].map((layers) => gradientProgram({ ...options, recompute: layers }));
    const exact = Object.fromEntries(
      Object.entries(feeds).map(([name, { shape, data }]): [string, Numbers] => [
        name,
        { shape, data: Float64Array.from(data as Float32Array) },
      ]),
    );
    const [first, second] = programs.map((program) => interpret(simplify(program), exact));
    expect(second).toEqual(first);
    const tfjs = await tfjsEngine({ backend: 'cpu' });
    engines.push(tfjs);
    const [before, after] = [
      await run(tfjs, programs[0] as Program, feeds),
      await run(tfjs, programs[1] as Program, feeds),
    ];
    expect(after).toEqual(before);
  });

  it("survive the graph optimizers: every layer's softmax runs twice, at any level", async () => {
    const { options, feeds } = variant(variants.prefix, /^$/);
    const program = gradientProgram({ ...options, recompute: everyLayer });
    for (const optimization of ['disabled', 'all'] as const) {
      let softmaxes = 0;
      const engine = onnxEngine({
        optimization,
        onProfile: ({ kernels }) => {
          softmaxes = kernels.filter(({ operator }) => operator === 'Softmax').length;
        },
      });
      await run(engine, program, feeds);
      await engine.dispose();
      expect(softmaxes).toBe(2 * llm.layers);
    }
  });
});

describe('the pass', () => {
  const square = { dtype: 'float32', shape: [8, 8] } as const;
  const program = trace({ x: square, w: square }, ({ x, w }) => {
    const entering = scope('below', () => ops.tanh(x));
    const hidden = scope('block', () => ops.exp(ops.matmul(ops.exp(entering), w)));
    const loss = ops.sum(scope('above', () => ops.exp(ops.exp(hidden))));
    return { loss, dw: gradients(loss, [w])[0] as Value };
  });

  it('repeats what the backward pass reads, behind the gradient that comes in, as part of the backward pass', () => {
    const [region] = recomputableRegions(program, ['block']);
    expect(region?.repeated.map(({ primitive }) => primitive)).toEqual(['exp', 'matmul', 'exp']);
    expect(region?.entering.map(({ name }) => name)).toEqual(['below.tanh']);
    const made = schedule(simplify(recompute(program, [region as NonNullable<typeof region>])));
    const names = made.nodes.map((node) => node.outputs[0]?.name ?? '');
    const copies = names.filter((name) => name.endsWith('.recomputed'));
    expect(copies).toHaveLength(3);
    for (const copy of copies) {
      expect(names.indexOf(copy)).toBeGreaterThan(names.indexOf('gradient.above.exp.multiply'));
      expect(partOf({ name: copy })).toMatchObject({ name: 'block', direction: 'backward' });
    }
    expect(schedule(made).nodes).toEqual(made.nodes);
    expect(new Set(made.nodes.flatMap(({ outputs }) => outputs.map(({ id }) => id))).size).toBe(
      made.nodes.flatMap(({ outputs }) => outputs).length,
    );
  });

  it('lets a gradient that is not a number pass no value', () => {
    const made = recompute(program, recomputableRegions(program, ['block']));
    const numbers = (fill: number): Numbers => ({ shape: [8, 8], data: new Float64Array(64).fill(fill) });
    // The loss overflows, and its gradient with it.
    for (const fill of [0.1, 1e3]) {
      const feeds = { x: numbers(1), w: numbers(fill) };
      expect(interpret(simplify(made), feeds)).toEqual(interpret(simplify(program), feeds));
    }
  });

  it('leaves outputs as they are, and a scope without a backward pass', () => {
    const probed = trace({ x: square, w: square }, ({ x, w }) => {
      const below = scope('below', () => ops.exp(ops.tanh(x)));
      const inner = scope('block', () => ops.exp(below));
      const hidden = scope('block', () => ops.matmul(ops.exp(inner), w));
      const loss = ops.sum(scope('above', () => ops.exp(hidden)));
      return { loss, inner, dw: gradients(loss, [w])[0] as Value };
    });
    expect(recomputableRegions(probed, ['below'])).toEqual([]);
    const [region] = recomputableRegions(probed, ['block']);
    // The second exp is repeated, from the output that is held anyway.
    expect(region?.repeated.map(({ primitive }) => primitive)).toEqual(['exp']);
    expect(region?.entering).toEqual([probed.outputs.get('inner')]);
  });

  it('names a scope that is not there', () => {
    expect(() => recomputableRegions(program, ['block', 'layers.7'])).toThrow(
      'no value of the program stands in the scope "layers.7"',
    );
  });
});
