/** Functions whose backward pass computes again what it reads, so that nothing in between is held until then. */
import { gradients } from './gradients.ts';
import { after } from './operations.ts';
import type { Value } from './program.ts';
import { withGradient } from './trace.ts';

/**
 * `compute(held, parameters)`. Of all that it computes from them, only `held` is kept for the backward pass, which
 * computes the rest again once the gradient is there (Chen et al. 2016, arXiv 1604.06174).
 * @param compute must depend on every value that it is given, and draw no mask of dropout: it would draw another one
 */
export function recomputed(
  held: readonly Value[],
  parameters: readonly Value[],
  compute: (held: readonly Value[]) => Value,
): Value {
  return withGradient(compute(held), {
    inputs: [...held, ...parameters],
    backward: (dy) => {
      // Computed any earlier, or without waiting, it would be merged with the first time and save nothing.
      const again = held.map((value) => withoutGradient(after(value, [dy])));
      return gradients(compute(again), [...again, ...parameters], dy);
    },
  });
}

function withoutGradient(value: Value): Value {
  return withGradient(value, { inputs: [], backward: () => [] });
}
