/** Every selection against a version of it in PyTorch that goes token by token: test/golden/sffn.py. */
import { readFileSync } from 'node:fs';
import { afterAll, describe, expect, it } from 'vitest';
import { plain } from '../../src/engine/engine.ts';
import { onnxEngine } from '../../src/engine/onnx/engine.ts';
import { tfjsEngine } from '../../src/engine/tfjs/engine.ts';
import type { FeedForwardConfig } from '../../src/ffn/config.ts';
import { interpret } from '../../src/tensor/interpret.ts';
import { float32 } from '../../src/tensor/tensor.ts';
import { fill } from '../llm/formula.ts';
import { layerOf, layerParameters, layerProgram, sizes } from './layer.ts';

interface Golden {
  readonly case: FeedForwardConfig & {
    readonly bias?: boolean;
    readonly rows?: number;
    readonly tokens?: readonly number[];
    readonly valid?: readonly number[];
    readonly table?: readonly (readonly number[])[];
    readonly copies?: readonly (readonly [name: string, to: number, from: number, rows: number])[];
  };
  readonly output: readonly number[];
  readonly auxiliaryLoss: number | null;
  readonly load: readonly number[];
  readonly dropped: number;
  readonly gradients: Readonly<Record<string, readonly number[]>>;
}

const golden = JSON.parse(readFileSync('test/golden/sffn.json', 'utf8')) as Record<string, Golden>;
const engines = { onnx: onnxEngine({ threads: 2 }), tfjs: await tfjsEngine({ backend: 'wasm' }) };
afterAll(() => Promise.all(Object.values(engines).map((engine) => engine.dispose())));

/** Of channels: nothing of it is ever dropped. */
const isMixture = (own: Golden['case']) => own.kind === 'moc';

function programOf({ case: own }: Golden) {
  const { bias, rows = 9, tokens, valid, table, copies = [], ...config } = own;
  const sparse = { kind: 'sparse', memory: null, capacityFactor: null };
  const channels = { recompute: false };
  const layer = layerOf({ ...(isMixture(own) ? channels : sparse), ...config } as FeedForwardConfig);
  const parameters = layerParameters(layer, { bias: bias === true });
  for (const [name, to, from, count] of copies) {
    const { shape, data } = parameters.get(name) as { shape: readonly number[]; data: Float32Array };
    const width = shape[1] as number;
    data.copyWithin(to * width, from * width, (from + count) * width);
  }
  const shape = [rows, sizes.hiddenSize];
  const x = float32(
    shape,
    fill('hidden_states_embed', shape).data.map((value) => 2 * value),
  );
  return layerProgram({ layer, parameters, x, targets: fill('targets_embed', shape), tokens, valid, table });
}

type Numbers = Readonly<Record<string, ArrayLike<number>>>;

/** Compares what a run gives with what PyTorch says. */
function expectGolden(outputs: Numbers, own: Golden, tolerance: number): void {
  const close = (name: string, expected: readonly number[], every = 1) => {
    const found = Array.from(outputs[name] as ArrayLike<number>).filter((_, at) => at % every === 0);
    expect(found.length, name).toBe(expected.length);
    const largest = Math.max(...expected.map(Math.abs), 1);
    for (const [at, value] of expected.entries())
      expect(Math.abs((found[at] as number) - value) / largest, `${name}[${at}]`).toBeLessThan(tolerance);
  };
  close('output', own.output);
  if (own.auxiliaryLoss === null) expect(outputs).not.toHaveProperty('auxiliaryLoss');
  else close('auxiliaryLoss', [own.auxiliaryLoss]);
  for (const [name, values] of Object.entries(own.gradients))
    close(`gradient.${name}`, values, name === 'x' ? 1 : 5);
  const untold = Object.keys(outputs).filter(
    (name) => name.startsWith('gradient.') && !(name.slice('gradient.'.length) in own.gradients),
  );
  expect(untold).toEqual([]);
  const total = own.load.reduce((sum, load) => sum + load, 0);
  const share = own.load.map((load) => load / total);
  close('statistic.load', [Math.max(...share) * own.load.length]);
  if (isMixture(own.case)) expect(outputs).not.toHaveProperty('statistic.overflow');
  else close('statistic.overflow', [own.dropped / total]);
  close('statistic.deadBlocks', [own.load.filter((load) => load === 0).length]);
  const entropy = share.reduce((sum, own) => sum - (own === 0 ? 0 : own * Math.log(own)), 0);
  close('statistic.entropy', [entropy / Math.log(own.load.length)]);
}

describe.each(Object.entries(golden))('%s', (_, own) => {
  it('in float64', () => {
    const { program, feeds } = programOf(own);
    const outputs = interpret(program, feeds);
    expectGolden(
      Object.fromEntries(Object.entries(outputs).map(([name, { data }]) => [name, data])),
      own,
      1e-7,
    );
  });

  for (const [name, engine] of Object.entries(engines)) {
    it(`on ${name}`, async () => {
      const { program, feeds } = programOf(own);
      const executable = await engine.compile(program);
      const outputs = await executable.run(feeds);
      const numbers = [...program.outputs.keys()].map((output) => [
        output,
        plain(outputs, output).data as Float32Array,
      ]);
      expectGolden(Object.fromEntries(numbers), own, 1e-5);
      await executable.dispose();
    });
  }
});
