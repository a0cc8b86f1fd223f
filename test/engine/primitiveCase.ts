/** The cases of the primitives as float32, which is what engines compute in. */
import type { Random } from '../../src/config/random.ts';
import type { Program, ValueType } from '../../src/tensor/program.ts';
import { float32, int32, type Tensor, tensor } from '../../src/tensor/tensor.ts';
import { trace } from '../../src/tensor/trace.ts';
import type { Case } from '../tensor/arbitrary.ts';

export interface PrimitiveCase {
  /** One output, `y`. */
  readonly program: Program;
  readonly feeds: Readonly<Record<string, Tensor>>;
}

export function drawCase(draw: (stream: Random) => Case, stream: Random): PrimitiveCase {
  const drawn = draw(stream);
  const types = Object.fromEntries(
    Object.entries(drawn.inputs).map(([name, type]): [string, ValueType] => [
      name,
      { ...type, dtype: type.dtype === 'float64' ? 'float32' : type.dtype },
    ]),
  );
  return {
    program: trace(types, (inputs) => ({ y: drawn.model(inputs) })),
    feeds: Object.fromEntries(
      Object.entries(types).map(([name, type]) => [name, narrowed(type, drawn.feeds[name] as number[])]),
    ),
  };
}

function narrowed({ dtype, shape }: ValueType, numbers: readonly number[]): Tensor {
  if (dtype === 'int32') return int32(shape, numbers);
  if (dtype === 'bool') return tensor('bool', shape, Uint8Array.from(numbers));
  return float32(shape, numbers);
}
