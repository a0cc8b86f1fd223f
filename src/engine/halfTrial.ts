/** Whether an engine really computes in a half type: a small transformer layer and its gradient, beside the reference. */
import { gradients } from '../tensor/gradients.ts';
import { interpret } from '../tensor/interpret.ts';
import {
  add,
  concat,
  constant,
  linear,
  matmul,
  multiply,
  reshape,
  rotary,
  silu,
  slice,
  softmax,
  sum,
  transpose,
} from '../tensor/operations.ts';
import type { HalfType } from '../tensor/precision.ts';
import type { Program, Value } from '../tensor/program.ts';
import { float32, type Shape, sizeOf, type Tensor } from '../tensor/tensor.ts';
import { trace, withPrecision } from '../tensor/trace.ts';
import { EngineError, type Executable, plain } from './engine.ts';

const [batch, rows, heads, headWidth] = [2, 4, 2, 4];
const width = heads * headWidth;
const shapes = { x: [batch, rows, width], weight: [width, width] } as const;

/** Tame numbers that are not exact in a half type. */
function waves(shape: Shape, scale: number): Tensor {
  return float32(
    shape,
    Float32Array.from({ length: sizeOf(shape) }, (_, at) => scale * Math.sin(1 + 1.7 * at)),
  );
}

/** Every primitive that a training step computes in the half type, forward and backward. */
function trialProgram(type: HalfType): Program {
  const types = {
    x: { dtype: 'float32', shape: shapes.x },
    weight: { dtype: 'float32', shape: shapes.weight },
  } as const;
  return trace(types, ({ x, weight }) =>
    withPrecision(type, () => {
      const angles = [1, rows, headWidth / 2];
      const split = transpose(reshape(linear(x, weight), [batch, rows, heads, headWidth]), [0, 2, 1, 3]);
      const turned = rotary(split, constant(waves(angles, 0.8)), constant(waves(angles, -0.6)));
      const probabilities = softmax(matmul(turned, turned, { transposeB: true, scale: headWidth ** -0.5 }));
      const mixed = matmul(probabilities, split);
      const joined = concat([mixed, slice(mixed, 2, 1, rows)], 2);
      const gated = multiply(silu(joined), add(joined, 1));
      const loss = sum(gated);
      const [dx, dWeight] = gradients(loss, [x, weight]) as [Value, Value];
      return { loss, dx, dWeight };
    }),
  );
}

/** Half types keep 3 (float16) or 2 digits (bfloat16); what is wrong is wrong by far more. */
const tolerance = 0.05;

/**
 * Runs the layer on an engine.
 * @throws EngineError when the engine does not take it, or computes something else
 */
export async function tryHalf(
  compile: (program: Program) => Promise<Executable>,
  type: HalfType,
): Promise<void> {
  const program = trialProgram(type);
  const feeds = { x: waves(shapes.x, 0.7), weight: waves(shapes.weight, 0.5) };
  const executable = await compile(program);
  try {
    const outputs = await executable.run(feeds);
    for (const [name, { data }] of Object.entries(interpret(program, feeds))) {
      const found = Array.from(plain(outputs, name).data, Number);
      const largest = data.reduce((most, value) => Math.max(most, Math.abs(value)), 0);
      const wrong = data.findIndex(
        (value, at) => !(Math.abs((found[at] ?? 0) - value) < tolerance * largest),
      );
      if (wrong >= 0) {
        throw new EngineError(
          `its ${type} is wrong: ${name}[${wrong}] came out as ${found[wrong]}, it is ${data[wrong]}`,
        );
      }
    }
  } finally {
    await executable.dispose();
  }
}
