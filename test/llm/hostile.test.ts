/** Files made to harm: each ends in an error that names it, soon, and without much memory. */
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import fc from 'fast-check';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { readGgufHeader } from '../../src/llm/gguf.ts';
import { streamGgufTensors } from '../../src/llm/ggufTensors.ts';
import { ModelError } from '../../src/llm/modelError.ts';
import { readSafetensors } from '../../src/llm/safetensors.ts';
import { loadTokenizer, tokenizerFromJson } from '../../src/llm/tokenizer.ts';
import { trainTokenizer } from '../../src/llm/trainTokenizer.ts';
import { loadLlm } from '../../src/llm/weights.ts';
import { ggufBytes, joined, type StoredTensor, stored, text, u32, u64 } from './ggufFile.ts';

let folder: string;
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'palkit-hostile-'));
});
afterAll(() => rm(folder, { recursive: true }));

/** What a file may make the process hold beyond what it held before. */
const memoryBytes = 400e6;
let before: number;
beforeEach(() => {
  before = process.memoryUsage().rss;
});
afterEach(() => {
  expect(process.memoryUsage().rss - before).toBeLessThan(memoryBytes);
});

async function file(name: string, content: string | Uint8Array): Promise<string> {
  const path = join(folder, name);
  await writeFile(path, content);
  return path;
}

/** Reading ends in a ModelError that names the file and says what is wrong. */
async function isRefused(path: string, read: () => Promise<unknown>, message: RegExp): Promise<void> {
  const error = await read().catch((thrown: unknown) => thrown);
  expect(error).toBeInstanceOf(ModelError);
  expect((error as ModelError).message).toMatch(message);
  expect((error as ModelError).message).toContain(path);
}

/** Reads a file, which may be whole after all; whatever goes wrong must be a ModelError that names the file. */
async function isReadOrNamed(path: string, read: () => Promise<unknown>): Promise<void> {
  try {
    await read();
  } catch (error) {
    if (!(error instanceof ModelError)) throw error;
    expect(error.message).toContain(path);
  }
}

/** Some bytes of a file changed, cut off, left out or put in. */
function mutations(whole: Uint8Array): fc.Arbitrary<Uint8Array> {
  const at = fc.nat(whole.length - 1);
  const headAt = fc.nat(Math.min(whole.length - 1, 2000));
  const byte = fc.constantFrom(0, 1, 0x20, 0x22, 0x2c, 0x5b, 0x7b, 0x7f, 0x80, 0xff);
  const set = (position: number, values: readonly number[]) => {
    const copy = whole.slice();
    copy.set(values.slice(0, copy.length - position), position);
    return copy;
  };
  return fc.oneof(
    fc
      .tuple(fc.oneof(at, headAt), fc.array(byte, { minLength: 1, maxLength: 8 }))
      .map(([from, values]) => set(from, values)),
    fc.tuple(headAt, fc.nat(255)).map(([from, value]) => set(from, [value])),
    at.map((length) => whole.slice(0, length)),
    fc
      .tuple(headAt, fc.integer({ min: 1, max: 40 }))
      .map(([from, length]) => joined([whole.subarray(0, from), whole.subarray(from + length)])),
    fc
      .tuple(headAt, fc.uint8Array({ minLength: 1, maxLength: 16 }))
      .map(([from, extra]) => joined([whole.subarray(0, from), extra, whole.subarray(from)])),
  );
}

