import { stripVTControlCharacters } from 'node:util';
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { sanitize, sanitizeLine } from '../../../src/cli/terminal/sanitize.ts';

describe('sanitize', () => {
  test.each([
    ['colours', '\u001b[31mred\u001b[0m', 'red'],
    ['a window title', '\u001b]0;owned\u0007text', 'text'],
    ['a hyperlink', '\u001b]8;;http://x\u001b\\link\u001b]8;;\u001b\\', 'link'],
    ['an eight-bit sequence', '\u009b2Jcleared', 'cleared'],
    ['a bell and a backspace', 'a\u0007b\bc', 'abc'],
    ['overwriting the line', 'safe\rfake', 'safe\nfake'],
    ['reversed writing', 'abc\u202Efdp.exe', 'abcfdp.exe'],
    ['isolates', '\u2066x\u2069', 'x'],
    ['ordinary text', 'Grüße, 世界 🎵\tand\nmore', 'Grüße, 世界 🎵\tand\nmore'],
  ])('%s', (_, given, expected) => {
    expect(sanitize(given)).toBe(expected);
  });

  const hostile = fc
    .array(
      fc.oneof(
        fc.string({ unit: 'binary', maxLength: 8 }),
        fc.constantFrom('\u001b', '\u001b[', '\u001b]', '\u009b', '\u0007', '\r', '\n', '31m', '\u202e'),
      ),
    )
    .map((parts) => parts.join(''));

  test('nothing that a terminal would obey is left', () => {
    fc.assert(
      fc.property(hostile, (text) => {
        const clean = sanitize(text);
        for (const character of clean) {
          const code = character.codePointAt(0) ?? 0;
          const isControl = (code < 0x20 || (code >= 0x7f && code <= 0x9f)) && !'\t\n'.includes(character);
          expect(isControl).toBe(false);
        }
        expect(stripVTControlCharacters(clean)).toBe(clean);
      }),
      { numRuns: 2000 },
    );
  });

  test('cleaning twice is cleaning once', () => {
    fc.assert(
      fc.property(hostile, (text) => {
        expect(sanitize(sanitize(text))).toBe(sanitize(text));
      }),
    );
  });

  test('text without control characters stays as it is', () => {
    fc.assert(
      fc.property(
        fc.string({ unit: fc.constantFrom(...'abc äöü 世界 🎵 .,;:-_[]31m'), maxLength: 50 }),
        (text) => {
          expect(sanitize(text)).toBe(text);
        },
      ),
    );
  });

  test('a line is one line', () => {
    fc.assert(
      fc.property(hostile, (text) => {
        expect(sanitizeLine(text)).not.toMatch(/[\r\n\t]/);
      }),
    );
  });
});
