import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { patternTest, selectNames } from '../../src/config/patterns.ts';

const names = [0, 1, 2, 10, 11].flatMap((layer) => [
  `model.layers.${layer}.self_attn.q_proj.weight`,
  `model.layers.${layer}.mlp.up_proj.weight`,
]);
const all = ['model.embed_tokens.weight', ...names, 'connector.timbre.latents'];
const select = (...patterns: string[]) => [
  ...selectNames(patterns, all, { where: 'stage', what: 'parameter' }),
];

describe('a pattern', () => {
  it.each([
    ['model.*', 'model.layers.0.mlp.up_proj.weight', true],
    ['*', '', true],
    ['', '', true],
    ['', 'a', false],
    ['model', 'model.x', false],
    ['*.mlp.*', 'model.layers.0.mlp.up_proj', true],
    ['a?c', 'abc', true],
    ['a?c', 'ac', false],
    ['a.c', 'abc', false],
    ['{1..2}', '2', true],
    ['{1..2}', '12', false],
    ['*{2..2}', 'x12', false],
    ['*.{2..11}.*', 'layers.10.x', true],
    ['*.{2..11}.*', 'layers.1.x', false],
    ['*.{0..1}.*', 'a.7.b.1.c', true],
    ['a(+)[b]|$^\\', 'a(+)[b]|$^\\', true],
  ])('%s on %s: %s', (pattern, name, expected) => {
    expect(patternTest(pattern, '')(name)).toBe(expected);
  });

  it('fits what the regular expression of the same meaning fits', () => {
    const letters = fc.array(fc.constantFrom('a', 'b', '.', '1'), { maxLength: 12 });
    const pieces = fc.array(fc.constantFrom('a', 'b', '.', '1', '*', '?'), { maxLength: 8 });
    fc.assert(
      fc.property(pieces, letters, (pattern, name) => {
        const meaning = new Map([
          ['*', '.*'],
          ['?', '.'],
          ['.', '\\.'],
        ]);
        const source = pattern.map((piece) => meaning.get(piece) ?? piece).join('');
        const expected = new RegExp(`^${source}$`).test(name.join(''));
        expect(patternTest(pattern.join(''), '')(name.join(''))).toBe(expected);
      }),
      { numRuns: 2000 },
    );
  });

  it('never takes long', () => {
    const pattern = `${'*a'.repeat(400)}b`;
    expect(patternTest(pattern, '')('a'.repeat(10_000))).toBe(false);
  });
});

describe('a choice of names', () => {
  it('keeps their order, and takes exclusions away wherever they stand', () => {
    expect(select('*.{10..11}.*', 'model.embed*')).toEqual(['model.embed_tokens.weight', ...names.slice(6)]);
    const attention = all.filter((name) => !name.includes('.mlp.'));
    expect(select('*', '!*.mlp.*')).toEqual(attention);
    expect(select('!*.mlp.*', '*')).toEqual(attention);
  });

  it.each([
    [['model.layer.*'], 'stage: "model.layer.*" matches no parameter; near to it: model.layers.*, '],
    [['model.layers.{12..20}.*'], '"model.layers.{12..20}.*" matches no parameter; its layers are 0 to 11'],
    [['*', '!lora.*'], '"!lora.*" matches no parameter'],
    [['connector.*', '!*.mlp.*'], '"!*.mlp.*" takes nothing away'],
    [['!*.mlp.*'], 'begin with "*"'],
    [['*.mlp.*', '!model.*'], 'the patterns leave no parameter'],
    [['*.{2..1}.*'], '1 is below 2'],
    [['*.{a}.*'], 'braces hold a range of layers'],
  ])('%j is an error that says why', (patterns, message) => {
    expect(() => select(...patterns)).toThrow(message);
  });
});
