import { createHash } from 'node:crypto';
import { mkdtemp, readdir, readFile, rename, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, test, vi } from 'vitest';
import { random } from '../../src/config/random.ts';
import { type DecoderConfig, parameterShapes } from '../../src/llm/config.ts';
import { plainLlama } from '../../src/llm/families.ts';
import { parseHubName } from '../../src/llm/hub.ts';
import { readSafetensors, writeSafetensors } from '../../src/llm/safetensors.ts';
import { tokenizerFromJson } from '../../src/llm/tokenizer.ts';
import { trainTokenizer } from '../../src/llm/trainTokenizer.ts';
import { checkKeys, type FloatTensor, loadLlm, saveLlm } from '../../src/llm/weights.ts';
import { bfloat16FromFloat32, float32FromHalf, halfFromFloat32 } from '../../src/tensor/halfPrecision.ts';
import { float32, sizeOf, type Tensor, tensor } from '../../src/tensor/tensor.ts';
import { type HubServer, hubServer } from './hubServer.ts';

const tokenizer = tokenizerFromJson(
  trainTokenizer(['a bell and a drum', 'a bell and a siren'], {
    vocabularySize: 280,
    specialTokens: ['<bos>', '<eos>', '<pad>'],
  }),
  { bos_token: '<bos>', eos_token: '<eos>', pad_token: '<pad>' },
  'tokenizer',
);
const config: DecoderConfig = {
  ...plainLlama,
  hiddenSize: 8,
  intermediateSize: 12,
  layers: 2,
  heads: 4,
  keyValueHeads: 2,
  headWidth: 6,
  vocabularySize: tokenizer.size,
  tieWordEmbeddings: true,
  maxPositions: 128,
  bosTokenId: 0,
  eosTokenIds: [1],
  padTokenId: 2,
};
const parameters = new Map<string, FloatTensor>(
  [...parameterShapes(config)].map(([name, shape]) => {
    const stream = random(5, name);
    return [
      name,
      float32(
        shape,
        Float32Array.from({ length: sizeOf(shape) }, () => stream.normal()),
      ),
    ];
  }),
);

let root: string;
let folder: string;
beforeEach(async () => {
  root = await mkdtemp(join(tmpdir(), 'palkit-llm-'));
  folder = join(root, 'model');
  await saveLlm(folder, { config, parameters, tokenizer });
});
afterEach(async () => {
  vi.unstubAllEnvs();
  vi.restoreAllMocks();
  await rm(root, { recursive: true });
});

/** Rewrites one JSON file of the folder. */
async function edit(file: string, change: (json: Record<string, unknown>) => unknown): Promise<void> {
  const path = join(folder, file);
  await writeFile(path, JSON.stringify(change(JSON.parse(await readFile(path, 'utf8')))));
}

/** Replaces the one weight file by two shards with an index. */
async function shard(weightMap: (name: string, index: number) => string): Promise<void> {
  const names = [...parameters.keys()];
  const files = new Map<string, Map<string, Tensor>>();
  for (const [index, name] of names.entries()) {
    const file = `model-0000${(index % 2) + 1}-of-00002.safetensors`;
    const tensors = files.get(file) ?? new Map<string, Tensor>();
    files.set(file, tensors.set(name, parameters.get(name) as Tensor));
  }
  for (const [file, tensors] of files) await writeSafetensors(join(folder, file), tensors);
  await rm(join(folder, 'model.safetensors'));
  const weight_map = Object.fromEntries(names.map((name, index) => [name, weightMap(name, index)]));
  await writeFile(join(folder, 'model.safetensors.index.json'), JSON.stringify({ metadata: {}, weight_map }));
}
const inShards = (_name: string, index: number) => `model-0000${(index % 2) + 1}-of-00002.safetensors`;

