import { afterAll, describe, expect, it } from 'vitest';
import { random } from '../../src/config/random.ts';
import { plain } from '../../src/engine/engine.ts';
import { onnxEngine } from '../../src/engine/onnx/engine.ts';
import { tokenLogProbabilities, tokenLoss } from '../../src/llm/score.ts';
import { gradients } from '../../src/tensor/gradients.ts';
import { interpret } from '../../src/tensor/interpret.ts';
import {
  gatherElements,
  logSoftmax,
  matmul,
  multiply,
  negate,
  reshape,
  rmsNorm,
  sum,
} from '../../src/tensor/operations.ts';
import { simplify } from '../../src/tensor/passes.ts';
import type { Program, Value } from '../../src/tensor/program.ts';
import { schedule } from '../../src/tensor/schedule.ts';
import { float32, int32, sizeOf, type Tensor } from '../../src/tensor/tensor.ts';
import { trace } from '../../src/tensor/trace.ts';
import { llm } from '../pal/fixture.ts';

const [rows, vocabulary, hidden] = [13, llm.vocabularySize, llm.hiddenSize];
/** Thirteen rows of 23 logits in chunks of 3, 3, 3, 3 and 1. */
const limit = 3 * vocabulary;
const engine = onnxEngine();
afterAll(() => engine.dispose());

const names = ['hidden', 'head', 'norm'] as const;
const types = {
  hidden: { dtype: 'float32', shape: [rows, hidden] },
  head: { dtype: 'float32', shape: [vocabulary, hidden] },
  norm: { dtype: 'float32', shape: [hidden] },
  ids: { dtype: 'int32', shape: [rows] },
  weights: { dtype: 'float32', shape: [rows] },
} as const;
const draw = random('scores');
const normal = (shape: readonly number[]) =>
  float32(
    shape,
    Array.from({ length: sizeOf(shape) }, () => draw.normal()),
  );
const feeds: Record<string, Tensor> = {
  hidden: normal(types.hidden.shape),
  head: normal(types.head.shape),
  norm: normal(types.norm.shape),
  ids: int32(
    [rows],
    Array.from({ length: rows }, () => draw.integer(vocabulary)),
  ),
  weights: normal([rows]),
};

type Inputs = Readonly<Record<keyof typeof types, Value>>;

const parameters = ({ head, norm }: Inputs) =>
  new Map([
    ['model.embed_tokens.weight', head],
    ['model.norm.weight', norm],
  ]);

/** The obvious way: all logits, their logarithmic softmax, the tokens' entries. */
function obvious({ hidden: x, head, norm, ids }: Inputs): Value {
  const logitsNV = matmul(rmsNorm(x, norm, llm.rmsNormEpsilon), head, { transposeB: true });
  return reshape(gatherElements(logSoftmax(logitsNV), reshape(ids, [rows, 1]), 1), [rows]);
}

const obviousProgram = trace(types, (inputs) => {
  const loss = negate(sum(multiply(obvious(inputs), inputs.weights)));
  return withGradients(loss, inputs, names);
});

function withGradients(loss: Value, inputs: Inputs, of: readonly (typeof names)[number][]) {
  const parts = gradients(
    loss,
    of.map((name) => inputs[name]),
  );
  return { loss, ...Object.fromEntries(of.map((name, at) => [`gradient.${name}`, parts[at] as Value])) };
}

function chunked(of: readonly (typeof names)[number][]): Program {
  return trace(types, (inputs) =>
    withGradients(
      tokenLoss(llm, parameters(inputs), inputs.hidden, inputs.ids, inputs.weights, limit),
      inputs,
      of,
    ),
  );
}

/** The tables of logits, and of what has their size, in the order in which they are made. */
const tables = ({ nodes }: Program) =>
  nodes
    .flatMap(({ outputs }) => outputs)
    .filter(({ shape }) => shape[0] === vocabulary && shape[1] !== hidden);

describe('the loss of tokens in chunks', () => {
  it('is that of the whole table, with its gradients, also on an engine', async () => {
    const expected = interpret(obviousProgram, feeds);
    const found = interpret(chunked(names), feeds);
    const executable = await engine.compile(chunked(names));
    const run = await executable.run(feeds);
    for (const [name, { data }] of Object.entries(expected)) {
      const scale = Math.max(...Array.from(data, (value) => Math.abs(Number(value))));
      for (const [at, value] of Array.from(data).entries()) {
        expect(Math.abs(Number(found[name]?.data[at]) - Number(value)) / scale, name).toBeLessThan(1e-12);
        expect(Math.abs(Number(plain(run, name).data[at]) - Number(value)) / scale, name).toBeLessThan(1e-5);
      }
    }
  });

  it('never holds the logits of more than one chunk, whether the head is trained or not', () => {
    for (const of of [['hidden'], ['hidden', 'head'], ['hidden', 'head', 'norm']] as const) {
      const program = schedule(simplify(chunked(of)));
      const biggest = Math.max(...tables(program).map(({ shape }) => sizeOf(shape)));
      expect(biggest).toBe(limit);
      expect(Math.max(...tablesHeld(program))).toBe(1);
    }
  });

  it('computes nothing for a frozen head', () => {
    const shapes = (program: Program) =>
      schedule(simplify(program)).nodes.filter(
        ({ primitive, outputs }) => primitive === 'matmul' && outputs[0]?.shape[0] === vocabulary,
      ).length;
    // Five chunks of logits; with a trained head, five of its gradient as well.
    expect(shapes(chunked(['hidden']))).toBe(5);
    expect(shapes(chunked(names))).toBe(10);
  });

  it('scores tokens in chunks as well', () => {
    const scored = (score: (inputs: Inputs) => Value) =>
      interpret(
        trace(types, (inputs) => ({ scores: score(inputs) })),
        feeds,
      ).scores?.data as Float64Array;
    const expected = scored(obvious);
    const found = scored((inputs) =>
      tokenLogProbabilities(llm, parameters(inputs), inputs.hidden, inputs.ids, limit),
    );
    expect(found).toHaveLength(rows);
    for (const [at, value] of found.entries()) expect(value).toBeCloseTo(expected[at] as number, 6);
  });
});

/** After each node, how many tables are still to be read. */
function tablesHeld(program: Program): number[] {
  const all = tables(program);
  return program.nodes.map((_, now) => {
    const made = new Set(program.nodes.slice(0, now + 1).flatMap(({ outputs }) => outputs));
    const later = new Set(program.nodes.slice(now + 1).flatMap(({ inputs }) => inputs));
    return all.filter((value) => made.has(value) && later.has(value)).length;
  });
}

it('a large vocabulary is added up without rounding in one direction', async () => {
  const [count, words, width] = [64, 49_152, 8];
  const large = {
    hidden: normal([count, width]),
    head: normal([words, width]),
    norm: float32([width], Array(width).fill(1)),
    ids: int32(
      [count],
      Array.from({ length: count }, () => draw.integer(words)),
    ),
  };
  const shapes = Object.fromEntries(
    Object.entries(large).map(([name, { dtype, shape }]) => [name, { dtype, shape }]),
  );
  const program = trace(shapes, (inputs) => {
    const weights = parameters(inputs as Inputs);
    return { scores: tokenLogProbabilities(llm, weights, inputs.hidden as Value, inputs.ids as Value) };
  });
  const executable = await engine.compile(program);
  const found = plain(await executable.run(large), 'scores').data as Float32Array;
  const exact = interpret(program, large).scores?.data as Float64Array;
  const mean = exact.reduce((total, score, at) => total + (found[at] as number) - score, 0) / count;
  expect(Math.abs(mean)).toBeLessThan(2e-6);
});
