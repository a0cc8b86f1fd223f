/** What is decided when a program is compiled: whether TensorFlow.js can run it, and when each value is freed. */
import { simplify } from '../../tensor/passes.ts';
import { isLeaf, type Node, type Program, type Value } from '../../tensor/program.ts';
import { schedule } from '../../tensor/schedule.ts';
import { formatShape, sizeOf } from '../../tensor/tensor.ts';
import { EngineError } from '../engine.ts';
import { tfDType } from './transfer.ts';

export interface Step {
  readonly node: Node;
  /** The values that nobody reads after this step. */
  readonly last: readonly Value[];
}

export interface Plan {
  readonly program: Program;
  /** Every node that computes, in order. */
  readonly steps: readonly Step[];
  /** Inputs that nobody reads at all. */
  readonly unread: ReadonlySet<Value>;
}

/** The most axes that the kernels of TensorFlow.js take. */
const mostAxes = 6;

/**
 * Plans the runs of a program.
 * @throws EngineError naming the value that TensorFlow.js cannot hold or compute
 */
export function planOf(source: Program): Plan {
  const program = schedule(simplify(source));
  for (const node of program.nodes) for (const value of node.outputs) checkValue(value);
  const outputs = new Set(program.outputs.values());
  const seen = new Set<Value>(outputs);
  const steps: Step[] = [];
  for (const node of [...program.nodes].reverse()) {
    if (isLeaf(node)) continue;
    const touched = new Set([...node.inputs, ...node.outputs]);
    // Constants stay for the next run.
    steps.push({
      node,
      last: [...touched].filter((value) => !seen.has(value) && value.node.primitive !== 'constant'),
    });
    for (const value of touched) seen.add(value);
  }
  const unread = new Set([...program.inputs.values()].filter((value) => !seen.has(value)));
  return { program, steps: steps.reverse(), unread };
}

function checkValue({ name, dtype, shape, node }: Value): void {
  const fail = (what: string) =>
    new EngineError(`TensorFlow.js cannot compute "${name}" (${node.primitive}): ${what}`);
  if (tfDType[dtype] === null) {
    throw fail(
      `it is ${dtype}; there are float32, int32 and bool. Use the onnx engine, or cast it to float32`,
    );
  }
  if (shape.length > mostAxes) {
    throw fail(`${formatShape(shape)} has ${shape.length} axes; there are at most ${mostAxes}`);
  }
  if (node.primitive === 'divide' && tfDType[dtype] === 'int32' && sizeOf(shape) > 0) {
    throw fail('it divides integers, which no kernel does exactly. Cast them to float32');
  }
}