describe('a folder', () => {
  test('comes back as it was saved', async () => {
    const loaded = await loadLlm(folder);
    expect(loaded.config).toEqual(config);
    expect(new Map([...loaded.parameters].sort())).toEqual(new Map([...parameters].sort()));
    expect(loaded.tokenizer.encode('a bell')).toEqual(tokenizer.encode('a bell'));
    expect(loaded.tokenizer.eosTokenId).toBe(1);
    expect(loaded.folder).toBe(folder);
    expect((await readdir(folder)).sort()).toEqual([
      'config.json',
      'generation_config.json',
      'model.safetensors',
      'tokenizer.json',
      'tokenizer_config.json',
    ]);

    const copy = join(root, 'copy');
    await saveLlm(copy, loaded);
    for (const file of await readdir(folder)) {
      expect(await readFile(join(copy, file))).toEqual(await readFile(join(folder, file)));
    }
  });

  test('is not made half as large where a weight would become infinite', async () => {
    const large = new Map(parameters).set(
      'model.norm.weight',
      float32([8], new Float32Array(8).fill(70_000)),
    );
    const saving = saveLlm(join(root, 'large'), { config, parameters: large, tokenizer }, { half: true });
    await expect(saving).rejects.toThrow(
      /"model\.norm\.weight" has the value 70000, which float16 cannot hold/,
    );
    expect(await readdir(join(root, 'large'))).toEqual([]);
  });

  test('can be half as large', async () => {
    await saveLlm(folder, { config, parameters, tokenizer }, { half: true });
    const stored = await readSafetensors(join(folder, 'model.safetensors'));
    expect(new Set([...stored.values()].map(({ dtype }) => dtype))).toEqual(new Set(['float16']));
    expect(JSON.parse(await readFile(join(folder, 'config.json'), 'utf8')).torch_dtype).toBe('float16');
    const loaded = await loadLlm(folder);
    for (const [name, { data }] of parameters) {
      expect(loaded.parameters.get(name)?.data).toEqual(float32FromHalf(halfFromFloat32(data)));
    }
  });

  test('may hold bfloat16', async () => {
    const rounded = new Map(
      [...parameters].map(([name, { shape, data }]) => [
        name,
        tensor('bfloat16', shape, bfloat16FromFloat32(data)),
      ]),
    );
    await writeSafetensors(join(folder, 'model.safetensors'), rounded);
    const { parameters: widened } = await loadLlm(folder);
    for (const [name, { data }] of parameters) {
      const found = widened.get(name)?.data ?? new Float32Array();
      expect(found).toHaveLength(data.length);
      expect(
        data.every((value, index) => Math.abs(value - (found[index] ?? 0)) <= Math.abs(value) / 256),
      ).toBe(true);
    }
  });

  test('is known by its weights, however they are stored', async () => {
    const { hash } = await loadLlm(folder);
    expect(hash).toMatch(/^[0-9a-f]{64}$/);
    await shard(inShards);
    expect((await loadLlm(folder)).hash).toBe(hash);

    const changed = new Map(parameters).set('model.norm.weight', float32([8], new Float32Array(8)));
    await saveLlm(join(root, 'changed'), { config, parameters: changed, tokenizer });
    expect((await loadLlm(join(root, 'changed'))).hash).not.toBe(hash);
  });

  test('ends an answer with the tokens of generation_config.json too', async () => {
    await edit('generation_config.json', () => ({ eos_token_id: [2, 1] }));
    expect((await loadLlm(folder)).config.eosTokenIds).toEqual([1, 2]);
    await edit('generation_config.json', () => ({ eos_token_id: config.vocabularySize }));
    await expect(loadLlm(folder)).rejects.toThrow(
      /generation_config\.json: .*eos_token_id \d+ is outside the vocabulary/s,
    );
    await rm(join(folder, 'generation_config.json'));
    expect((await loadLlm(folder)).config.eosTokenIds).toEqual([1]);
  });

  test('may be named by its weights', async () => {
    const loaded = await loadLlm(join(folder, 'model.safetensors'));
    expect(loaded.folder).toBe(folder);
    expect(loaded.parameters.size).toBe(parameters.size);
  });

  test('may store the tied output projection a second time', async () => {
    const embeddings = parameters.get('model.embed_tokens.weight') as FloatTensor;
    const twice = new Map(parameters).set('lm_head.weight', embeddings);
    await writeSafetensors(join(folder, 'model.safetensors'), twice);
    expect((await loadLlm(folder)).parameters.has('lm_head.weight')).toBe(false);
  });

  test("may store every layer's rotary frequencies, as Llama 2's files do", async () => {
    const more = new Map(parameters);
    for (const layer of [0, 1])
      more.set(`model.layers.${layer}.self_attn.rotary_emb.inv_freq`, float32([3], new Float32Array(3)));
    await writeSafetensors(join(folder, 'model.safetensors'), more);
    expect(new Set((await loadLlm(folder)).parameters.keys())).toEqual(new Set(parameters.keys()));
  });
});

