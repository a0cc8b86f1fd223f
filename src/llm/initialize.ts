/** How new parameters begin. */
import type { Random } from '../config/random.ts';
import type { ParameterSpec } from '../tensor/parameters.ts';
import { float32, type Shape, sizeOf, type Tensor } from '../tensor/tensor.ts';

/** Initial values; every parameter has a random stream of its own name, so variants share what they have in common. */
export function initialize(
  specs: ReadonlyMap<string, ParameterSpec>,
  randomOf: (name: string) => Random,
): Map<string, Tensor & { dtype: 'float32' }> {
  return new Map(
    [...specs].map(([name, { shape, initial, deviation = 1, bound = 1 }]) => {
      const values = new Float32Array(sizeOf(shape));
      if (initial === 'ones') values.fill(1);
      if (initial === 'normal') {
        const random = randomOf(name);
        for (let at = 0; at < values.length; at++) values[at] = deviation * random.normal();
      }
      if (initial === 'uniform') {
        const random = randomOf(name);
        for (let at = 0; at < values.length; at++) values[at] = bound * (2 * random.uniform() - 1);
      }
      return [name, float32(shape, values)];
    }),
  );
}

/** How a parameter of a new LLM begins: matrices normal with this deviation, gains at one, biases at zero. */
export function begunAs(name: string, shape: Shape, layers: number, deviation: number): ParameterSpec {
  if (shape.length === 1) return { shape, initial: name.endsWith('.bias') ? 'zeros' : 'ones' };
  // As many outputs as there are sub-layers add up in the residual stream.
  const adds = name.endsWith('o_proj.weight') || name.endsWith('down_proj.weight');
  return { shape, initial: 'normal', deviation: adds ? deviation / Math.sqrt(2 * layers) : deviation };
}
