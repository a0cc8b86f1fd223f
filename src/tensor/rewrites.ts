/** Local rewrites that save work and memory and leave every output as it is. */
import { castTensor } from './halfPrecision.ts';
import { type Node, type Primitive, type Program, unusedId, type Value } from './program.ts';
import { broadcastShapes } from './shapes.ts';
import { sameShape } from './tensor.ts';

/** What a rule makes of a node: another node with the same outputs, or a value that stands for its only output. */
type Rewritten = Node | Value | undefined;

/** @param uses how often each value is read, by its id */
type Rule = (node: Node, uses: ReadonlyMap<number, number>) => Rewritten;

/** Applies every rule to every node, in order, once. */
export function rewrite(program: Program): Program {
  const uses = countUses(program);
  return rewired(program, (node) => applyRules(node, uses));
}

/** Puts a node in front of the one that is changed, and gives its only output. */
type Insert = (node: Node, output: Pick<Value, 'name' | 'dtype' | 'shape'>) => Value;

/**
 * The program with every node replaced by what `change` makes of it: itself, another node with the same outputs, or a
 * value that stands for its only output. `change` sees inputs that are replaced already.
 */
export function rewired(program: Program, change: (node: Node, insert: Insert) => Node | Value): Program {
  const replacement = new Map<Value, Value>();
  let nextId: number | undefined;
  const insert: Insert = (node, output) => {
    nextId ??= unusedId(program);
    const made: Value = { ...output, id: nextId++, node };
    nodes.push(takeOver(node, [made], replacement));
    return resolve(made);
  };
  const resolve = (value: Value) => replacement.get(value) ?? value;
  const nodes: Node[] = [];
  for (const original of program.nodes) {
    const inputs = original.inputs.map(resolve);
    const node = inputs.every((value, at) => value === original.inputs[at])
      ? original
      : ({ ...original, inputs } as Node);
    const changed = change(node, insert);
    if ('node' in changed) replacement.set(original.outputs[0] as Value, changed);
    else nodes.push(changed === original ? original : takeOver(changed, original.outputs, replacement));
  }
  const outputs = new Map([...program.outputs].map(([name, value]) => [name, resolve(value)]));
  return { ...program, nodes, outputs };
}

function applyRules(node: Node, uses: ReadonlyMap<number, number>): Node | Value {
  let current = node;
  for (const rule of rules) {
    const rewritten = rule(current, uses);
    if (rewritten === undefined) continue;
    if ('node' in rewritten) return rewritten;
    current = rewritten;
  }
  return current;
}

/** How often each value is read, by its id: what takes a value over keeps the id. */
function countUses(program: Program): Map<number, number> {
  const uses = new Map<number, number>();
  const used = [...program.nodes.flatMap((node) => node.inputs), ...program.outputs.values()];
  for (const { id } of used) uses.set(id, (uses.get(id) ?? 0) + 1);
  return uses;
}

/** The node under the ids and names of the outputs that it takes over; `replacement` learns who stands for whom. */
export function takeOver(node: Node, outputs: readonly Value[], replacement: Map<Value, Value>): Node {
  const made: Value[] = [];
  const own = { ...node, outputs: made } as Node;
  for (const value of outputs) {
    const moved: Value = { ...value, node: own };
    made.push(moved);
    replacement.set(value, moved);
  }
  return own;
}

const broadcasting: ReadonlySet<Primitive> = new Set<Primitive>([
  'add',
  'subtract',
  'multiply',
  'divide',
  'equal',
  'less',
  'where',
]);

/** Arithmetic repeats its operands by itself: an operand need not be written out. */
const dropExpand: Rule = (node) => {
  if (!broadcasting.has(node.primitive)) return undefined;
  const shape = node.outputs[0]?.shape ?? [];
  let inputs = node.inputs;
  for (const [at, value] of inputs.entries()) {
    if (value.node.primitive !== 'expand') continue;
    const bare = inputs.map((other, index) => (index === at ? (value.node.inputs[0] as Value) : other));
    const remaining = bare.reduce<readonly number[]>((all, { shape: own }) => broadcastShapes(all, own), []);
    if (sameShape(remaining, shape)) inputs = bare;
  }
  return inputs === node.inputs ? undefined : ({ ...node, inputs } as Node);
};

/** Axes of one element may stand anywhere: a transposition that moves no others is a reshape. */
const reshapeOnes: Rule = (node) => {
  if (node.primitive !== 'transpose') return undefined;
  const [{ shape }] = node.inputs as readonly [Value];
  const moved = node.attributes.permutation.filter((axis) => shape[axis] !== 1);
  if (moved.some((axis, at) => at > 0 && axis < (moved[at - 1] as number))) return undefined;
  const [{ shape: made }] = node.outputs as readonly [Value];
  return { primitive: 'reshape', inputs: node.inputs, attributes: { shape: made }, outputs: node.outputs };
};

/** Of two reshapes only the second matters; one to the shape that is there does nothing. */
const mergeReshapes: Rule = (node) => {
  if (node.primitive !== 'reshape') return undefined;
  let [source] = node.inputs as readonly [Value];
  while (source.node.primitive === 'reshape') source = source.node.inputs[0] as Value;
  if (sameShape(source.shape, node.attributes.shape)) return source;
  return source === node.inputs[0] ? undefined : { ...node, inputs: [source] };
};

/** Adding what was scattered over zeros: scatter over the other term instead. */
const scatterInPlace: Rule = (node, uses) => {
  if (node.primitive !== 'add') return undefined;
  for (const [at, scattered] of node.inputs.entries()) {
    const { node: scatter } = scattered;
    const other = node.inputs[1 - at] as Value;
    if (scatter.primitive !== 'scatterAdd' || uses.get(scattered.id) !== 1 || other === scattered) continue;
    const [data, indices, updates] = scatter.inputs as readonly [Value, Value, Value];
    if (isFilledWith(data, 0) && sameShape(other.shape, scattered.shape))
      return { ...scatter, inputs: [other, indices, updates] };
  }
  return undefined;
};

/** A factor of one changes nothing. */
const dropOne: Rule = (node) => {
  if (node.primitive !== 'multiply') return undefined;
  const [a, b] = node.inputs as readonly [Value, Value];
  if (isFilledWith(b, 1) && sameShape(a.shape, node.outputs[0]?.shape ?? [])) return a;
  return isFilledWith(a, 1) && sameShape(b.shape, node.outputs[0]?.shape ?? []) ? b : undefined;
};

function isFilledWith({ node, dtype }: Value, number: number): boolean {
  if (node.primitive === 'expand') return isFilledWith(node.inputs[0] as Value, number);
  if (node.primitive !== 'constant' || dtype === 'float16' || dtype === 'bfloat16') return false;
  const { data } = node.attributes.tensor;
  return data.length === 1 && Number(data[0]) === number;
}

/** A constant in another floating type is a constant: frozen weights are rounded here, once, and kept as they are used. */
const foldCasts: Rule = (node) => {
  if (node.primitive !== 'cast') return undefined;
  const source = (node.inputs[0] as Value).node;
  if (source.primitive !== 'constant') return undefined;
  const tensor = castTensor(source.attributes.tensor, node.attributes.dtype);
  if (tensor === undefined) return undefined;
  return { primitive: 'constant', inputs: [], attributes: { tensor }, outputs: node.outputs };
};

const rules: readonly Rule[] = [dropExpand, dropOne, reshapeOnes, mergeReshapes, scatterInPlace, foldCasts];
