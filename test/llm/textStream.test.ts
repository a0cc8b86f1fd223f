import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { textStream } from '../../src/llm/textStream.ts';
import { loadTokenizer } from '../../src/llm/tokenizer.ts';

const tokenizer = await loadTokenizer('models/sound-world');

describe('textStream', () => {
  it('gives the text that the tokens decode to, in pieces that only grow', () => {
    fc.assert(
      fc.property(fc.string({ unit: 'grapheme', maxLength: 40 }), (text) => {
        const ids = tokenizer.encode(text);
        const stream = textStream(tokenizer, []);
        const pieces = [...ids.map((id) => stream.push(id)), stream.end()];
        expect(pieces.join('')).toBe(tokenizer.decode(ids));
        expect(stream.stopped).toBe(false);
      }),
    );
  });

  it('holds a character back until all its bytes are there', () => {
    const ids = tokenizer.encode('ö');
    expect(ids.length).toBeGreaterThan(1);
    const stream = textStream(tokenizer, []);
    expect(ids.map((id) => stream.push(id))).toEqual([...ids.slice(1).map(() => ''), 'ö']);
  });

  it('ends before a stop string, however the tokens cut it, and shows none of it', () => {
    const words = fc.constantFrom('a bell', ' and', '\n', 'Question', ':', 'Q', '\nQ', 'ö');
    fc.assert(
      fc.property(fc.array(words, { maxLength: 12 }), (parts) => {
        const text = parts.join('');
        const ids = tokenizer.encode(text);
        const stops = ['\nQuestion:', ' and and'];
        const stream = textStream(tokenizer, stops);
        let shown = '';
        for (const id of ids) {
          shown += stream.push(id);
          if (stream.stopped) break;
        }
        shown += stream.end();
        const at = Math.min(...stops.map((stop) => text.indexOf(stop)).filter((found) => found >= 0));
        expect(stream.stopped).toBe(at < Number.POSITIVE_INFINITY);
        expect(shown).toBe(text.slice(0, at === Number.POSITIVE_INFINITY ? undefined : at));
        expect(stream.text).toBe(shown);
      }),
    );
  });
});
