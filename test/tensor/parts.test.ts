import { describe, expect, it } from 'vitest';
import { partOf } from '../../src/tensor/parts.ts';

describe('the part that makes a value', () => {
  it.each([
    ['layers.3.attention.matmul_5', 'layers.*.attention', 'forward'],
    ['layers.3.attention.audio.keys', 'layers.*.attention.audio', 'forward'],
    ['layers.3.residual', 'layers.*', 'forward'],
    ['streams.pitch.connector.layers.0.matmul', 'streams.pitch.connector.layers.*', 'forward'],
    ['embeddings', 'embeddings', 'forward'],
    ['concat_3', 'between the parts', 'forward'],
    ['gradient.layers.3.attention.matmul_5.matmul', 'layers.*.attention', 'backward'],
    ['gradient.layers.3.residual.multiply_2', 'layers.*', 'backward'],
    ['gradient.embeddings.scatterAdd', 'embeddings', 'backward'],
    ['gradient.slice_4.pad', 'between the parts', 'backward'],
    ['gradient.add_12', 'sums of gradients', 'backward'],
    ['update.multiply_9', 'update', 'update'],
    ['update.clip.divide', 'update.clip', 'update'],
  ])('%s -> %s, %s', (name, part, direction) => {
    expect(partOf({ name })).toMatchObject({ name: part, direction });
  });

  it('keeps the numbers in its path', () => {
    expect(partOf({ name: 'gradient.layers.3.attention.matmul_5.matmul' }).path).toEqual([
      'layers',
      '3',
      'attention',
    ]);
  });
});
