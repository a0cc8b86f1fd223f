import { float32 } from '../../src/tensor/tensor.ts';

/** The parameters of test/golden/llama.py: sin of a counter that depends on the name; norms are around one. */
export function fill(name: string, shape: readonly number[]) {
  const start =
    [...name].reduce((total, letter, index) => total + (index + 1) * letter.charCodeAt(0), 0) % 1000;
  const size = shape.reduce((a, b) => a * b, 1);
  const values = Float32Array.from({ length: size }, (_, index) => {
    const value = Math.sin(start + 1.7 * index);
    if (name.includes('norm')) return 1 + 0.2 * value;
    return name.includes('embed') || name.includes('lm_head')
      ? value
      : (value * 1.5) / Math.sqrt(shape.at(-1) as number);
  });
  return float32(shape, values);
}
