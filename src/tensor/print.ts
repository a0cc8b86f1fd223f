/** A program as text that a person can read, and cost figures of it. */
import type { Node, Program } from './program.ts';
import { flopsOf } from './shapes.ts';
import { formatShape } from './tensor.ts';

/**
 * One line a node: `layers.0.mlp.up: float32[2, 8] = matmul(hidden, layers.0.mlp.up_proj.weight) transposeB`.
 */
export function printProgram(program: Program): string {
  const outputs = [...program.outputs].map(([name, value]) => `${name} = ${value.name}`);
  return [...program.nodes.map(printNode), `outputs: ${outputs.join(', ')}`].join('\n');
}

/** One node as one line. */
export function printNode(node: Node): string {
  const made = node.outputs
    .map((value) => `${value.name}: ${value.dtype}${formatShape(value.shape)}`)
    .join(', ');
  const operands = node.inputs.map((value) => value.name).join(', ');
  return `${made} = ${node.primitive}(${operands})${printAttributes(node)}`;
}

function printAttributes(node: Node): string {
  if (node.primitive === 'input') return '';
  if (node.primitive === 'constant') {
    const { data } = node.attributes.tensor;
    return data.length <= 8
      ? ` {${Array.from(data as ArrayLike<number | bigint>).join(', ')}}`
      : ` {${data.length} elements}`;
  }
  const entries = Object.entries(node.attributes as Record<string, unknown>).filter(
    ([, value]) => value !== false,
  );
  const parts = entries.map(([name, value]) => (value === true ? name : `${name}=${JSON.stringify(value)}`));
  return parts.length === 0 ? '' : ` ${parts.join(' ')}`;
}

/** Floating-point operations of one run; a multiply-add counts as two. */
export function countFlops(program: Program): number {
  return program.nodes.reduce((total, node) => total + flopsOf(node), 0);
}
