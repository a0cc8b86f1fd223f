/** The order in which a program's nodes run: it decides how much memory is held at once. */
import { isLeaf, type Node, type Program } from './program.ts';

/**
 * The program in the order of a depth-first walk from the nodes that nobody reads, earlier ones first: as it was
 * written, but each value as late as its readers allow. Scheduling again changes nothing.
 */
export function schedule(program: Program): Program {
  const index = new Map(program.nodes.map((node, at) => [node, at]));
  const read = new Set(program.nodes.flatMap((node) => node.inputs.map((value) => value.node)));
  const nodes: Node[] = program.nodes.filter(isLeaf);
  const seen = new Set<Node>(nodes);
  const stack: (readonly [Node, 'enter' | 'leave'])[] = program.nodes
    .filter((node) => !isLeaf(node) && !read.has(node))
    .map((node) => [node, 'enter'] as const)
    .reverse();
  for (let top = stack.pop(); top !== undefined; top = stack.pop()) {
    const [node, way] = top;
    if (way === 'leave') {
      nodes.push(node);
      continue;
    }
    if (seen.has(node)) continue;
    seen.add(node);
    stack.push([node, 'leave']);
    const sources = [...new Set(node.inputs.map((value) => value.node))].filter(
      (source) => !seen.has(source),
    );
    for (const source of sources.sort((a, b) => (index.get(b) ?? 0) - (index.get(a) ?? 0)))
      stack.push([source, 'enter']);
  }
  return { ...program, nodes };
}
