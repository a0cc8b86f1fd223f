/** Rotary position embedding (Su et al. 2021) in the half-split layout of Llama checkpoints. */
import { constant, gather, rotary } from '../tensor/operations.ts';
import type { Value } from '../tensor/program.ts';
import { float32 } from '../tensor/tensor.ts';
import { type RotaryConfig, rotaryFrequencies } from './ropeScaling.ts';

/** Cosines and sines of the angles, [batch or 1, rows, headWidth / 2]. */
export interface Rotary {
  readonly cosines: Value;
  readonly sines: Value;
}

/** The tables for rows at fixed positions. */
export function rotaryAt(config: RotaryConfig, positions: readonly number[]): Rotary {
  const { cosines, sines } = angles(config, positions);
  const shape = [1, positions.length, config.headWidth / 2];
  return { cosines: constant(float32(shape, cosines)), sines: constant(float32(shape, sines)) };
}

/** The tables for rows at positions [batch, rows] that are fed at each run (below `limit`). */
export function rotaryFor(config: RotaryConfig, positionsBT: Value, limit: number): Rotary {
  const { cosines, sines } = angles(config, [...Array(limit).keys()]);
  const lookup = (table: Float32Array) =>
    gather(constant(float32([limit, config.headWidth / 2], table)), positionsBT, 0);
  return { cosines: lookup(cosines), sines: lookup(sines) };
}

/** Rotates queries or keys [batch, heads, rows, headWidth]. */
export function rotate(x: Value, { cosines, sines }: Rotary): Value {
  return rotary(x, cosines, sines);
}

function angles(config: RotaryConfig, positions: readonly number[]) {
  const { frequencies, scale } = rotaryFrequencies(config);
  const half = frequencies.length;
  const cosines = new Float32Array(positions.length * half);
  const sines = new Float32Array(positions.length * half);
  for (const [row, position] of positions.entries()) {
    for (const [pair, frequency] of frequencies.entries()) {
      cosines[row * half + pair] = Math.cos(position * frequency) * scale;
      sines[row * half + pair] = Math.sin(position * frequency) * scale;
    }
  }
  return { cosines, sines };
}
