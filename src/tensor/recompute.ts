/**
 * Activation recomputation (gradient checkpointing; Chen et al. 2016, arXiv 1604.06174): what the backward pass of a
 * scope reads is computed a second time from what enters the scope, so that it need not be held in between.
 *
 * The copies must wait for the gradient that comes in: computed any earlier they would save nothing, and a pass that
 * merges equal computations would merge them with the first ones. So what enters a scope enters its copies `after` the
 * gradient.
 */
import { bytesOf } from './liveness.ts';
import {
  type Attributes,
  isLeaf,
  type Node,
  type NodeOf,
  type Primitive,
  type Program,
  ProgramError,
  unusedId,
  type Value,
} from './program.ts';
import { takeOver } from './rewrites.ts';

/** What would be computed again for the backward pass of one scope. */
export interface Region {
  /** As `layers.5`. */
  readonly scope: string;
  /** Bytes of the values that are then no longer held until the backward pass. */
  readonly heldBytes: number;
  /** Its backward nodes. */
  readonly backward: ReadonlySet<Node>;
  /** The forward nodes that are repeated, in order. */
  readonly repeated: readonly Node[];
  /** Values from outside that they read. */
  readonly entering: readonly Value[];
  /** The gradient that comes in last before the backward pass reads anything. */
  readonly incoming: Value;
  /** The first backward node that reads what is repeated or enters. */
  readonly firstReader: Node;
}

/**
 * Finds what could be computed again: for each scope the forward values that its backward pass reads, on the way from
 * what enters the scope. Outputs of the program are held anyway and are not among them, nor is what a scope computes
 * from inputs and constants alone.
 * @param program forward and backward, as `trace` and `gradients` write and name it, before any pass
 * @param scopes as `layers.5`; one whose backward pass reads nothing of that kind gives no region
 * @throws ProgramError naming a scope that no value of the program stands in
 */
export function recomputableRegions(program: Program, scopes: readonly string[]): Region[] {
  const position = new Map(program.nodes.map((node, at) => [node, at]));
  const at = (node: Node) => position.get(node) ?? 0;
  const kept = new Set<Value>(program.outputs.values());
  return scopes.flatMap((scope) => {
    const within = program.nodes.filter((node) => !isLeaf(node) && nameOf(node).startsWith(`${scope}.`));
    if (within.length === 0) throw new ProgramError(`no value of the program stands in the scope "${scope}"`);
    const backward = new Set(program.nodes.filter((node) => nameOf(node).startsWith(`gradient.${scope}.`)));
    const read = new Set([...backward].flatMap(({ inputs }) => inputs));
    const inside = new Set(within);
    const isKept = (value: Value) => kept.has(value);
    const enters = (value: Value) => !isLeaf(value.node) && (!inside.has(value.node) || isKept(value));
    const repeated = repeatedNodes(within, read, isKept, enters);
    const own = new Set(repeated.flatMap(({ outputs }) => outputs));
    const entering = [...new Set(repeated.flatMap(({ inputs }) => inputs))].filter(enters);
    const firstReader = [...backward].find(({ inputs }) =>
      inputs.some((value) => own.has(value) || entering.includes(value)),
    );
    if (firstReader === undefined || repeated.length === 0) return [];
    const incoming = incomingGradients(program, backward, read).findLast(
      ({ node }) => at(node) < at(firstReader),
    );
    // Without one the backward pass of the scope begins at once, and nothing would be held for less long.
    if (incoming === undefined) return [];
    const heldBytes = [...own].reduce((sum, value) => sum + (read.has(value) ? bytesOf(value) : 0), 0);
    return [{ scope, heldBytes, backward, repeated, entering, incoming, firstReader }];
  });
}

/**
 * The program with the regions computed again for their backward pass. Every output keeps its bits.
 * @param regions of this program
 */
