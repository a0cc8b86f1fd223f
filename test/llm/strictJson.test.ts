import fc from 'fast-check';
import { expect, test } from 'vitest';
import { ModelError } from '../../src/llm/modelError.ts';
import { parseStrictJson, parseStrictJsonBytes, readStrictJson } from '../../src/llm/strictJson.ts';

const limits = { depth: 8 };

test('any JSON is parsed as JSON.parse does', () => {
  fc.assert(
    fc.property(fc.json({ maxDepth: 5, stringUnit: 'binary' }), fc.nat(3), (text, indent) => {
      const spaced = JSON.stringify(JSON.parse(text), null, indent);
      expect(parseStrictJson(spaced, 'f', limits)).toEqual(JSON.parse(text));
    }),
  );
});

test('any text is an error of ours or what JSON.parse makes of it', () => {
  const pieces = fc.constantFrom('{', '}', '[', ']', ',', ':', '"', '\\', '"a"', '"a":1', ' ', '1', 'null');
  fc.assert(
    fc.property(fc.array(pieces, { maxLength: 12 }), (parts) => {
      const text = parts.join('');
      let result: unknown;
      try {
        result = parseStrictJson(text, 'f', limits);
      } catch (error) {
        expect(error).toBeInstanceOf(ModelError);
        return;
      }
      expect(result).toEqual(JSON.parse(text));
    }),
    { numRuns: 2000 },
  );
});

test('a key that stands twice is found at any place and in any spelling', () => {
  for (const text of [
    '{"a":1,"a":1}',
    '[{"b":{"x":"}","a":[{}],"\\u0061":2}}]',
    '{"\\"":1,"\\u0022":2}',
    '{"a\\\\":1,"b":"\\"","a\\\\":1}',
    '{"__proto__":1,"__proto__":2}',
  ]) {
    expect(() => parseStrictJson(text, 'f', limits)).toThrow(/^f: the key .* stands twice in one object$/);
  }
  const same = '[{"a":{"a":"a"}},{"a":["a","a"]}]';
  expect(parseStrictJson(same, 'f', limits)).toEqual(JSON.parse(same));
});

test('nesting is limited, a byte-order mark is not', () => {
  const nested = (depth: number) => '['.repeat(depth) + ']'.repeat(depth);
  expect(parseStrictJson(nested(8), 'f', limits)).toEqual(JSON.parse(nested(8)));
  expect(() => parseStrictJson(nested(9), 'f', limits)).toThrow('f: the JSON is nested deeper than 8 levels');
  expect(parseStrictJsonBytes(new TextEncoder().encode('\ufeff{}'), 'f', limits)).toEqual({});
});

test('no file is undefined, a folder is an error', async () => {
  expect(await readStrictJson('/nothing/here.json', { ...limits, bytes: 10 })).toBeUndefined();
  await expect(readStrictJson('/', { ...limits, bytes: 1e6 })).rejects.toThrow('/: cannot be read (EISDIR)');
});