describe('safetensors', () => {
  const withHeader = (header: string, data = 8) => {
    const bytes = new TextEncoder().encode(header);
    return joined([u64(bytes.length), bytes, new Uint8Array(data)]);
  };
  const entry = (begin: number, end: number, shape: readonly number[] = [1], dtype = 'F32') =>
    `{"dtype":"${dtype}","shape":[${shape}],"data_offsets":[${begin},${end}]}`;
  const cases: [string, Uint8Array, RegExp][] = [
    ['overlapping tensors', withHeader(`{"a":${entry(0, 4)},"b":${entry(2, 6)}}`), /overlaps/],
    ['offsets beyond the file', withHeader(`{"a":${entry(0, 400, [100])}}`), /truncated at tensor "a"/],
    ['offsets that run backwards', withHeader(`{"a":${entry(8, 4)}}`), /hold -4/],
    ['negative offsets', withHeader(`{"a":${entry(-4, 0)}}`), /data_offsets/],
    [
      'offsets above 2^53',
      withHeader('{"a":{"dtype":"F32","shape":[1],"data_offsets":[1e300,2e300]}}'),
      /data_offsets/,
    ],
    [
      'a header of 2^63 bytes',
      joined([u64(2n ** 63n), new Uint8Array(8)]),
      /would have 9223372036854775808 bytes/,
    ],
    [
      'a header of 99 MB in a file of 16 bytes',
      joined([u64(99_000_000), new Uint8Array(8)]),
      /would have 99000000 bytes/,
    ],
    [
      'a hundred thousand tensors, all there',
      withHeader(
        `{${Array.from({ length: 100_000 }, (_, at) => `"${'x'.repeat(40)}${at}":${entry(at, at + 4)}`).join(',')}}`,
      ),
      /its header would have \d+ bytes, but at most 8388608 are possible/,
    ],
    ['JSON a million levels deep', withHeader('{"a":'.repeat(1_000_000)), /nested deeper than 4/],
    ['lists a million levels deep', withHeader(`{"a":${'['.repeat(1_000_000)}`), /nested deeper than 4/],
    ['a tensor that stands twice', withHeader(`{"a":${entry(0, 4)},"a":${entry(4, 8)}}`), /"a" stands twice/],
    ['2^40 elements', withHeader(`{"a":${entry(0, 8, [2 ** 20, 2 ** 20])}}`), /takes 4398046511104 bytes/],
    [
      'a product that overflows',
      withHeader(`{"a":${entry(0, 0, [2 ** 33, 2 ** 33])}}`),
      /takes 295147905179352825856 bytes/,
    ],
    ['a thousand dimensions', withHeader(`{"a":${entry(0, 4, Array(1000).fill(1))}}`), /shape/],
    ['a shape of zeros', withHeader(`{"a":${entry(0, 4, [0])}}`), /takes 0 bytes/],
    ['an unknown type', withHeader(`{"a":${entry(0, 4, [1], 'F8_E4M3')}}`), /dtype "F8_E4M3" is not known/],
    ['bytes that belong to none', withHeader(`{"a":${entry(0, 4)}}`), /belong to none/],
  ];
  test.each(cases)('%s', async (_what, bytes, message) => {
    const path = await file('model.safetensors', bytes);
    await isRefused(path, () => readSafetensors(path), message);
  });

  test('any change of a whole file', async () => {
    const whole = await readFile('test/golden/mixed.safetensors');
    const property = fc.asyncProperty(mutations(whole), async (bytes) => {
      const path = await file('mutated.safetensors', bytes);
      await isReadOrNamed(path, () => readSafetensors(path));
    });
    await fc.assert(property, { numRuns: 300 });
  });
});

