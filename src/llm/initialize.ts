/** How new parameters begin. */
import type { Random } from '../config/random.ts';
import type { ParameterSpec } from '../tensor/parameters.ts';
import { float32, sizeOf, type Tensor } from '../tensor/tensor.ts';

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
