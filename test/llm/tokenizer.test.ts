import { mkdir, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import fc from 'fast-check';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { textStream } from '../../src/llm/textStream.ts';
import { loadTokenizer, tokenizerFromJson } from '../../src/llm/tokenizer.ts';
import { trainTokenizer } from '../../src/llm/trainTokenizer.ts';

interface Golden {
  documents: string[];
  cases: {
    name: string;
    tokenizer: { model: { vocab: Record<string, number>; merges: [string, string][] } };
    config: object;
    texts: { text: string; ids: number[]; decoded: string; plain: string }[];
  }[];
}

const golden: Golden = JSON.parse(
  await readFile(new URL('../golden/tokenizer.json', import.meta.url), 'utf8'),
);
const specialTokens = ['<pad>', '<begin>', '<end>'];
const trained = trainTokenizer(golden.documents, { vocabularySize: 368, specialTokens });
const settings = { bos_token: '<begin>', eos_token: '<end>', pad_token: '<pad>' };
const tokenizer = tokenizerFromJson(trained, settings, 'trained');

let folder: string;
beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), 'palkit-tokenizer-'));
});
afterEach(() => rm(folder, { recursive: true }));

describe.each(golden.cases)('$name tokenizer of the reference implementation', (reference) => {
  const loaded = tokenizerFromJson(reference.tokenizer, reference.config, reference.name);

  test.each(reference.texts)('$text', ({ text, ids, decoded, plain }) => {
    expect(loaded.encode(text)).toEqual(ids);
    expect(loaded.decode(ids, { skipSpecial: false })).toBe(decoded);
    expect(loaded.decode(ids)).toBe(plain);
  });
});

describe('trainTokenizer', () => {
  test('learns what the reference implementation learns', () => {
    const reference = golden.cases[0]?.tokenizer.model;
    expect(trained.model.merges).toEqual(reference?.merges.map((pair) => pair.join(' ')));
    expect(trained.model.vocab).toEqual(reference?.vocab);
  });

  test('makes single tokens of frequent words with their spaces', () => {
    for (const word of ['Ġbell', 'Ġwhistle', 'Ġsiren', 'Ġyes', 'Ġno', 'ĠAnswer', 'Question']) {
      expect([word, tokenizer.tokenId(word)]).toEqual([word, expect.any(Number)]);
    }
    expect(tokenizer.encode(' whistle')).toHaveLength(1);
  });

  test('gives the same for the same documents, in any order', () => {
    const reversed = trainTokenizer(golden.documents.toReversed(), { vocabularySize: 368, specialTokens });
    expect(JSON.stringify(reversed)).toBe(JSON.stringify(trained));
  });

  test('stops when nothing occurs twice', () => {
    const { model } = trainTokenizer(['abab cd'], { vocabularySize: 1024, specialTokens: [] });
    expect(model.merges).toEqual(['a b']);
    expect(Object.keys(model.vocab)).toHaveLength(257);
  });

  test('learns nothing from the spelling of special tokens', () => {
    const { model } = trainTokenizer(['<pad><pad><pad>'], { vocabularySize: 300, specialTokens });
    expect(model.merges).toEqual([]);
  });

  test('refuses a vocabulary without room and special tokens that are no new tokens', () => {
    expect(() => trainTokenizer([], { vocabularySize: 256, specialTokens: ['<pad>'] })).toThrow(
      'a vocabulary of 256 cannot hold 1 special tokens and 256 bytes',
    );
    expect(() => trainTokenizer([], { vocabularySize: 300, specialTokens: ['a'] })).toThrow(/must differ/);
  });

  test('any text comes back', () => {
    fc.assert(
      fc.property(fc.string({ unit: 'binary' }), fc.string({ unit: 'grapheme' }), (a, b) => {
        expect(tokenizer.decode(tokenizer.encode(a))).toBe(a);
        expect(tokenizer.decode(tokenizer.encode(b))).toBe(b);
      }),
      { numRuns: 500 },
    );
  });
});

