/** The order in which examples are seen: a permutation per epoch that only its name decides. */
import { random } from '../config/random.ts';

export interface DataOrder {
  /** Indices of micro-batch `number`, counted from the stage's beginning; any can be asked for at once. */
  batch(number: number): number[];
}

/**
 * @param count examples of the stage
 * @param size examples per micro-batch; a batch may reach over the end of an epoch
 */
export function dataOrder(seed: number, stage: string, count: number, size: number): DataOrder {
  const epochs = new Map<number, number[]>();
  const permutation = (epoch: number) => {
    const known = epochs.get(epoch) ?? random(seed, 'order', stage, epoch).shuffle([...Array(count).keys()]);
    // Two epochs are enough at any time.
    for (const old of epochs.keys()) if (old < epoch - 1) epochs.delete(old);
    epochs.set(epoch, known);
    return known;
  };
  return {
    batch: (number) =>
      Array.from({ length: size }, (_, index) => {
        const position = number * size + index;
        return permutation(Math.floor(position / count))[position % count] as number;
      }),
  };
}
