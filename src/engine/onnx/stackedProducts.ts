/** Products of a stack of matrices by one matrix, as ONNX Runtime's CPU kernels take them: without reshapes around. */
import type { Node, Program, Value } from '../../tensor/program.ts';
import { rewired, rewrite } from '../../tensor/rewrites.ts';

/**
 * The program with `reshape(x, [rows, K]) * W` written as `reshape(x * W, [rows, N])`: the kernel sees one product all
 * the same, and reshapes that undo each other meet and vanish. Each costs microseconds, which add up where a product
 * of one row takes no longer.
 */
export function stackProducts(program: Program): Program {
  const stacked = rewired(program, (node, insert) => {
    const stack = stackOf(node);
    if (stack === undefined) return node;
    const [flat] = node.outputs as readonly [Value];
    const product = { ...node, inputs: [stack, node.inputs[1]] } as Node;
    const shape = [...stack.shape.slice(0, -1), flat.shape.at(-1) as number];
    const made = insert(product, { name: `${flat.name}:stack`, dtype: flat.dtype, shape });
    return { primitive: 'reshape', inputs: [made], attributes: { shape: flat.shape }, outputs: node.outputs };
  });
  return rewrite(stacked);
}

/** What was made flat for a product by one matrix. */
function stackOf(node: Node): Value | undefined {
  if (node.primitive !== 'matmul' || node.attributes.transposeA) return undefined;
  const [a, b] = node.inputs as readonly [Value, Value];
  if (a.node.primitive !== 'reshape' || a.shape.length !== 2 || b.shape.length !== 2) return undefined;
  const [stack] = a.node.inputs as readonly [Value];
  return stack.shape.length > 2 && stack.shape.at(-1) === a.shape.at(-1) ? stack : undefined;
}
