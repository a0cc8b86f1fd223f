/** What it means to lower a primitive. */
import type { NodeOf, Primitive } from '../../tensor/program.ts';
import type { GraphBuilder } from './graph.ts';

/** Adds the ONNX operators of one node to a graph. */
export type Lower<P extends Primitive> = (context: {
  readonly graph: GraphBuilder;
  readonly node: NodeOf<P>;
  readonly attributes: NodeOf<P>['attributes'];
  /** ONNX names of the node's inputs and outputs. */
  readonly inputs: readonly string[];
  readonly outputs: readonly string[];
}) => void;

/** One entry per primitive. */
export type Lowerings = { readonly [P in Primitive]: Lower<P> };

/** Swaps the last two axes of a tensor; returns the new name. */
export function transposed(
  graph: GraphBuilder,
  name: string,
  rank: number,
  outputs: readonly string[],
): string {
  const perm = [...Array(rank).keys()].map((axis) => (axis < rank - 2 ? axis : 2 * rank - 3 - axis));
  const result = graph.temporary(`${outputs[0]}.transposed`);
  graph.node('Transpose', [name], [result], { perm });
  return result;
}
