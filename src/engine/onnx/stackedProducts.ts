/** Products of a stack of matrices by one matrix, as ONNX Runtime's CPU kernels take them: without reshapes around. */
import { type Node, type Program, unusedId, type Value } from '../../tensor/program.ts';
import { rewrite, takeOver } from '../../tensor/rewrites.ts';

/**
 * The program with `reshape(x, [rows, K]) * W` written as `reshape(x * W, [rows, N])`: the kernel sees one product all
 * the same, and reshapes that undo each other meet and vanish. Each costs microseconds, which add up where a product
 * of one row takes no longer.
 */
export function stackProducts(program: Program): Program {
  const replacement = new Map<Value, Value>();
  const resolve = (value: Value) => replacement.get(value) ?? value;
  const nodes: Node[] = [];
  let nextId = unusedId(program);
  for (const original of program.nodes) {
    const inputs = original.inputs.map(resolve);
    const node = { ...original, inputs } as Node;
    const stack = stackOf(node);
    if (stack === undefined) {
      nodes.push(takeOver(node, original.outputs, replacement));
      continue;
    }
    const [flat] = original.outputs as readonly [Value];
    const outputs: Value[] = [];
    const product = { ...node, inputs: [stack, inputs[1]], outputs } as Node;
    const shape = [...stack.shape.slice(0, -1), flat.shape.at(-1) as number];
    const stacked: Value = { ...flat, id: nextId++, name: `${flat.name}:stack`, shape, node: product };
    outputs.push(stacked);
    nodes.push(product);
    const reshape: Node = {
      primitive: 'reshape',
      inputs: [stacked],
      attributes: { shape: flat.shape },
      outputs: [],
    };
    nodes.push(takeOver(reshape, original.outputs, replacement));
  }
  const outputs = new Map([...program.outputs].map(([name, value]) => [name, resolve(value)]));
  const inputs = new Map([...program.inputs].map(([name, value]) => [name, resolve(value)]));
  return rewrite({ nodes, inputs, outputs });
}

/** What was made flat for a product by one matrix. */
function stackOf(node: Node): Value | undefined {
  if (node.primitive !== 'matmul' || node.attributes.transposeA) return undefined;
  const [a, b] = node.inputs as readonly [Value, Value];
  if (a.node.primitive !== 'reshape' || a.shape.length !== 2 || b.shape.length !== 2) return undefined;
  const [stack] = a.node.inputs as readonly [Value];
  return stack.shape.length > 2 && stack.shape.at(-1) === a.shape.at(-1) ? stack : undefined;
}
