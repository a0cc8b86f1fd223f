/** What must hold of blocks exactly, whatever PyTorch says (the checks of Liu et al. 2023's unified view). */
import { afterAll, describe, expect, it } from 'vitest';
import { random } from '../../src/config/random.ts';
import { onnxEngine } from '../../src/engine/onnx/engine.ts';
import { type FeedForwardConfig, feedForwardLayers, type SparseLayer } from '../../src/ffn/config.ts';
import { loadOf, mostGroups, planDispatch, slotsPerGroup, sumBefore } from '../../src/ffn/dispatch.ts';
import { hashTable } from '../../src/ffn/hashTable.ts';
import { feedForwardOf } from '../../src/ffn/layers.ts';
import { select } from '../../src/ffn/selection.ts';
import { throughBlocks } from '../../src/ffn/sparse.ts';
import { gradients } from '../../src/tensor/gradients.ts';
import { interpret } from '../../src/tensor/interpret.ts';
import {
  constant,
  expand,
  filled,
  linear,
  mean,
  multiply,
  reshape,
  scatterElements,
  silu,
  softmax,
  sum,
  topK,
} from '../../src/tensor/operations.ts';
import { parameterInputs } from '../../src/tensor/parameters.ts';
import { countFlops } from '../../src/tensor/print.ts';
import type { Program, Value } from '../../src/tensor/program.ts';
import { float32, int32, type Tensor } from '../../src/tensor/tensor.ts';
import { trace } from '../../src/tensor/trace.ts';
import { fill } from '../llm/formula.ts';
import { layerOf, layerParameters, layerProgram, runOn, sizes } from './layer.ts';

const engine = onnxEngine({ threads: 2 });
afterAll(() => engine.dispose());

const run = (program: Program, feeds: Record<string, Tensor>) => runOn(engine, program, feeds);

const shape = [9, sizes.hiddenSize];
const x = fill('hidden_states_embed', shape);
const targets = fill('targets_embed', shape);
const mlp = 'model.layers.0.mlp';

const blocks = (blockSize: number, active: number, gate = 'indicator'): FeedForwardConfig =>
  ({
    kind: 'sparse',
    memory: null,
    capacityFactor: null,
    select: 'avg-k',
    blockSize,
    active,
    gate,
  }) as FeedForwardConfig;

const stepOf = (config: FeedForwardConfig, over: Partial<Parameters<typeof layerProgram>[0]> = {}) => {
  const layer = layerOf(config);
  return layerProgram({ layer, parameters: layerParameters(layer), x, targets, ...over });
};

function expectClose(found: ArrayLike<number>, expected: ArrayLike<number>, tolerance: number): void {
  expect(found.length).toBe(expected.length);
  for (const [at, value] of Array.from(expected).entries())
    expect(Math.abs((found[at] as number) - value)).toBeLessThan(tolerance);
}

describe('a layer that uses every block', () => {
  const dense = stepOf({ kind: 'dense' });

  for (const [name, config] of Object.entries({
    'avg-k': blocks(4, 4),
    'avg-k of cells': blocks(1, 16),
    'one block': blocks(16, 1),
  })) {
    it(`is the dense layer, to the bit (${name})`, async () => {
      const { program, feeds } = stepOf(config);
      const [sparse, expected] = [await run(program, feeds), await run(dense.program, dense.feeds)];
      for (const [output, values] of Object.entries(expected)) expect(sparse[output], output).toEqual(values);
    });
  }

  it('and is so through the blocks themselves, to rounding', async () => {
    // Room for all in every block: the same choices, but sent through the dispatch.
    const { program, feeds } = stepOf({ ...blocks(4, 4), capacityFactor: 4 } as FeedForwardConfig);
    expect(program.nodes.some(({ primitive }) => primitive === 'topK')).toBe(true);
    const [sparse, expected] = [await run(program, feeds), await run(dense.program, dense.feeds)];
    for (const [output, values] of Object.entries(expected)) expectClose(sparse[output] ?? [], values, 3e-6);
  });
});

/** The scores and choices of a layer. */
function selectionOf(config: FeedForwardConfig, weight: Tensor & { dtype: 'float32' }) {
  const layer = layerOf(config) as SparseLayer;
  const program = trace({ x: { dtype: 'float32', shape }, keys: weight }, (inputs) => {
    const found = select(layer, {
      xTD: inputs.x,
      prefix: 'ffn.layers.0',
      parameters: new Map(),
      keys: { weight: inputs.keys },
      tokensT: undefined,
      validT: undefined,
    });
    return { blocks: found.blocksTC, weights: found.weightsTC ?? found.loadB };
  });
  return interpret(program, { x, keys: weight });
}

