/** The small models of test/golden/llama.py, whose weights follow a formula. */
import { type DecoderConfig, parameterShapes } from '../../src/llm/config.ts';
import { plainLlama } from '../../src/llm/families.ts';
import { float32, type Tensor } from '../../src/tensor/tensor.ts';

export const smallLlama: DecoderConfig = {
  ...plainLlama,
  hiddenSize: 32,
  intermediateSize: 48,
  layers: 3,
  heads: 4,
  keyValueHeads: 2,
  headWidth: 8,
  vocabularySize: 61,
  tieWordEmbeddings: true,
  maxPositions: 128,
  bosTokenId: 0,
  eosTokenIds: [1],
  padTokenId: null,
};

/** sin of a counter that depends on the name, scaled by the width; norms are around one. */
export function fill(name: string, shape: readonly number[]): Tensor & { dtype: 'float32' } {
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

export function filledParameters(config: DecoderConfig): Map<string, Tensor & { dtype: 'float32' }> {
  return new Map([...parameterShapes(config)].map(([name, shape]) => [name, fill(name, shape)]));
}