describe('GGUF', () => {
  const tensor = (change: Partial<StoredTensor> = {}): StoredTensor => ({
    name: 'a',
    dimensions: [8],
    type: 0,
    data: new Uint8Array(32),
    ...change,
  });
  const list = (kind: number, count: number | bigint, ...elements: Uint8Array[]) => ({
    type: 9,
    bytes: joined([u32(kind), u64(count), ...elements]),
  });
  const nested = (levels: number): { type: number; bytes: Uint8Array } =>
    levels === 0 ? list(4, 0) : list(9, 1, nested(levels - 1).bytes);
  const cases: [string, Uint8Array, RegExp][] = [
    ['another format', new TextEncoder().encode('PK\x03\x04'.repeat(10)), /does not begin with "GGUF"/],
    ['nothing', new Uint8Array(0), /does not begin with "GGUF"/],
    ['only the magic number', new TextEncoder().encode('GGUF'), /does not begin with "GGUF"/],
    ['version 1', ggufBytes({}, [], { version: 1 }), /version 1 of GGUF/],
    ['a big-endian file', ggufBytes({}, [], { version: 3 << 24 }), /a big-endian file of GGUF/],
    [
      '2^63 tensors',
      ggufBytes({}, [tensor()], { tensorCount: 2n ** 63n }),
      /9223372036854775808 tensors, but at most \d+/,
    ],
    [
      '2^40 keys',
      ggufBytes({ a: 1 }, [], { keyCount: 2n ** 40n }),
      /1099511627776 metadata keys, but at most \d+/,
    ],
    [
      'a hundred thousand keys, all there',
      ggufBytes(Object.fromEntries(Array.from({ length: 100_000 }, (_, at) => [`key ${at}`, 1]))),
      /100000 metadata keys, but at most 65536/,
    ],
    [
      'more tensors than there are',
      ggufBytes({}, [tensor()], { tensorCount: 2n }),
      /the name of tensor 1 is a text of|truncated/,
    ],
    [
      'a text of 2^60 bytes',
      ggufBytes({ a: { type: 8, bytes: u64(2n ** 60n) } }),
      /"a" is a text of 1152921504606846976 bytes/,
    ],
    ['a key of 100 kB', ggufBytes({ ['k'.repeat(100_000)]: 1 }), /metadata key 0 is a text of 100000 bytes/],
    ['a list of 2^50 numbers', ggufBytes({ a: list(0, 2n ** 50n) }), /1125899906842624 elements of "a"/],
    [
      'a list of 2^22 bytes and more',
      ggufBytes({ a: list(0, 5e6, new Uint8Array(5e6)) }),
      /5000000 elements of "a", but at most 2097151/,
    ],
    [
      'a list of 3 million texts',
      ggufBytes({ a: list(8, 3e6), b: list(8, 3e6, new Uint8Array(8)) }),
      /3000000 elements of "a"/,
    ],
    ['lists in lists', ggufBytes({ a: nested(100_000 / 100) }), /"a" is nested deeper than 4 levels/],
    [
      'an unknown type of value',
      ggufBytes({ a: { type: 13, bytes: u32(1) } }),
      /"a" has the unknown type 13/,
    ],
    [
      'a list of an unknown type',
      ggufBytes({ a: list(99, 1, new Uint8Array(12)) }),
      /"a" has the unknown type 99/,
    ],
    ['a bool of 2', ggufBytes({ a: { type: 7, bytes: new Uint8Array([2]) } }), /neither 0 nor 1/],
    [
      'text that is not UTF-8',
      ggufBytes({ a: { type: 8, bytes: joined([u64(2), new Uint8Array([0xc3, 0x28])]) } }),
      /"a" is not UTF-8/,
    ],
    [
      'a key that stands twice',
      ggufBytes([
        ['a', 1],
        ['a', 2],
      ]),
      /the key "a" stands twice/,
    ],
    ['a tensor that stands twice', ggufBytes({}, [tensor(), tensor()]), /the tensor "a" stands twice/],
    [
      '2^40 elements',
      ggufBytes({}, [tensor({ dimensions: [2 ** 20, 2 ** 20] })]),
      /would take 4398046511104 bytes/,
    ],
    [
      'a product that overflows',
      ggufBytes({}, [tensor({ dimensions: [2n ** 33n, 2n ** 33n, 2n ** 33n] })]),
      /would take \d{31} bytes/,
    ],
    ['a tensor of nothing', ggufBytes({}, [tensor({ dimensions: [0, 4] })]), /would take 0 bytes/],
    [
      'a million dimensions',
      ggufBytes({}, [tensor({ dimensions: Array(1e6).fill(1) })]),
      /has 1000000 dimensions/,
    ],
    [
      'an offset beyond the file',
      ggufBytes({}, [tensor({ offset: 2n ** 62n })]),
      /from byte 4611686018427387904/,
    ],
    ['a gap', ggufBytes({}, [tensor({ offset: 64 })]), /leaves a gap/],
    [
      'an offset between',
      ggufBytes({}, [tensor({ offset: 4 })]),
      /begins at byte 4, not at a multiple of 32/,
    ],
    [
      'overlapping tensors',
      ggufBytes({}, [tensor(), tensor({ name: 'b', offset: 0 })]),
      /"b" begins at byte \d+ of the file and overlaps/,
    ],
    [
      'a truncated tensor',
      ggufBytes({}, [tensor({ data: new Uint8Array(0) })]),
      /truncated at tensor "a", F32 \[8\]/,
    ],
    ['rows that are no whole blocks', ggufBytes({}, [tensor({ type: 8, dimensions: [33] })]), /blocks of 32/],
    [
      'a type that is not known',
      ggufBytes({}, [tensor({ type: 99 })]),
      /is stored as type 99; what can be read is F32/,
    ],
    ['an odd alignment', ggufBytes({ 'general.alignment': 12 }), /general\.alignment is 12/],
    [
      'bytes that belong to none',
      ggufBytes({}, [tensor()], { tail: 64 }),
      /64 bytes after the last tensor belong to none/,
    ],
  ];
  test.each(cases)('%s', async (_what, bytes, message) => {
    const path = await file('model.gguf', bytes);
    await isRefused(path, () => loadLlm(path), message);
  });

  test('a header of more than 100 MB is not read to its end', async () => {
    const texts = (count: number) => ({ type: 8, bytes: text('x'.repeat(count)) });
    const path = await file('large.gguf', ggufBytes({ a: texts(60e6), b: texts(60e6) }));
    await expect(loadLlm(path)).rejects.toThrow(
      /"b" is a text of 60000000 bytes, but at most \d+ are possible/,
    );
    await writeFile(path, '');
  });

  const vocabulary = (tokens: readonly string[]) => ({
    'general.architecture': 'llama',
    'tokenizer.ggml.model': 'llama',
    'tokenizer.ggml.tokens': tokens,
    'tokenizer.ggml.scores': tokens.map((_, at) => -at - 0.5),
  });
  test('tokens whose merges would take hours to find', async () => {
    const { ggufTokenizerFiles } = await import('../../src/llm/ggufTokenizer.ts');
    const path = await file('long.gguf', ggufBytes(vocabulary(['a', 'b'.repeat(100_000)])));
    const { metadata } = await readGgufHeader(path);
    expect(() => ggufTokenizerFiles(metadata, path)).toThrow(`${path}: the tokens are too long`);
  });

  /** A file that is loaded, tokenizer and all. */
  async function plainLlama(): Promise<Uint8Array> {
    const path = 'test/golden/gguf/llama.gguf';
    const { metadata, tensors } = await readGgufHeader(path);
    const kept: StoredTensor[] = [];
    for await (const [{ name, shape }, values] of streamGgufTensors(path, tensors)) {
      if (name !== 'rope_freqs.weight') kept.push(stored(name, shape, values));
    }
    const whole = ggufBytes([...metadata], kept);
    expect((await loadLlm(await file('whole.gguf', whole))).parameters.size).toBe(20);
    return whole;
  }

  test('any change of a whole file', async () => {
    const whole = await readFile('test/golden/gguf/qwen3.gguf');
    const model = await plainLlama();
    const property = fc.asyncProperty(fc.oneof(mutations(whole), mutations(model)), async (bytes) => {
      const path = await file('mutated.gguf', bytes);
      await isReadOrNamed(path, async () => {
        const { tensors } = await readGgufHeader(path);
        for await (const _ of streamGgufTensors(path, tensors));
      });
      await isReadOrNamed(path, () => loadLlm(path));
    });
    await fc.assert(property, { numRuns: 200 });
  });
});