describe('Avg-K', () => {
  const gate = layerParameters({ kind: 'dense' }).get(`${mlp}.gate_proj.weight`) as Tensor & {
    dtype: 'float32';
  };

  it("scores a block by the mean of its cells' pre-activations", () => {
    // Sigmoid gates of every block, sorted by the score: undone, they are the scores.
    const { blocks: chosen, weights } = selectionOf(blocks(4, 4, 'sigmoid'), gate);
    for (let token = 0; token < 9; token++) {
      for (let place = 0; place < 4; place++) {
        const block = chosen?.data[4 * token + place] as number;
        let mean = 0;
        for (let cell = 4 * block; cell < 4 * block + 4; cell++)
          for (let at = 0; at < 6; at++)
            mean += ((x.data[6 * token + at] ?? 0) * (gate.data[6 * cell + at] ?? 0)) / 4;
        const probability = weights?.data[4 * token + place] as number;
        expect(Math.log(probability / (1 - probability))).toBeCloseTo(mean, 6);
      }
    }
  });

  it('with blocks of one cell chooses as vanilla memory does, and gives the same', async () => {
    const vanilla = { ...blocks(1, 6), select: 'vanilla-memory', aggregate: 'mean' } as FeedForwardConfig;
    expect(selectionOf(blocks(1, 6), gate).blocks).toEqual(selectionOf(vanilla, gate).blocks);
    const [own, other] = [stepOf(blocks(1, 6)), stepOf(vanilla)];
    const [a, b] = [await run(own.program, own.feeds), await run(other.program, other.feeds)];
    for (const output of Object.keys(a)) expectClose(a[output] ?? [], b[output] ?? [], 1e-6);
  });

  it('does not change where blocks change places; only the choice does', async () => {
    const layer = layerOf(blocks(4, 2));
    const parameters = layerParameters(layer);
    const order = [2, 0, 3, 1];
    const moved = new Map(
      [...parameters].map(([name, { shape: own, data }]) => {
        const values = new Float32Array(data.length);
        const [rows, columns] = own as [number, number];
        const isDown = name.includes('down');
        for (let row = 0; row < rows; row++)
          for (let column = 0; column < columns; column++) {
            const cell = isDown ? column : row;
            const source = 4 * (order[Math.floor(cell / 4)] as number) + (cell % 4);
            values[row * columns + column] = data[
              isDown ? row * columns + source : source * columns + column
            ] as number;
          }
        return [name, float32(own, values)];
      }),
    );
    const [plainStep, movedStep] = [stepOf(blocks(4, 2)), stepOf(blocks(4, 2), { parameters: moved })];
    const [a, b] = [
      await run(plainStep.program, plainStep.feeds),
      await run(movedStep.program, movedStep.feeds),
    ];
    expectClose(b.output ?? [], a.output ?? [], 1e-6);
    expectClose(b['gradient.x'] ?? [], a['gradient.x'] ?? [], 1e-6);
    const [before, after] = [
      selectionOf(blocks(4, 2), parameters.get(`${mlp}.gate_proj.weight`) as never),
      selectionOf(blocks(4, 2), moved.get(`${mlp}.gate_proj.weight`) as never),
    ];
    const named = Array.from(after.blocks?.data ?? [], (block) => order[block]);
    expect(named).toEqual(Array.from(before.blocks?.data ?? []));
  });
});

describe('a hash layer', () => {
  const config = {
    kind: 'sparse',
    memory: null,
    capacityFactor: null,
    select: 'hash',
    blockSize: 4,
    active: 2,
    balance: 'none',
  } as const;

  it('sends a token to the blocks of its row of the table, whatever its hidden state is', () => {
    const table = hashTable({ blocks: 4, active: 2, balance: 'none' }, 50, new Map(), random(1));
    const rowOf = (token: number) => Array.from(table.data.slice(2 * token, 2 * token + 2));
    for (let token = 0; token < 50; token++) expect(new Set(rowOf(token)).size).toBe(2);
    const tokens = [0, 1, 0, 2, 49, 0, 0, 2, 2];
    const program = trace(
      { x: { dtype: 'float32', shape }, tokens: { dtype: 'int32', shape: [9] } },
      (inputs) => ({
        blocks: select(layerOf(config) as SparseLayer, {
          xTD: inputs.x,
          prefix: 'ffn.layers.0',
          parameters: new Map([['ffn.layers.0.table', constant(table)]]),
          keys: { weight: inputs.x },
          tokensT: inputs.tokens,
          validT: undefined,
        }).blocksTC,
      }),
    );
    const far = float32(
      shape,
      x.data.map((value, at) => 5 * value - at),
    );
    for (const states of [x, far]) {
      const { blocks: found } = interpret(program, { x: states, tokens: int32([9], tokens) });
      expect(Array.from(found?.data ?? [])).toEqual(tokens.flatMap(rowOf));
    }
  });

  it('gives blocks as much to do by the frequencies of tokens', () => {
    const frequencies = new Map(
      Array.from({ length: 400 }, (_, token) => [token, Math.ceil(4000 / (token + 1))]),
    );
    const spread = (balance: 'frequency' | 'none') => {
      const table = hashTable({ blocks: 8, active: 1, balance }, 400, frequencies, random(2));
      const load = new Float64Array(8);
      for (const [token, count] of frequencies)
        load[table.data[token] as number] = (load[table.data[token] as number] ?? 0) + count;
      return Math.max(...load) / (load.reduce((sum, own) => sum + own) / 8);
    };
    // The most frequent token alone is more than a block's share.
    expect(spread('frequency')).toBeLessThan(1.35);
    expect(spread('none')).toBeGreaterThan(spread('frequency') + 0.1);
  });
});

