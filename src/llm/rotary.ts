/** Rotary position embedding (Su et al. 2021) in the half-split layout of Llama checkpoints. */
import { constant, gather, reshape, rotary } from '../tensor/operations.ts';
import type { Value } from '../tensor/program.ts';
import { float32 } from '../tensor/tensor.ts';

/** Cosines and sines of the angles, [batch or 1, rows, headWidth / 2]. */
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
  const shape = [1, positions.length, config.headWidth / 2];
  return { cosines: constant(float32(shape, cosines)), sines: constant(float32(shape, sines)) };
}

/** The tables for one row per sequence, at positions [batch] that are fed at each run (below `limit`). */
export function rotaryFor(config: RotaryConfig, positionsB: Value, limit: number): Rotary {
  const { cosines, sines } = angles(config, [...Array(limit).keys()]);
  const lookup = (table: Float32Array) => {
    const rows = gather(constant(float32([limit, config.headWidth / 2], table)), positionsB, 0);
    return reshape(rows, [positionsB.shape[0] ?? 1, 1, config.headWidth / 2]);
  };
  return { cosines: lookup(cosines), sines: lookup(sines) };
}

/** Rotates queries or keys [batch, heads, rows, headWidth]. */
export function rotate(x: Value, { cosines, sines }: Rotary): Value {
  return rotary(x, cosines, sines);
}

function angles({ headWidth, ropeTheta }: RotaryConfig, positions: readonly number[]) {
  const half = headWidth / 2;
  const cosines = new Float32Array(positions.length * half);
  const sines = new Float32Array(positions.length * half);
  for (const [row, position] of positions.entries()) {
    for (let column = 0; column < half; column++) {
      const angle = position * ropeTheta ** (-(2 * column) / headWidth);
      cosines[row * half + column] = Math.cos(angle);
      sines[row * half + column] = Math.sin(angle);
    }
  }
  return { cosines, sines };
}