describe('what is wrong is named', () => {
  test.each(['config.json', 'tokenizer.json', 'model.safetensors'])('%s is missing', async (file) => {
    await rm(join(folder, file));
    await expect(loadLlm(folder)).rejects.toThrow(file);
    await expect(loadLlm(folder)).rejects.toThrow(folder);
  });

  test('parameters of another model, all at once', async () => {
    const other = new Map(parameters);
    other.delete('model.layers.1.mlp.up_proj.weight');
    other.delete('model.norm.weight');
    other.set('model.layers.0.self_attn.q_proj.bias', float32([24], new Float32Array(24)));
    other.set('model.embed_tokens.weight', float32([2, 8], new Float32Array(16)));
    await writeSafetensors(join(folder, 'model.safetensors'), other);
    await expect(loadLlm(folder)).rejects.toThrow(
      [
        `${folder}: the parameters are those of another model`,
        '  2 missing:',
        '    model.layers.1.mlp.up_proj.weight',
        '    model.norm.weight',
        '  1 unexpected:',
        '    model.layers.0.self_attn.q_proj.bias',
        '  1 of another shape:',
        `    model.embed_tokens.weight: [2, 8] instead of [${config.vocabularySize}, 8]`,
      ].join('\n'),
    );
  });

  test('weights that are no numbers of a model', async () => {
    const other = new Map<string, Tensor>(parameters);
    other.set('model.norm.weight', tensor('int32', [8], new Int32Array(8)));
    await writeSafetensors(join(folder, 'model.safetensors'), other);
    await expect(loadLlm(folder)).rejects.toThrow('"model.norm.weight" is int32');
  });

  test('a tokenizer of another model', async () => {
    await edit('config.json', (json) => ({ ...json, vocab_size: 100 }));
    const cut = new Map(parameters).set(
      'model.embed_tokens.weight',
      float32([100, 8], new Float32Array(800)),
    );
    await writeSafetensors(join(folder, 'model.safetensors'), cut);
    await expect(loadLlm(folder)).rejects.toThrow(
      `the tokenizer has ${tokenizer.size} tokens, the model's vocabulary 100`,
    );
  });

  test('a configuration of another architecture', async () => {
    await edit('config.json', (json) => ({ ...json, model_type: 'gpt2' }));
    await expect(loadLlm(folder)).rejects.toThrow(/config\.json: .*model_type/s);
  });

  test.each([
    '../model-00001-of-00002.safetensors',
    '/etc/passwd',
    'a/b.safetensors',
    '..',
    'C:\\x.safetensors',
    '.safetensors',
  ])('a shard outside of the folder: %s', async (trick) => {
    await shard((name, index) => (index === 3 ? trick : inShards(name, index)));
    await rename(
      join(folder, 'model-00001-of-00002.safetensors'),
      join(root, 'model-00001-of-00002.safetensors'),
    );
    await expect(loadLlm(folder)).rejects.toThrow(
      `model.safetensors.index.json: ${JSON.stringify(trick)} is not the plain name of a .safetensors file`,
    );
  });

  test('a shard that is not there, and one parameter in two shards', async () => {
    await shard((name, index) => (index === 3 ? 'model-3.safetensors' : inShards(name, index)));
    await expect(loadLlm(folder)).rejects.toThrow('the shard model-3.safetensors is not there');
    const again = new Map([['model.norm.weight', parameters.get('model.norm.weight') as Tensor]]);
    await writeSafetensors(join(folder, 'model-3.safetensors'), again);
    await expect(loadLlm(folder)).rejects.toThrow('"model.norm.weight" stands in another file already');
  });

  test('an index without a map', async () => {
    await shard(inShards);
    await writeFile(join(folder, 'model.safetensors.index.json'), '{"weight_map": ["a"]}');
    await expect(loadLlm(folder)).rejects.toThrow('weight_map must map parameters to file names');
  });

  test('a name that is no model', async () => {
    await expect(loadLlm(join(root, 'nothing'))).rejects.toThrow(
      `${root}/nothing: no folder, no .safetensors`,
    );
    await expect(loadLlm('../no such model')).rejects.toThrow('no name on the hub');
    await expect(loadLlm(join(folder, 'config.json'))).rejects.toThrow('only .safetensors and .gguf files');
  });
});