describe('the dispatch', () => {
  const [tokens, each, count] = [3000, 3, 7];
  const draw = random('choices');
  // Block 0 is crowded, block 6 empty.
  const chosen = Array.from({ length: tokens }, () => draw.shuffle([1, 2, 3, 4, 5]).slice(0, each)).map(
    (row) => (draw.uniform() < 0.7 ? [0, ...row.slice(1)] : row),
  );
  const valid = Array.from({ length: tokens }, () => (draw.uniform() < 0.8 ? 1 : 0));

  const planned = (capacity: number | null, masked: boolean) =>
    trace<string>(
      {
        blocks: { dtype: 'int32', shape: [tokens, each] },
        ...(masked && { valid: { dtype: 'float32', shape: [tokens] } }),
      },
      (inputs) => {
        const choices = { blocksTC: inputs.blocks as Value, validT: inputs.valid };
        const load = loadOf(choices, count);
        const { blockOfGroup, choiceS, takenS, slotTC, keptTC } = planDispatch(choices, load, capacity);
        return {
          load,
          choiceS,
          takenS,
          slotTC,
          ...(blockOfGroup && { blockOfGroup }),
          ...(keptTC && { keptTC }),
        };
      },
    );

  it.each([
    [null, false],
    [null, true],
    [700, false],
    [700, true],
    [1, true],
  ])(
    'puts every choice into one slot of its block, in order (capacity %s, padding %s)',
    async (capacity, masked) => {
      const program = planned(capacity, masked);
      const outputs = await run(program, {
        blocks: int32([tokens, each], chosen.flat()),
        ...(masked && { valid: float32([tokens], valid) }),
      });
      const slots = capacity ?? slotsPerGroup(tokens * each, count);
      const taken = new Set<number>();
      const seen = new Array<number>(count).fill(0);
      let kept = 0;
      for (const [token, row] of chosen.entries()) {
        for (const [place, block] of row.entries()) {
          const choice = token * each + place;
          const isReal = !masked || valid[token] === 1;
          const rank = seen[block] as number;
          if (isReal) seen[block] = rank + 1;
          const isKept = isReal && (capacity === null || rank < capacity);
          expect(outputs.keptTC?.[choice] ?? 1).toBe(isKept ? 1 : 0);
          if (!isKept) continue;
          kept++;
          const slot = outputs.slotTC?.[choice] as number;
          expect(taken.has(slot)).toBe(false);
          taken.add(slot);
          const group = Math.floor(slot / slots);
          expect(outputs.blockOfGroup?.[group] ?? group).toBe(block);
          expect(slot % slots).toBe(rank % slots);
          expect(outputs.choiceS?.[slot]).toBe(choice);
        }
      }
      expect(outputs.takenS?.reduce((sum, one) => sum + one)).toBe(kept);
      expect(Array.from(outputs.load ?? [])).toEqual(seen);
    },
  );

  it('has room for any distribution, and never more groups than one needs', () => {
    for (const [choices, blocksHere, slots] of [
      [10, 4, 4],
      [3, 8, 2],
      [64, 1, 16],
      [7, 7, 1],
      [100, 5, 8],
    ] as const) {
      // Whole groups for all but a remainder in as many blocks as possible is the worst.
      let worst = 0;
      const fillBlocks = (left: number, at: number, groups: number): void => {
        if (at === blocksHere - 1) worst = Math.max(worst, groups + Math.ceil(left / slots));
        else
          for (const own of new Set([0, 1, slots, slots + 1, left].filter((size) => size <= left)))
            fillBlocks(left - own, at + 1, groups + Math.ceil(own / slots));
      };
      fillBlocks(choices, 0, 0);
      expect(mostGroups(choices, blocksHere, slots)).toBe(worst);
    }
  });

  it('sums what stands before, at any length', () => {
    for (const length of [1, 2, 3, 7, 16, 50]) {
      const program = trace({ x: { dtype: 'float32', shape: [length] } }, ({ x: given }) => ({
        y: sumBefore(given),
      }));
      const values = Array.from({ length }, (_, at) => at * at + 1);
      const expected = values.map((_, at) => values.slice(0, at).reduce((a, b) => a + b, 0));
      expect(Array.from(interpret(program, { x: float32([length], values) }).y?.data ?? [])).toEqual(
        expected,
      );
    }
  });
});