describe('a tokenizer', () => {
  test('knows its size and special tokens', () => {
    expect(tokenizer.size).toBe(368);
    expect(tokenizer.bosTokenId).toBe(1);
    expect(tokenizer.eosTokenId).toBe(2);
    expect(tokenizer.padTokenId).toBe(0);
    expect(tokenizer.tokenId('<end>')).toBe(2);
    expect(tokenizer.tokenId('trombone')).toBeUndefined();
    expect(tokenizer.decode([1, ...tokenizer.encode('a bell'), 2])).toBe('a bell');
    expect(tokenizer.decode([])).toBe('');
  });

  test('may be cut before a space and nowhere else', () => {
    const { encode } = tokenizer;
    const whole = encode('Answer: bell');
    expect([...encode('Answer:'), ...encode(' bell')]).toEqual(whole);
    expect([...encode('Answer: '), ...encode('bell')]).not.toEqual(whole);
    expect([...encode('Answer:'), ...encode('bell')]).not.toEqual(whole);

    const word = fc.stringMatching(/^[a-zа-я0-9.,?]{1,8}$/);
    fc.assert(
      fc.property(fc.array(word, { minLength: 1 }), fc.array(word, { minLength: 1 }), (a, b) => {
        const [head, tail] = [a.join(' '), ` ${b.join(' ')}`];
        expect([...encode(head), ...encode(tail)]).toEqual(encode(head + tail));
      }),
    );
  });

  test('keeps the space before a full stop', () => {
    expect(tokenizer.decode(tokenizer.encode("yes . isn 't"))).toBe("yes . isn 't");
  });

  test('gives text back as it was where its settings ask to clean it up, as transformers does', () => {
    const llama3 = { ...settings, clean_up_tokenization_spaces: true };
    const asked = tokenizerFromJson(trained, llama3, 'trained');
    const text = "yes . no ? a bell 's";
    expect(asked.decode(asked.encode(text))).toBe(text);
    // What a stream has shown stays as it was shown.
    const stream = textStream(asked, []);
    expect(
      asked
        .encode(text)
        .map((id) => stream.push(id))
        .join('') + stream.end(),
    ).toBe(text);
  });

  test('refuses ids without a token', () => {
    expect(() => tokenizer.decode([3, 368])).toThrow('trained: no token has the id 368');
    expect(() => tokenizer.decode([-1])).toThrow('no token has the id -1');
    expect(() => tokenizer.decode([0.5])).toThrow('no token has the id 0.5');
  });

  test('refuses a word of no vocabulary instead of leaving a hole', () => {
    const words = {
      model: { type: 'WordLevel', vocab: { a: 0, bell: 1 } },
      pre_tokenizer: { type: 'Whitespace' },
      decoder: null,
    };
    const wordLevel = tokenizerFromJson(words, {}, 'words.json');
    expect(wordLevel.encode('a bell')).toEqual([0, 1]);
    expect(() => wordLevel.encode('a drum')).toThrow('words.json: "drum" is in no vocabulary');
  });
});

