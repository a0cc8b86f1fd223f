/** Rotary position embedding (Su et al. 2021) in the half-split layout of Llama checkpoints. */
import { add, concat, constant, gather, multiply, negate, reshape, slice } from '../tensor/operations.ts';
import type { Value } from '../tensor/program.ts';
import { float32 } from '../tensor/tensor.ts';

/** Cosines and sines that broadcast to [batch, heads, rows, headWidth]. */
export interface Rotary {
  readonly cosines: Value;
  readonly sines: Value;
}

export interface RotaryConfig {
  readonly headWidth: number;
  readonly ropeTheta: number;
}

/** The tables for rows at fixed positions. */
export function rotaryAt(config: RotaryConfig, positions: readonly number[]): Rotary {
  const { cosines, sines } = angles(config, positions);
  const shape = [1, 1, positions.length, config.headWidth];
  return { cosines: constant(float32(shape, cosines)), sines: constant(float32(shape, sines)) };
}

/** The tables for one row per sequence, at positions [batch] that are fed at each run (below `limit`). */
export function rotaryFor(config: RotaryConfig, positionsB: Value, limit: number): Rotary {
  const { cosines, sines } = angles(config, [...Array(limit).keys()]);
  const lookup = (table: Float32Array) => {
    const rows = gather(constant(float32([limit, config.headWidth], table)), positionsB, 0);
    return reshape(rows, [positionsB.shape[0] ?? 1, 1, 1, config.headWidth]);
  };
  return { cosines: lookup(cosines), sines: lookup(sines) };
}

/** Rotates queries or keys [batch, heads, rows, headWidth]. */
export function rotate(x: Value, { cosines, sines }: Rotary): Value {
  const width = x.shape.at(-1) ?? 0;
  const [first, second] = [slice(x, -1, 0, width / 2), slice(x, -1, width / 2, width)];
  return add(multiply(x, cosines), multiply(concat([negate(second), first], -1), sines));
}

function angles({ headWidth, ropeTheta }: RotaryConfig, positions: readonly number[]) {
  const cosines = new Float32Array(positions.length * headWidth);
  const sines = new Float32Array(positions.length * headWidth);
  for (const [row, position] of positions.entries()) {
    for (let column = 0; column < headWidth; column++) {
      const angle = position * ropeTheta ** (-(2 * (column % (headWidth / 2))) / headWidth);
      cosines[row * headWidth + column] = Math.cos(angle);
      sines[row * headWidth + column] = Math.sin(angle);
    }
  }
  return { cosines, sines };
}
