import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { parameterShapes, parseDecoderConfig } from '../../src/llm/config.ts';
import { type GgufHeader, readGgufHeader } from '../../src/llm/gguf.ts';
import { ggufConfig } from '../../src/llm/ggufConfig.ts';
import { ggufParameterShapes, streamGgufParameters } from '../../src/llm/ggufParameters.ts';
import { streamGgufTensors } from '../../src/llm/ggufTensors.ts';
import { ggufTokenizerFiles } from '../../src/llm/ggufTokenizer.ts';
import { tokenizerFromJson } from '../../src/llm/tokenizer.ts';
import { loadLlm, saveLlm } from '../../src/llm/weights.ts';
import { fill } from './formula.ts';
import { ggufBytes, type StoredTensor, stored } from './ggufFile.ts';

const files = 'test/golden/gguf';
const golden = JSON.parse(await readFile(`${files}/files.json`, 'utf8')) as {
  readonly texts: string[];
  readonly bytes: Record<string, number[][]>;
  readonly pieces: number[][];
  readonly configs: Record<string, Record<string, unknown>>;
};

async function tensorsOf(path: string): Promise<Map<string, Float32Array>> {
  const { tensors } = await readGgufHeader(path);
  const read = new Map<string, Float32Array>();
  for await (const [{ name }, values] of streamGgufTensors(path, tensors)) read.set(name, values);
  return read;
}

const kinds = ['F16', 'BF16', 'Q4_0', 'Q4_1', 'Q5_0', 'Q5_1', 'Q8_0', 'Q2_K', 'Q3_K', 'Q4_K', 'Q5_K', 'Q6_K'];
test.each(kinds)('%s is widened to the bits that the gguf package gives', async (kind) => {
  const tensors = await tensorsOf(`${files}/quants.gguf`);
  const [own, expected] = [tensors.get(kind), tensors.get(`${kind}.expected`)];
  expect(expected).toHaveLength(512);
  expect(new Set(expected).size).toBeGreaterThan(50);
  expect(new Uint32Array(own?.buffer as ArrayBuffer)).toEqual(
    new Uint32Array(expected?.buffer as ArrayBuffer),
  );
});

describe.each(['llama', 'qwen2', 'qwen3'])('a file of %s', (architecture) => {
  const path = `${files}/${architecture}.gguf`;
  let header: GgufHeader;
  beforeAll(async () => {
    header = await readGgufHeader(path);
  });

  test('has the configuration that transformers wrote it from', async () => {
    const config = await ggufConfig(path, header);
    // Without a tokenizer in the file nobody knows the ids.
    const { bos_token_id, eos_token_id, ...expected } = golden.configs[architecture] ?? {};
    expect(config).toMatchObject(expected);
    if (architecture === 'llama') expect(config).toMatchObject({ bos_token_id, eos_token_id });
  });

  test('is a model that palkit runs, with all its parameters', async () => {
    const config = parseDecoderConfig(await ggufConfig(path, header), path);
    expect(config.family).toBe(architecture);
    const shapes = new Map([...ggufParameterShapes(path, header)].map(([name, shape]) => [name, [...shape]]));
    expect(shapes).toEqual(parameterShapes(config));
  });

  test("has transformers' parameters, in its order of rows", async () => {
    const { num_attention_heads, num_key_value_heads } = golden.configs[architecture] ?? {};
    const config = { heads: num_attention_heads as number, keyValueHeads: num_key_value_heads as number };
    const names: string[] = [];
    for await (const [name, shape, data] of streamGgufParameters(path, header, config)) {
      expect(data, name).toEqual(fill(name, shape).data);
      names.push(name);
    }
    expect(names.sort()).toEqual([...ggufParameterShapes(path, header).keys()].sort());
    expect(names).toContain(
      {
        llama: 'model.layers.1.mlp.down_proj.weight',
        qwen2: 'model.layers.0.self_attn.v_proj.bias',
        qwen3: 'model.layers.0.self_attn.k_norm.weight',
      }[architecture],
    );
  });
});