test.each<[string, object | undefined]>([
  ['a/b', { name: 'a/b', revision: 'main' }],
  ['a/b@v1.0', { name: 'a/b', revision: 'v1.0' }],
  ['a/b@refs/pr/1:x/y.Q4_K.gguf', { name: 'a/b', revision: 'refs/pr/1', file: 'x/y.Q4_K.gguf' }],
  ['a/b:model.safetensors', { name: 'a/b', revision: 'main', file: 'model.safetensors' }],
  ['a/b:pytorch_model.bin', undefined],
  ['a/b:../x.gguf', undefined],
  ['a/b@../x', undefined],
  ['a/b@/x', undefined],
  ['a--b/c', undefined],
  ['a/b/c', undefined],
  ['a', undefined],
])('the hub name %s', (text, expected) => {
  expect(parseHubName(text)).toEqual(expected);
});

test('checkKeys is silent when all fits', () => {
  expect(() => checkKeys(parameters, parameterShapes(config), 'model')).not.toThrow();
});

describe('the hub', () => {
  const name = 'some-lab/tiny';
  const sha = '0123456789abcdef0123456789abcdef01234567';
  let hub: HubServer;
  let cacheDir: string;

  async function serve(
    extra: { token?: string; files?: Iterable<[string, Uint8Array]> } = {},
  ): Promise<void> {
    const files = new Map<string, Uint8Array>(extra.files ?? []);
    for (const file of await readdir(folder)) files.set(file, await readFile(join(folder, file)));
    hub = await hubServer({ name, sha, files, ...(extra.token !== undefined && { token: extra.token }) });
    cacheDir = join(root, 'cache');
    vi.stubEnv('HF_TOKEN', '');
    vi.stubEnv('HF_HUB_OFFLINE', '');
    vi.spyOn(console, 'error').mockImplementation(() => undefined);
  }
  afterEach(() => hub?.close());

  test('gives a model once; its copy is used afterwards, with or without a hub', async () => {
    await serve({
      files: [
        ['pytorch_model.bin', new Uint8Array(10)],
        ['onnx/model.onnx', new Uint8Array(10)],
      ],
    });
    const output = vi.spyOn(process.stdout, 'write');
    const expected = await loadLlm(folder);
    const loaded = await loadLlm(name, { hubUrl: hub.url, cacheDir });
    expect(loaded.hash).toBe(expected.hash);
    expect(loaded.folder).toBe(join(cacheDir, 'models--some-lab--tiny', 'snapshots', sha));
    expect((await readdir(loaded.folder)).sort()).toEqual((await readdir(folder)).sort());
    expect(output).not.toHaveBeenCalled();

    const downloads = () => hub.requests.filter((request) => request.includes('/resolve/')).length;
    const before = downloads();
    expect(before).toBeGreaterThan(0);
    expect((await loadLlm(name, { hubUrl: hub.url, cacheDir })).hash).toBe(expected.hash);
    expect(downloads()).toBe(before);

    hub.fail(503);
    expect((await loadLlm(name, { hubUrl: hub.url, cacheDir })).hash).toBe(expected.hash);
    await hub.close();
    expect((await loadLlm(name, { hubUrl: hub.url, cacheDir })).hash).toBe(expected.hash);
    expect(vi.mocked(console.error).mock.calls.flat().join('\n')).toMatch(/Out of order.*taking the copy/);

    vi.stubEnv('HF_HUB_OFFLINE', '1');
    expect((await loadLlm(name, { cacheDir })).hash).toBe(expected.hash);
    await expect(loadLlm('some-lab/other', { cacheDir })).rejects.toThrow(
      'some-lab/other: HF_HUB_OFFLINE is set',
    );
  });

  test('is found by HF_ENDPOINT and asked with HF_TOKEN', async () => {
    await serve({ token: 'hf_secret' });
    vi.stubEnv('HF_ENDPOINT', `${hub.url}/`);
    await expect(loadLlm(name, { cacheDir })).rejects.toThrow(/some-lab\/tiny: .*not found.*HF_TOKEN/s);
    vi.stubEnv('HF_TOKEN', 'hf_secret');
    expect((await loadLlm(name, { cacheDir })).config).toEqual(config);
  });

  test('gives shards', async () => {
    await shard(inShards);
    await serve();
    expect((await loadLlm(name, { hubUrl: hub.url, cacheDir })).parameters.size).toBe(parameters.size);
  });

  test('may break off in the middle; what came so far is no copy, and need not come again', async () => {
    await serve();
    hub.fail(500, '/model.safetensors');
    await expect(loadLlm(name, { hubUrl: hub.url, cacheDir })).rejects.toThrow(
      /cannot be fetched.*HF_ENDPOINT/s,
    );
    vi.stubEnv('HF_HUB_OFFLINE', '1');
    await expect(loadLlm(name, { cacheDir })).rejects.toThrow('holds no copy');
    vi.stubEnv('HF_HUB_OFFLINE', '');
    hub.fail(500, '/config.json');
    expect((await loadLlm(name, { hubUrl: hub.url, cacheDir })).parameters.size).toBe(parameters.size);
  });

  test('goes on where the connection broke, and asks for no byte twice', async () => {
    await serve();
    const { length } = await readFile(join(folder, 'model.safetensors'));
    hub.cut(Math.ceil(length / 3));
    const seen: number[] = [];
    const { hash } = await loadLlm(name, {
      hubUrl: hub.url,
      cacheDir,
      onProgress: ({ file, receivedBytes, bytes }) => {
        if (file !== 'model.safetensors') return;
        expect(bytes).toBe(length);
        seen.push(receivedBytes);
      },
    });
    expect(hash).toBe((await loadLlm(folder)).hash);
    expect(seen).toEqual(seen.toSorted((a, b) => a - b));
    expect(seen.at(-1)).toBe(length);
    const ranges = hub.requests.filter((request) => request.endsWith('- model.safetensors'));
    expect(ranges).toEqual([
      `bytes=${Math.ceil(length / 3)}- model.safetensors`,
      `bytes=${2 * Math.ceil(length / 3)}- model.safetensors`,
    ]);
  });

  test('is given up after several breaks without a byte; the next try goes on', async () => {
    await serve();
    hub.fail(503, '/tokenizer.json');
    await expect(loadLlm(name, { hubUrl: hub.url, cacheDir })).rejects.toThrow('the server answers 503');
    const asked = hub.requests.filter((request) => request.endsWith('/tokenizer.json'));
    expect(asked).toHaveLength(4);
    hub.fail(503, '/nothing');
    const blobs = join(cacheDir, 'models--some-lab--tiny', 'blobs');
    const whole = await readFile(join(folder, 'tokenizer.json'));
    const git = createHash('sha1').update(`blob ${whole.length}\0`).update(whole).digest('hex');
    await writeFile(join(blobs, `${git}.partial`), whole.subarray(0, 100));
    expect((await loadLlm(name, { hubUrl: hub.url, cacheDir })).parameters.size).toBe(parameters.size);
    expect(hub.requests).toContain('bytes=100- tokenizer.json');
    expect((await readdir(blobs)).filter((file) => file.endsWith('.partial'))).toEqual([]);
  });

  test('does not pass off other bytes as the file, nor keep them', async () => {
    await serve();
    const changed = await readFile(join(folder, 'model.safetensors'));
    changed[changed.length - 1] = (changed.at(-1) ?? 0) ^ 1;
    hub.corrupt('model.safetensors', changed);
    const loading = () => loadLlm(name, { hubUrl: hub.url, cacheDir });
    await expect(loading()).rejects.toThrow(
      /some-lab\/tiny: model\.safetensors: the bytes that came are not those of the file \([0-9a-f]{64} instead of/,
    );
    hub.corrupt('model.safetensors', new Uint8Array(changed.length + 1));
    await expect(loading()).rejects.toThrow(/more bytes come than the \d+ that were announced/);
    const blobs = await readdir(join(cacheDir, 'models--some-lab--tiny', 'blobs'));
    expect(blobs.filter((file) => /^[0-9a-f]{64}$/.test(file))).toEqual([]);
    vi.stubEnv('HF_HUB_OFFLINE', '1');
    await expect(loading()).rejects.toThrow('holds no copy');
  });

  test('gives a revision, and one file of several', async () => {
    const gguf = await readFile('test/golden/gguf/pieces.gguf');
    await serve({ files: [['tiny.Q8_0.gguf', gguf]] });
    const options = { hubUrl: hub.url, cacheDir };
    expect((await loadLlm(`${name}@v1`, options)).parameters.size).toBe(parameters.size);
    await expect(loadLlm(`${name}@v2`, options)).rejects.toThrow(/not found.*HF_TOKEN/s);
    const before = hub.requests.length;
    expect((await loadLlm(`${name}@${sha}`, options)).parameters.size).toBe(parameters.size);
    expect(hub.requests).toHaveLength(before);

    // A vocabulary without a model: it came, it was read, and its own name is in the error.
    await expect(loadLlm(`${name}:tiny.Q8_0.gguf`, options)).rejects.toThrow(
      /tiny\.Q8_0\.gguf: "llama\.embedding_length" is missing/,
    );
    await expect(loadLlm(`${name}:other.gguf`, options)).rejects.toThrow('there is no other.gguf in it');
    const loaded = await loadLlm(`${name}:model.safetensors`, options);
    expect(loaded.parameters.size).toBe(parameters.size);
    vi.stubEnv('HF_HUB_OFFLINE', '1');
    expect((await loadLlm(`${name}:model.safetensors`, options)).hash).toBe(loaded.hash);
    await expect(loadLlm(`${name}:other.gguf`, options)).rejects.toThrow('holds no copy');
  });

  test('names the files to choose from where there are no plain weights', async () => {
    await rm(join(folder, 'model.safetensors'));
    await serve({ files: [['a.gguf', new Uint8Array(1)]] });
    await expect(loadLlm(name, { hubUrl: hub.url, cacheDir })).rejects.toThrow(
      'some-lab/tiny: it holds no model.safetensors; choose one of its files: some-lab/tiny:a.gguf',
    );
  });

  test('cannot be reached and there is no copy', async () => {
    await serve();
    await hub.close();
    await expect(loadLlm(name, { hubUrl: hub.url, cacheDir })).rejects.toThrow(
      /fetch failed: .*ECONNREFUSED/,
    );
  });
});
