/** The matrix products of a training step: every shape and transposition that occurs, and how often. */
import { simplify } from '../src/tensor/passes.ts';
import type { Attributes } from '../src/tensor/program.ts';
import type { Shape } from '../src/tensor/tensor.ts';
import { answerObjective } from '../src/train/loss.ts';
import { gradientProgram } from '../src/train/step.ts';
import { type BenchShapeName, benchModel, benchShapes, randomParameters } from './models.ts';

export interface Product extends Pick<Attributes['matmul'], 'transposeA' | 'transposeB'> {
  readonly a: Shape;
  readonly b: Shape;
  /** In one step. */
  readonly count: number;
  /** Of one product; a multiply-add counts as two. */
  readonly flops: number;
}

/** Largest share of the step's arithmetic first. */
export function productsOf(name: BenchShapeName): Product[] {
  const { llm, batch: rows, rows: textRows } = benchShapes[name];
  const program = simplify(
    gradientProgram({
      objective: answerObjective(benchModel(llm), { rows, textRows, targets: rows * textRows }),
      trainable: randomParameters(llm),
      frozen: new Map(),
    }),
  );
  const products = new Map<string, Product>();
  for (const node of program.nodes) {
    if (node.primitive !== 'matmul') continue;
    const { transposeA, transposeB } = node.attributes;
    const [a, b, y] = [...node.inputs, ...node.outputs].map(({ shape }) => shape) as [Shape, Shape, Shape];
    const key = JSON.stringify([a, b, transposeA, transposeB]);
    const inner = a.at(transposeA ? -2 : -1) as number;
    const flops = 2 * inner * y.reduce((size, dimension) => size * dimension, 1);
    const count = (products.get(key)?.count ?? 0) + 1;
    products.set(key, { a, b, transposeA, transposeB, count, flops });
  }
  return [...products.values()].sort((p, q) => q.count * q.flops - p.count * p.flops);
}
