/**
 * Half types where there are no kernels for them. ONNX Runtime's CPU provider has none for bfloat16; for float16 it
 * puts casts around its float32 kernels and then drops them in pairs, so that nothing is rounded at all.
 */
import { isHalf } from '../../tensor/precision.ts';
import { type Node, type Primitive, type Program, unusedId, type Value } from '../../tensor/program.ts';
import { takeOver } from '../../tensor/rewrites.ts';

/** Primitives that only move numbers, which the provider does in every type. */
const moving: ReadonlySet<Primitive> = new Set<Primitive>([
  'input',
  'constant',
  'cast',
  'detach',
  'reshape',
  'transpose',
  'slice',
  'concat',
  'gather',
  'gatherElements',
  'scatterElements',
]);

/**
 * The program with its half arithmetic in float32, every result rounded to the type that it has: the numbers of a
 * device that multiplies halves and adds up in float32. A program without halves is left as it is.
 */
export function emulateHalf(program: Program): Program {
  if (!program.nodes.some((node) => node.outputs.some(({ dtype }) => isHalf(dtype)))) return program;
  const replacement = new Map<Value, Value>();
  const resolve = (value: Value) => replacement.get(value) ?? value;
  const nodes: Node[] = [];
  let nextId = unusedId(program);
  // Equal casts are merged, and those of constants computed, when the program is simplified.
  const widen = (value: Value): Value => {
    if (!isHalf(value.dtype)) return value;
    const outputs: Value[] = [];
    const node: Node = { primitive: 'cast', inputs: [value], attributes: { dtype: 'float32' }, outputs };
    const wide: Value = { ...value, id: nextId++, name: `${value.name}:float32`, dtype: 'float32', node };
    outputs.push(wide);
    nodes.push(node);
    return wide;
  };

  for (const original of program.nodes) {
    const inputs = original.inputs.map(resolve);
    const halves = [...inputs, ...original.outputs].some(({ dtype }) => isHalf(dtype));
    if (moving.has(original.primitive) || !halves) {
      nodes.push(takeOver({ ...original, inputs } as Node, original.outputs, replacement));
      continue;
    }
    const outputs: Value[] = [];
    const wide = { ...original, inputs: inputs.map(widen), outputs } as Node;
    for (const value of original.outputs) {
      outputs.push(
        isHalf(value.dtype)
          ? { ...value, id: nextId++, name: `${value.name}:float32`, dtype: 'float32', node: wide }
          : { ...value, node: wide },
      );
    }
    nodes.push(wide);
    for (const [at, value] of original.outputs.entries()) {
      const made = outputs[at] as Value;
      if (!isHalf(value.dtype)) {
        replacement.set(value, made);
        continue;
      }
      const rounding: Node = {
        primitive: 'cast',
        inputs: [made],
        attributes: { dtype: value.dtype },
        outputs: [],
      };
      nodes.push(takeOver(rounding, [value], replacement));
    }
  }
  const outputs = new Map([...program.outputs].map(([name, value]) => [name, resolve(value)]));
  const inputs = new Map([...program.inputs].map(([name, value]) => [name, resolve(value)]));
  return { nodes, inputs, outputs };
}