describe('special tokens', () => {
  const llama2 = golden.cases.find(({ name }) => name === 'Llama 2') as (typeof golden.cases)[number];
  const { merges, vocab } = llama2.tokenizer.model;
  // As a vocabulary of SentencePiece gives them: merges for every token, special ones among them.
  const merged = {
    ...llama2.tokenizer,
    model: {
      ...llama2.tokenizer.model,
      vocab: { ...vocab, '/s': 5000, '/s>': 5001, '<': 5002, '/': 5003, '>': 5004, _: 5005 },
      merges: [...merges, ['/', 's'], ['/s', '>'], ['<', '/s>']],
    },
  };

  test.each([
    ['byte-level', tokenizer],
    ['SentencePiece', tokenizerFromJson(merged, llama2.config, 'merged')],
  ])('%s: what is escaped stays text, whatever stands around it', (_, own) => {
    const special = Object.values(own.specialTokens);
    const spelled = fc
      .array(
        fc.oneof(fc.constantFrom(...special, '<', '</', 's>', 'end>', ' '), fc.string({ unit: 'grapheme' })),
      )
      .map((parts) => parts.join(''));
    const unknown = own.tokenId('<unk>');
    const isMarker = (id: number) => own.isSpecial(id) && id !== unknown;
    fc.assert(
      fc.property(spelled, spelled, (text, other) => {
        const escaped = own.escapeSpecial(text);
        expect(own.encode(escaped).some(isMarker)).toBe(false);
        const [marker = ''] = special;
        const between = own.encode(`${marker}${escaped}${marker}${own.escapeSpecial(other)}`);
        expect(between.filter(isMarker)).toEqual([own.tokenId(marker), own.tokenId(marker)]);
        if (own === tokenizer) {
          expect(own.decode(own.encode(escaped))).toBe(text);
          expect(own.decode(own.encode(escaped), { skipSpecial: false })).toBe(text);
        }
      }),
    );
  });

  test('lone surrogates, by which they are marked, cannot come from a text', () => {
    const text = '\ud8011;\ud800<end>';
    expect(tokenizer.decode(tokenizer.encode(tokenizer.escapeSpecial(text)))).toBe('\ufffd1;\ufffd<end>');
  });

  test('those that tokenizer_config.json alone has are known too', () => {
    const added_tokens_decoder = {
      2: { content: '<end>', special: true },
      368: { content: '<turn>', special: true },
    };
    const more = tokenizerFromJson(trained, { ...settings, added_tokens_decoder }, 'more');
    expect(more.encode('bell<turn>')).toEqual([...more.encode('bell'), 368]);
    expect(more.decode([368], { skipSpecial: false })).toBe('<turn>');
    expect(more.isSpecial(368)).toBe(true);
    expect(more.size).toBe(369);
    const clash = { ...settings, added_tokens_decoder: { 7: { content: '<turn>', special: true } } };
    expect(() => tokenizerFromJson(trained, clash, 'clash')).toThrow('have the same id 7');
  });

  test('what a sequence begins with: add_bos_token, else the template, else nothing', () => {
    const llama3 = golden.cases.find(({ name }) => name === 'Llama 3') as (typeof golden.cases)[number];
    const beginning = (json: unknown, config: object) => tokenizerFromJson(json, config, 'x').beginning;
    expect(tokenizer.beginning).toEqual([]);
    expect(beginning(trained, { ...settings, add_bos_token: true })).toEqual([1]);
    expect(beginning(llama3.tokenizer, llama3.config as object)).toEqual([0]);
    expect(beginning(llama3.tokenizer, { ...(llama3.config as object), add_bos_token: false })).toEqual([]);
    expect(() => beginning(trained, { add_bos_token: true })).toThrow('has add_bos_token, but no bos_token');
    const odd = {
      type: 'TemplateProcessing',
      single: [{ SpecialToken: { id: '<odd>' } }, { Sequence: { id: 'A' } }],
    };
    expect(() => beginning({ ...trained, post_processor: odd }, settings)).toThrow(
      '"<odd>" is not in the vocabulary',
    );
    expect(() => beginning({ ...trained, post_processor: { ...odd, single: 7 } }, settings)).toThrow(
      'x: post_processor: not a tokenizer of Hugging Face',
    );
  });
});