describe('tokenizer.json', () => {
  const trained = trainTokenizer(['a bell and a drum', 'a bell and a siren'], {
    vocabularySize: 280,
    specialTokens: ['<eos>'],
  }) as unknown as Record<string, unknown> & { model: Record<string, unknown> };
  const model = (change: object) => ({ ...trained, model: { ...trained.model, ...change } });
  const split = (pattern: object, change: object = {}) => ({
    ...trained,
    pre_tokenizer: {
      type: 'Sequence',
      pretokenizers: [
        { type: 'Split', pattern, behavior: 'Isolated', invert: false, ...change },
        { type: 'ByteLevel', use_regex: false },
      ],
    },
  });
  const replace = (content: string, pattern: object = { String: 'a' }) => ({
    type: 'Replace',
    pattern,
    content,
  });
  const vocabulary = trained.model.vocab as Record<string, number>;
  const cases: [string, unknown, RegExp][] = [
    [
      'a vocabulary of one token of 3 MB',
      { ...trained, added_tokens: [{ id: 900, content: 'x'.repeat(3e6) }] },
      /characters in its tokens/,
    ],
    ['three million merges', model({ merges: Array(3 * 2 ** 20).fill('a b') }), /more than 2097152 values/],
    [
      'a million and a half merges of numbers',
      model({ merges: Array(1_500_000).fill(0) }),
      /model\.merges: expected a list .* of at most 1048576/,
    ],
    [
      'a vocabulary of 600,000 tokens',
      model({ vocab: Object.fromEntries(Array.from({ length: 600_000 }, (_, at) => [`t${at}`, at])) }),
      /model\.vocab: expected a list or an object of at most 524288/,
    ],
    [
      'a hundred thousand added tokens that are none',
      { ...trained, added_tokens: Array(100_000).fill(1) },
      /added_tokens: expected a list .* of at most 65536/,
    ],
    [
      'a list of numbers for a vocabulary',
      model({ type: 'Unigram', vocab: [1, 2], merges: undefined }),
      /model\.vocab\.0 is not a token with its score/,
    ],
    ['merges of what is no token', model({ merges: ['a zzz'] }), /the merge "a zzz" does not make a token/],
    ['merges of three', model({ merges: ['a b c'] }), /the merge "a b c"/],
    ['an id of 2^40', model({ vocab: { ...vocabulary, far: 2 ** 40 } }), /the id of "far"/],
    [
      'levels of steps',
      {
        ...trained,
        normalizer: JSON.parse('{"type":"Sequence","normalizers":['.repeat(20) + ']}'.repeat(20)),
      },
      /nested deeper/,
    ],
    [
      'a thousand steps',
      { ...trained, normalizer: { type: 'Sequence', normalizers: Array(1000).fill({ type: 'NFC' }) } },
      /more than 16 steps/,
    ],
    [
      'steps that double the text',
      { ...trained, normalizer: { type: 'Sequence', normalizers: Array(16).fill(replace('aa')) } },
      /more than 256 times as long/,
    ],
    [
      'a step that writes a book',
      { ...trained, normalizer: replace('x'.repeat(1e6)) },
      /no step that palkit takes from a file/,
    ],
    [
      'steps of no length',
      { ...trained, pre_tokenizer: { type: 'FixedLength', length: 0 } },
      /would drop|no step that palkit takes/,
    ],
    ['a pattern that is none', split({ Regex: '(((' }), /group|Invalid regular expression/],
    ['a pattern of 20 kB', split({ Regex: '(a|'.repeat(7000) }), /no step that palkit takes/],
    [
      'a pattern that backtracks for ever',
      split({ Regex: '(?:[^a]+)+!' }),
      /took more than \d+ ms for \d+ characters; its patterns are broken or malicious/,
    ],
    [
      'another that does',
      split({ Regex: '(?:\\s|.)*?(?:.|\\n)*(?:.|\\s)*\\u{110000}?x{9}' }),
      /took more than|broken|Invalid/,
    ],
    [
      'a pattern that backtracks in a normaliser',
      { ...trained, normalizer: replace('', { Regex: '(.*)*(.*)*(.*)*,,' }) },
      /took more than \d+ ms/,
    ],
    [
      'a way to split that the library does not know',
      split({ String: ' ' }, { behavior: 'MergedWithPrevious' }),
      /no step that palkit takes/,
    ],
    [
      'thousands of special tokens',
      [trained, { additional_special_tokens: Array(5000).fill('a') }],
      /additional_special_tokens/,
    ],
  ];
  test.each(cases)('%s', async (_what, content, message) => {
    const [json, config] = Array.isArray(content) ? content : [content, {}];
    const path = await file('tokenizer.json', JSON.stringify(json));
    await file('tokenizer_config.json', JSON.stringify(config));
    await isRefused(path, () => loadTokenizer(path), message);
  });

  afterEach(() => rm(join(folder, 'tokenizer_config.json'), { force: true }));

  test('a pattern that backtracks on one text only', () => {
    const own = tokenizerFromJson(split({ Regex: '(?:q+)+!' }), {}, 'tokenizer.json');
    expect(own.decode(own.encode('a bell'))).toBe('a bell');
    expect(() => own.encode('q'.repeat(60))).toThrow(
      /tokenizer\.json: the tokenizer took more than 501 ms for 60/,
    );
    expect(own.decode(own.encode('a drum'))).toBe('a drum');
  });

  test('what a post-processor would put around a text is left out', () => {
    const single = Array(1e5).fill({ Sequence: { id: 'A', type_id: 0 } });
    const bomb = {
      ...trained,
      post_processor: { type: 'TemplateProcessing', single, pair: [], special_tokens: {} },
    };
    const own = tokenizerFromJson(bomb, {}, 'tokenizer.json');
    expect(own.decode(own.encode('a bell'))).toBe('a bell');
  });

  test('any change of a whole file', async () => {
    const whole = new TextEncoder().encode(JSON.stringify(trained));
    const property = fc.asyncProperty(mutations(whole), async (bytes) => {
      const path = await file('mutated.json', bytes);
      await isReadOrNamed(path, async () => {
        const own = await loadTokenizer(path);
        own.decode(own.encode('a bell, a drum'));
      });
    });
    await fc.assert(property, { numRuns: 200 });
  });
});
