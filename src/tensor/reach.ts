/** Claims about a model as proofs: which values can influence which. */
import { type Node, type Program, sourcesOf, type Value } from './program.ts';

/** Everything that depends on one of the values, the values themselves included. */
export function dependents(program: Program, of: Iterable<Value>): ReadonlySet<Value> {
  const reached = new Set(of);
  for (const node of program.nodes) {
    if (sourcesOf(node).some((value) => reached.has(value)))
      for (const value of node.outputs) reached.add(value);
  }
  return reached;
}

/**
 * Everything that one of the values depends on, the values themselves included.
 * @param through when given, paths do not continue backwards past a value for which it says false
 */
export function dependencies(
  program: Program,
  of: Iterable<Value>,
  through: (value: Value) => boolean = () => true,
): ReadonlySet<Value> {
  const reached = new Set(of);
  for (const node of [...program.nodes].reverse()) {
    if (!node.outputs.some((value) => reached.has(value) && through(value))) continue;
    for (const value of sourcesOf(node)) reached.add(value);
  }
  return reached;
}

/**
 * The values whose name matches.
 * @throws Error when nothing matches: a claim about nothing proves nothing
 */
export function select(program: Program, pattern: RegExp): Value[] {
  const found = program.nodes.flatMap((node: Node) =>
    node.outputs.filter((value) => pattern.test(value.name)),
  );
  if (found.length === 0) throw new Error(`no value of the program has a name that matches ${pattern}`);
  return found;
}