export function recompute(program: Program, regions: readonly Region[]): Program {
  const startsAt = new Map(regions.map((region) => [region.firstReader, region]));
  const regionOf = new Map(regions.flatMap((region) => [...region.backward].map((node) => [node, region])));
  const again = new Map<Region, ReadonlyMap<Value, Value>>();
  const replacement = new Map<Value, Value>();
  const resolve = (value: Value) => replacement.get(value) ?? value;
  const nodes: Node[] = [];
  const write = nodeWriter(program, nodes);
  for (const node of program.nodes) {
    const starting = startsAt.get(node);
    if (starting !== undefined) again.set(starting, repeat(starting, write, resolve));
    const region = regionOf.get(node);
    const copies = region && again.get(region);
    const inputs = node.inputs.map((value) => copies?.get(value) ?? resolve(value));
    const changed = inputs.some((value, index) => value !== node.inputs[index]);
    nodes.push(changed ? takeOver({ ...node, inputs } as Node, node.outputs, replacement) : node);
  }
  const outputs = new Map([...program.outputs].map(([name, value]) => [name, resolve(value)]));
  return { ...program, nodes, outputs };
}

/** The nodes of a scope that lie on the way from what enters to what the backward pass reads. */
function repeatedNodes(
  within: readonly Node[],
  read: ReadonlySet<Value>,
  isKept: (value: Value) => boolean,
  enters: (value: Value) => boolean,
): Node[] {
  const moving = new Set<Node>();
  for (const node of within) {
    if (node.inputs.some((value) => moving.has(value.node) || enters(value)) && !node.outputs.some(isKept))
      moving.add(node);
  }
  const needed = new Set(read);
  const repeated: Node[] = [];
  for (const node of [...within].reverse()) {
    if (!moving.has(node) || !node.outputs.some((value) => needed.has(value))) continue;
    for (const value of node.inputs) needed.add(value);
    repeated.push(node);
  }
  return repeated.reverse();
}

/** Gradients that the backward nodes of a scope read and do not themselves lead to, in order. */
function incomingGradients(program: Program, backward: ReadonlySet<Node>, read: ReadonlySet<Value>): Value[] {
  const after = new Set<Value>();
  for (const node of program.nodes) {
    if (backward.has(node) || node.inputs.some((value) => after.has(value)))
      for (const value of node.outputs) after.add(value);
  }
  return program.nodes.flatMap((node) =>
    isLeaf(node) || !nameOf(node).startsWith('gradient.')
      ? []
      : node.outputs.filter((value) => read.has(value) && !after.has(value)),
  );
}

const nameOf = (node: Node) => node.outputs[0]?.name ?? '';

type Write = <P extends Primitive>(
  primitive: P,
  attributes: Attributes[P],
  inputs: readonly Value[],
  types: readonly NamedType[],
) => readonly Value[];

type NamedType = Pick<Value, 'name' | 'dtype' | 'shape'>;

/** Adds nodes to a list, with ids that the program does not use. */
function nodeWriter(program: Program, nodes: Node[]): Write {
  let next = unusedId(program);
  return (primitive, attributes, inputs, types) => {
    const outputs: Value[] = [];
    const node = { primitive, attributes, inputs, outputs } as NodeOf<typeof primitive> as Node;
    for (const { name, dtype, shape } of types) outputs.push({ id: next++, name, dtype, shape, node });
    nodes.push(node);
    return outputs;
  };
}

/** Writes the repeated nodes; returns what stands for which value in the backward pass. */
function repeat(region: Region, write: Write, resolve: (value: Value) => Value): Map<Value, Value> {
  const { scope, entering, repeated, incoming } = region;
  const copies = new Map<Value, Value>();
  for (const [at, value] of entering.entries()) {
    const { dtype, shape } = value;
    const type = { name: `gradient.${scope}.recomputed.entering${at}`, dtype, shape };
    copies.set(value, write('after', {}, [resolve(value), resolve(incoming)], [type])[0] as Value);
  }
  for (const node of repeated) {
    const inputs = node.inputs.map((value) => copies.get(value) ?? resolve(value));
    const types = node.outputs.map((value) => ({ ...value, name: `gradient.${value.name}.recomputed` }));
    const made = write<Primitive>(node.primitive, node.attributes, inputs, types);
    for (const [at, value] of node.outputs.entries()) copies.set(value, made[at] as Value);
  }
  return copies;
}
