/** A small model of test/golden/llama.py. */
import { type DecoderConfig, parameterShapes } from '../../src/llm/config.ts';
import { plainLlama } from '../../src/llm/families.ts';
import type { Tensor } from '../../src/tensor/tensor.ts';
import { fill } from './fill.ts';

export const smallLlama: DecoderConfig = {
  ...plainLlama,
  hiddenSize: 32,
  intermediateSize: 48,
  layers: 3,
  heads: 4,
  keyValueHeads: 2,
  headWidth: 8,
  vocabularySize: 61,
  rmsNormEpsilon: 1e-5,
  ropeTheta: 10_000,
  tieWordEmbeddings: true,
  maxPositions: 128,
  bosTokenId: 0,
  eosTokenIds: [1],
  padTokenId: null,
};

export function filledParameters(config: DecoderConfig): Map<string, Tensor & { dtype: 'float32' }> {
  return new Map([...parameterShapes(config)].map(([name, shape]) => [name, fill(name, shape)]));
}