describe('loadTokenizer', () => {
  const file = () => join(folder, 'tokenizer.json');

  test('reads a folder, and a file with the settings beside it', async () => {
    const path = join(folder, 'tokenizer Яя');
    await mkdir(path);
    await writeFile(join(path, 'tokenizer.json'), `\ufeff${JSON.stringify(trained)}`);
    await writeFile(join(path, 'tokenizer_config.json'), JSON.stringify(settings));
    for (const from of [path, join(path, 'tokenizer.json')]) {
      const loaded = await loadTokenizer(from);
      expect(loaded.encode('a bell')).toEqual(tokenizer.encode('a bell'));
      expect(loaded.eosTokenId).toBe(2);
      expect(loaded.files).toEqual({ tokenizer: trained, tokenizerConfig: settings });
    }
  });

  test('does without settings', async () => {
    await writeFile(file(), JSON.stringify(trained));
    const loaded = await loadTokenizer(folder);
    expect([loaded.bosTokenId, loaded.eosTokenId, loaded.padTokenId]).toEqual([
      undefined,
      undefined,
      undefined,
    ]);
  });

  test('names the missing file', async () => {
    await expect(loadTokenizer(folder)).rejects.toThrow(`${file()}: no such file`);
  });

  test('refuses a file of more than 64 MB before reading it', async () => {
    await writeFile(file(), Buffer.alloc(64 * 2 ** 20 + 1, ' '));
    await expect(loadTokenizer(folder)).rejects.toThrow(`${file()}: 67108865 bytes`);
  });

  const base = trained as unknown as Record<string, unknown>;
  const model = (change: object) => ({ ...base, model: { ...trained.model, ...change } });
  const { Ġ: _space, ...withoutSpace } = trained.model.vocab;
  test.each<[string, unknown, RegExp]>([
    ['bad JSON', '{"model":', /not JSON/],
    ['no object', [], /content: /],
    ['no model', {}, /model: /],
    ['no vocabulary', model({ vocab: undefined }), /model\.vocab/],
    ['an empty vocabulary', model({ vocab: {} }), /model\.vocab is empty/],
    ['no merges', model({ merges: undefined }), /model\.merges is missing/],
    ['merges of the wrong type', model({ merges: [1] }), /the merge 1 does not make a token/],
    ['an id that is text', model({ vocab: { a: '1' } }), /the id of "a" must be an integer/],
    ['a negative id', model({ vocab: { a: -1 } }), /the id of "a" must be an integer/],
    ['an id that would fill the memory', model({ vocab: { a: 4e9 } }), /the id of "a" must be an integer/],
    ['two tokens with one id', model({ vocab: { ...trained.model.vocab, zz: 7 } }), /have the same id 7/],
    [
      'an added token with two ids',
      { ...base, added_tokens: [{ id: 900, content: '<pad>' }] },
      /"<pad>" has two ids/,
    ],
    [
      'an added token without text',
      { ...base, added_tokens: [{ id: 0, content: '' }] },
      /added_tokens\.0\.content/,
    ],
    [
      'an unknown pre-tokenizer',
      { ...base, pre_tokenizer: { type: 'Magic' } },
      /Magic|would drop characters/,
    ],
    ['a decoder that is no object', { ...base, decoder: 'ByteLevel' }, /decoder/],
    ['a decoder of another kind', { ...base, decoder: { type: 'Fuse' } }, /does not give a text back/],
    [
      'a byte that no token stands for',
      model({ vocab: withoutSpace, merges: [] }),
      /the character U\+0020 has no token/,
    ],
    ['characters it would drop', { ...base, pre_tokenizer: null }, /would drop characters/],
    ['deep nesting', `{"a":${'['.repeat(100_000)}`, /nested deeper than 32/],
    ['a token that stands twice', '{"model":{"vocab":{"a":0,"a":1}}}', /the key "a" stands twice/],
  ])('refuses %s', async (_name, content, message) => {
    await writeFile(file(), typeof content === 'string' ? content : JSON.stringify(content));
    await expect(loadTokenizer(folder)).rejects.toThrow(message);
    await expect(loadTokenizer(folder)).rejects.toThrow(folder);
  });

  test('refuses a special token that is not in the vocabulary', () => {
    expect(() => tokenizerFromJson(trained, { eos_token: '</s>' }, 'f')).toThrow(
      'f: the eos_token "</s>" is not in the vocabulary',
    );
    expect(() => tokenizerFromJson(trained, { eos_token: 3 }, 'f')).toThrow(
      /f: tokenizer_config\.json: .*eos_token/s,
    );
  });
});
