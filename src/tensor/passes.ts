/** Rewrites that leave every output as it is: dropping what nobody reads, computing equal things once. */
import { type Node, type Program, sourcesOf, type Value } from './program.ts';
import { rewired, rewrite, takeOver } from './rewrites.ts';
import type { Tensor } from './tensor.ts';

/** Removes every node that no output depends on. Inputs stay: they are the program's signature. */
export function removeDeadCode(program: Program): Program {
  const alive = new Set<Value>(program.outputs.values());
  const nodes: Node[] = [];
  for (const node of [...program.nodes].reverse()) {
    if (node.primitive !== 'input' && !node.outputs.some((value) => alive.has(value))) continue;
    for (const value of sourcesOf(node)) alive.add(value);
    nodes.push(node);
  }
  return waitOnlyFor(alive, { ...program, nodes: nodes.reverse() });
}

/** Lets nodes wait for nothing but what is computed anyway. */
function waitOnlyFor(alive: ReadonlySet<Value>, program: Program): Program {
  // By id: a value that is taken over keeps it.
  const ids = new Set([...alive].map(({ id }) => id));
  const waitsInVain = (node: Node) =>
    node.primitive === 'after' && !node.inputs.every(({ id }) => ids.has(id));
  if (!program.nodes.some(waitsInVain)) return program;
  return rewired(program, (node) => {
    if (!waitsInVain(node)) return node;
    const inputs = node.inputs.filter(({ id }) => ids.has(id));
    return inputs.length === 1 ? (inputs[0] as Value) : ({ ...node, inputs } as Node);
  });
}

/** Computes equal operations on equal values once. */
export function mergeCommonSubexpressions(program: Program): Program {
  const replacement = new Map<Value, Value>();
  const known = new Map<string, Node>();
  const constants = new Map<Tensor, number>();
  const resolve = (value: Value) => replacement.get(value) ?? value;
  const nodes: Node[] = [];
  for (const node of program.nodes) {
    const inputs = node.inputs.map(resolve);
    const key = `${node.primitive}(${inputs.map((value) => value.id).join(',')})${describe(node, constants)}`;
    const twin = node.primitive === 'input' ? undefined : known.get(key);
    if (twin !== undefined) {
      for (const [index, value] of node.outputs.entries())
        replacement.set(value, twin.outputs[index] as Value);
      continue;
    }
    const changed = inputs.some((value, index) => value !== node.inputs[index]);
    const kept = changed ? takeOver({ ...node, inputs } as Node, node.outputs, replacement) : node;
    known.set(key, kept);
    nodes.push(kept);
  }
  const outputs = new Map([...program.outputs].map(([name, value]) => [name, resolve(value)]));
  return { ...program, nodes, outputs };
}

/** The passes that every engine runs before it compiles. */
export function simplify(program: Program): Program {
  return removeDeadCode(rewrite(removeDeadCode(mergeCommonSubexpressions(program))));
}

const comparedByContent = 64;

/** Small constants are equal when their numbers are; large ones when they are the same object. */
function describe(node: Node, constants: Map<Tensor, number>): string {
  if (node.primitive !== 'constant') return JSON.stringify(node.attributes);
  const { tensor } = node.attributes;
  if (tensor.data.length <= comparedByContent) {
    const bits = Buffer.from(tensor.data.buffer, tensor.data.byteOffset, tensor.data.byteLength);
    return `${tensor.dtype}[${tensor.shape.join(',')}]${bits.toString('hex')}`;
  }
  const number = constants.get(tensor) ?? constants.size;
  constants.set(tensor, number);
  return `#${number}`;
}