test('scaled positions are found again in their factors, and a file without a tokenizer is named', async () => {
  const { config, parameters } = await loadLlm(`${files}/llama.gguf`);
  expect(config.ropeScaling).toMatchObject({ kind: 'llama3', factor: 32 });
  expect(parameters.size).toBe(20);
  await expect(loadLlm(`${files}/qwen2.gguf`)).rejects.toThrow(/qwen2\.gguf: there is no tokenizer in it/);
});

describe('the tokenizer inside', () => {
  test.each(Object.keys(golden.bytes))('of bytes, words cut as %s: the ids of tokenizers', async (pre) => {
    const { metadata } = await readGgufHeader(`${files}/llama.gguf`);
    const changed = new Map(metadata).set('tokenizer.ggml.pre', pre);
    const { tokenizer, tokenizerConfig } = ggufTokenizerFiles(changed, pre);
    const own = tokenizerFromJson(tokenizer, tokenizerConfig, pre);
    expect(golden.texts.map((text) => own.encode(text))).toEqual(golden.bytes[pre]);
    const given = pre === 'qwen2' ? golden.texts.map((text) => text.normalize('NFC')) : golden.texts;
    expect(golden.texts.map((text) => own.decode(own.encode(text), { skipSpecial: false }))).toEqual(given);
  });

  test('of pieces: the ids of sentencepiece', async () => {
    const { metadata } = await readGgufHeader(`${files}/pieces.gguf`);
    const { tokenizer, tokenizerConfig } = ggufTokenizerFiles(metadata, 'pieces');
    const own = tokenizerFromJson(tokenizer, tokenizerConfig, 'pieces');
    expect(golden.texts.map((text) => own.encode(text))).toEqual(golden.pieces);
    // The library's decoder takes the zero-width space U+FEFF for a byte-order mark.
    const expected = golden.texts.map((text) => text.replace('\ufeff', ''));
    expect(golden.texts.map((text) => own.decode(own.encode(text)))).toEqual(expected);
    for (const [at, text] of golden.texts.entries()) {
      for (const { index } of text.matchAll(/(?<=[^ ]) /g)) {
        const rest = own.encode(text.slice(index), { continues: true });
        expect([...own.encode(text.slice(0, index)), ...rest]).toEqual(golden.pieces[at]);
      }
    }
    expect([own.bosTokenId, own.eosTokenId]).toEqual([1, 2]);
    expect(tokenizerConfig).toMatchObject({ add_bos_token: true, unk_token: '<unk>' });
  });

  test.each([
    ['smollm', 'llama.gguf', []],
    ['llama-bpe', 'llama.gguf', [1]],
    ['default', 'pieces.gguf', [1]],
  ])('begins a sequence as llama.cpp does where the file does not say: %s', async (pre, file, beginning) => {
    const header = await readGgufHeader(`${files}/${file}`);
    const metadata = new Map(header.metadata).set('tokenizer.ggml.pre', pre);
    const beginsWith = (change: (changed: typeof metadata) => void) => {
      const changed = new Map(metadata);
      change(changed);
      const { tokenizer, tokenizerConfig } = ggufTokenizerFiles(changed, file);
      return tokenizerFromJson(tokenizer, tokenizerConfig, file).beginning;
    };
    const key = 'tokenizer.ggml.add_bos_token';
    expect(beginsWith((changed) => changed.delete(key))).toEqual(beginning);
    expect(beginsWith((changed) => changed.set(key, false))).toEqual([]);
    expect(beginsWith((changed) => changed.set(key, true))).toEqual([1]);
  });

  test('keeps special tokens and the chat template', async () => {
    const { metadata } = await readGgufHeader(`${files}/llama.gguf`);
    expect(ggufTokenizerFiles(metadata, 'llama').tokenizerConfig).toEqual({
      bos_token: '<|im_start|>',
      eos_token: '<|im_end|>',
      unk_token: '<|endoftext|>',
      pad_token: '<|im_end|>',
      add_bos_token: false,
      clean_up_tokenization_spaces: false,
      chat_template: '{% for message in messages %}{{ message.content }}{% endfor %}',
    });
  });

  test.each<[string, string, unknown, RegExp]>([
    ['kind', 'model', 'rwkv', /tokenizer\.ggml\.model is "rwkv"; "gpt2" and "llama"/],
    ['way to cut words', 'pre', 'poro-chat', /tokenizer\.ggml\.pre is "poro-chat".*known are .*smollm/],
    ['list of tokens', 'tokens', [1, 2], /"tokenizer\.ggml\.tokens" is not a list of texts/],
    ['number of kinds', 'token_type', [1], /400 tokens, but 1 elements/],
    ['merge', 'merges', ['a b c'], /the merge "a b c" is not of two tokens/],
    [
      'merge of tokens that are none',
      'merges',
      ['zq qz'],
      /the merge .* does not make a token of two tokens/,
    ],
    ['end', 'eos_token_id', 400, /"tokenizer\.ggml\.eos_token_id" is 400, which no token has/],
    ['token that stands twice', 'tokens', [...Array(400)].map(() => 'a'), /the tokens 0 and 1 are both "a"/],
    [
      'vocabulary of 600,000',
      'tokens',
      Array(600_000).fill('a'),
      /600000 tokens, but at most 524288 are possible/,
    ],
  ])('refuses another %s', async (_what, key, value, message) => {
    const { metadata } = await readGgufHeader(`${files}/llama.gguf`);
    const changed = new Map(metadata).set(`tokenizer.ggml.${key}`, value as string);
    expect(() => {
      const made = ggufTokenizerFiles(changed, 'file.gguf');
      tokenizerFromJson(made.tokenizer, made.tokenizerConfig, 'file.gguf');
    }).toThrow(message);
  });
});