it('multiplies what was chosen and no more', () => {
  const layer = layerOf(blocks(4, 1)) as SparseLayer;
  const rows = 512;
  const memory = layerParameters(layer);
  const program = trace(
    { x: { dtype: 'float32', shape: [rows, 6] }, blocks: { dtype: 'int32', shape: [rows, 1] } },
    (inputs) => {
      const choices = { blocksTC: inputs.blocks };
      const dispatch = planDispatch(choices, loadOf(choices, layer.blocks), rows / layer.blocks);
      const input = (name: string) => constant(memory.get(name) as Tensor);
      const parts = {
        gate: input(`${mlp}.gate_proj.weight`),
        up: input(`${mlp}.up_proj.weight`),
        down: input(`${mlp}.down_proj.weight`),
        gateBias: undefined,
        upBias: undefined,
        downBias: undefined,
      };
      return { y: throughBlocks(layer, parts, inputs.x, {}, dispatch) };
    },
  );
  const products = program.nodes.filter(
    ({ primitive, outputs }) => primitive === 'matmul' && outputs[0]?.shape.length === 3,
  );
  // 512 tokens with 4 of 16 cells of width 6: gate and up in one, down.
  expect(countFlops({ ...program, nodes: products })).toBe(3 * 2 * 512 * 4 * 6);
});

it('is the dense layer with what was not chosen masked, over many tokens and two threads', async () => {
  const [rows, count, size, active] = [1024, 16, 8, 4];
  const [width, cells] = [32, count * size];
  const config: FeedForwardConfig = {
    kind: 'sparse',
    memory: null,
    capacityFactor: null,
    select: 'avg-k',
    blockSize: size,
    active,
    gate: 'softmax',
  };
  const [layer] = feedForwardLayers(config, { layers: 1, hiddenSize: width, intermediateSize: cells });
  const draw = random('many tokens');
  const drawn = (own: readonly number[], scale = 1) =>
    float32(
      own,
      Float32Array.from({ length: own.reduce((a, b) => a * b) }, () => scale * draw.normal()),
    );
  const feeds = {
    x: drawn([rows, width]),
    targets: drawn([rows, width]),
    [`${mlp}.gate_proj.weight`]: drawn([cells, width], width ** -0.5),
    [`${mlp}.up_proj.weight`]: drawn([cells, width], width ** -0.5),
    [`${mlp}.down_proj.weight`]: drawn([width, cells], cells ** -0.5),
  };
  const inputs = parameterInputs(new Map(Object.entries(feeds)));
  const learned = Object.keys(feeds).filter((name) => name !== 'targets');
  const step = (forward: (given: Readonly<Record<string, Value>>) => Value) =>
    trace<string>(inputs, (given) => {
      const output = forward(given);
      const loss = sum(multiply(output, given.targets as Value));
      const parts = gradients(
        loss,
        learned.map((name) => given[name] as Value),
      );
      return {
        output,
        ...Object.fromEntries(learned.map((name, at) => [`gradient.${name}`, parts[at] as Value])),
      };
    });
  const sparse = step(
    (given) =>
      feedForwardOf([layer as SparseLayer])(0)?.(given.x as Value, new Map(Object.entries(given)), {
        layer: 0,
        prefix: mlp,
      }).y as Value,
  );
  const masked = step((given) => {
    const [x = given.x as Value, gate, up, down] = learned.map((name) => given[name] as Value);
    const keys = mean(reshape(gate as Value, [count, size, width]), [1]);
    const { values, indices } = topK(linear(x, keys), active);
    const weights = scatterElements(filled('float32', [rows, count], 0), indices, softmax(values), 1);
    const byCell = reshape(expand(reshape(weights, [rows, count, 1]), [rows, count, size]), [rows, cells]);
    const hidden = multiply(silu(linear(x, gate as Value)), linear(x, up as Value));
    return linear(multiply(hidden, byCell), down as Value);
  });
  const [found, expected] = [await run(sparse, feeds), await run(masked, feeds)];
  for (const [output, values] of Object.entries(expected)) {
    const largest = values.reduce((most, value) => Math.max(most, Math.abs(value)), 0);
    expectClose(found[output] ?? [], values, 1e-5 * largest);
  }
});