describe('a model', () => {
  let folder: string;
  let metadata: Record<string, unknown>;
  let tensors: StoredTensor[];
  beforeAll(async () => {
    folder = await mkdtemp(join(tmpdir(), 'palkit-gguf-'));
    const path = `${files}/llama.gguf`;
    const header = await readGgufHeader(path);
    metadata = Object.fromEntries(header.metadata);
    tensors = [];
    for await (const [{ name, shape }, values] of streamGgufTensors(path, header.tensors)) {
      if (name !== 'rope_freqs.weight') tensors.push(stored(name, shape, values));
    }
  });
  afterAll(() => rm(folder, { recursive: true }));

  async function load(change: Record<string, unknown> = {}, extra: readonly StoredTensor[] = tensors) {
    const path = join(folder, 'model.gguf');
    await writeFile(path, ggufBytes({ ...metadata, ...change }, extra));
    return loadLlm(path);
  }

  test('is loaded whole from its file, and comes back from a folder', async () => {
    const loaded = await load();
    expect(loaded.config).toMatchObject({
      layers: 2,
      headWidth: 8,
      ropeTheta: 500_000,
      rmsNormEpsilon: 1e-5,
    });
    for (const [name, { shape, data }] of loaded.parameters) expect(data).toEqual(fill(name, shape).data);
    await saveLlm(join(folder, 'saved'), loaded);
    const again = await loadLlm(join(folder, 'saved'));
    expect(again.hash).toBe(loaded.hash);
    expect(again.config).toEqual(loaded.config);
    for (const text of golden.texts)
      expect(again.tokenizer.encode(text)).toEqual(loaded.tokenizer.encode(text));
  });

  test('brings its chat template, whatever lies beside the file', async () => {
    const beside = join(folder, 'chat_template.jinja');
    await writeFile(beside, 'of another model');
    const { chatTemplate } = await load();
    expect(chatTemplate).toBe('{% for message in messages %}{{ message.content }}{% endfor %}');
    await rm(beside);
  });

  test('may have a head of its own, and ends of turns beside the end of text', async () => {
    const head = stored('output.weight', [400, 32], fill('lm_head.weight', [400, 32]).data);
    const loaded = await load({ 'tokenizer.ggml.eot_token_id': 0 }, [...tensors, head]);
    expect(loaded.config.tieWordEmbeddings).toBe(false);
    expect(loaded.config.eosTokenIds).toEqual([2, 0]);
    expect(loaded.parameters.get('lm_head.weight')?.data).toEqual(fill('lm_head.weight', [400, 32]).data);
  });

  test('may have positions stretched evenly or by YaRN', async () => {
    const scaling = { 'llama.rope.scaling.type': 'linear', 'llama.rope.scaling.factor': 4 };
    expect((await load(scaling)).config.ropeScaling).toEqual({ kind: 'linear', factor: 4 });
    const yarn = {
      ...scaling,
      'llama.rope.scaling.type': 'yarn',
      'llama.rope.scaling.original_context_length': 4096,
    };
    expect((await load(yarn)).config.ropeScaling).toMatchObject({
      kind: 'yarn',
      factor: 4,
      originalMaxPositions: 4096,
    });
  });

  const extra = (name: string, size: number) => stored(name, [size], new Float32Array(size).fill(1.5));
  test.each<[string, Record<string, unknown>, RegExp]>([
    [
      'another architecture',
      { 'general.architecture': 'gpt2' },
      /general\.architecture is "gpt2"; palkit runs llama/,
    ],
    ['no width', { 'llama.embedding_length': 'wide' }, /"llama\.embedding_length" is not a number/],
    ['experts', { 'llama.expert_count': 8 }, /"llama\.expert_count" is 8; models with another value than 0/],
    ['a partial rotation', { 'llama.rope.dimension_count': 4 }, /"llama\.rope\.dimension_count" is 4/],
    [
      'positions scaled in another way',
      { 'llama.rope.scaling.type': 'longrope', 'llama.rope.scaling.factor': 4 },
      /scaled by "longrope" with a factor of 4/,
    ],
    [
      'YaRN without the length that it stretches',
      { 'llama.rope.scaling.type': 'yarn', 'llama.rope.scaling.factor': 4 },
      /"llama\.rope\.scaling\.original_context_length" is missing/,
    ],
    [
      'a scale that is not known',
      { 'llama.logit_scale': 4 },
      /"llama\.logit_scale": may change what the model computes/,
    ],
    ['one part of several', { 'split.count': 3 }, /one of several parts of a model/],
    [
      'other shapes',
      { 'llama.feed_forward_length': 47 },
      /of another shape:\n {4}model\.layers\.0\.mlp\.gate_proj\.weight: \[48, 32\]/,
    ],
  ])('is refused: %s', async (_what, change, message) => {
    await expect(load(change)).rejects.toThrow(message);
    await expect(load(change)).rejects.toThrow(join(folder, 'model.gguf'));
  });

  test("is refused: a window of Qwen's, which is in some layers only", async () => {
    const path = `${files}/qwen2.gguf`;
    const header = await readGgufHeader(path);
    const windowed = (window: number) =>
      ggufConfig(path, {
        ...header,
        metadata: new Map(header.metadata).set('qwen2.attention.sliding_window', window),
      });
    expect(await windowed(0)).toMatchObject({ use_sliding_window: false });
    await expect(windowed(64)).rejects.toThrow(/"qwen2\.attention\.sliding_window" is 64/);
  });

  test('is refused: tensors of another model, factors that are not those of Llama 3', async () => {
    await expect(load({}, [...tensors, extra('blk.0.ffn_gate_exps.weight', 8)])).rejects.toThrow(
      /1 tensors of another model:\n {2}blk\.0\.ffn_gate_exps\.weight/,
    );
    await expect(load({}, [...tensors, extra('rope_freqs.weight', 4)])).rejects.toThrow(
      /"rope_freqs\.weight" is not the scaling of Llama 3/,
    );
    await expect(load({}, [...tensors, extra('blk.0.attn_q.bias', 32)])).rejects.toThrow(
      /attention_bias|k_proj\.bias/,
    );
  });
});
