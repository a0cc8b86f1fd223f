import { mkdtemp, readdir, readFile, rm, truncate, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import fc from 'fast-check';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import {
  readSafetensors,
  readSafetensorsMetadata,
  safetensorsPieces,
  streamSafetensors,
  writeSafetensors,
} from '../../src/llm/safetensors.ts';
import { float32FromBfloat16, float32FromHalf } from '../../src/tensor/halfPrecision.ts';
import { float32, int32, type Tensor, tensor } from '../../src/tensor/tensor.ts';

const golden = fileURLToPath(new URL('../golden/mixed.safetensors', import.meta.url));

let folder: string;
beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), 'palkit-safetensors-'));
});
afterEach(() => rm(folder, { recursive: true }));

/** A file with a header as given; the data is `dataBytes` zeros. */
function fileWith(header: string | object, dataBytes: number, claimedLength?: bigint): Uint8Array {
  const text = new TextEncoder().encode(typeof header === 'string' ? header : JSON.stringify(header));
  const bytes = new Uint8Array(8 + text.length + dataBytes);
  new DataView(bytes.buffer).setBigUint64(0, claimedLength ?? BigInt(text.length), true);
  bytes.set(text, 8);
  return bytes;
}

const f32 = (shape: unknown, ...offsets: unknown[]) => ({ dtype: 'F32', shape, data_offsets: offsets });

describe('a file of the reference implementation', () => {
  test('gives every dtype with its values', async () => {
    const tensors = await readSafetensors(golden);
    const plain = Object.fromEntries([...tensors].map(([name, { dtype, shape }]) => [name, [dtype, shape]]));
    expect(plain).toEqual({
      'weights.f32': ['float32', [2, 3]],
      'weights.f16': ['float16', [6]],
      'weights.bf16': ['bfloat16', [4]],
      'weights.f64': ['float64', [2]],
      'counts.i32': ['int32', [2, 1]],
      'counts.i64': ['int64', [2]],
      'mask.bool': ['bool', [3]],
      scalar: ['float32', []],
      empty: ['float32', [0, 4]],
    });
    expect(tensors.get('weights.f32')?.data).toEqual(Float32Array.of(-1, -0.6, -0.2, 0.2, 0.6, 1));
    expect(tensors.get('weights.f16')?.data).toEqual(
      Uint16Array.of(0, 0x8000, 0x3c00, 0x7bff, 0x0001, 0x7c00),
    );
    expect(tensors.get('weights.bf16')?.data).toEqual(Uint16Array.of(0, 0x3f80, 0xc040, 0x7f80));
    expect(tensors.get('weights.f64')?.data).toEqual(Float64Array.of(Math.PI, -Math.E));
    expect(tensors.get('counts.i32')?.data).toEqual(Int32Array.of(-(2 ** 31), 2 ** 31 - 1));
    expect(tensors.get('counts.i64')?.data).toEqual(BigInt64Array.of(-(2n ** 63n), 2n ** 63n - 1n));
    expect(tensors.get('mask.bool')?.data).toEqual(Uint8Array.of(1, 0, 1));
    expect(tensors.get('scalar')?.data).toEqual(Float32Array.of(0.5));
    expect(await readSafetensorsMetadata(golden)).toEqual(
      new Map([
        ['format', 'np'],
        ['note', 'звук'],
      ]),
    );
  });

  test.each([1, 7, 64, 2 ** 30])(
    'reads the same in pieces of %i bytes, each told once and in order',
    async (pieceBytes) => {
      const pieces: Uint8Array[] = [];
      const tensors = new Map<string, Tensor>();
      const reading = { pieceBytes, onBytes: (piece: Uint8Array) => pieces.push(piece.slice()) };
      for await (const [name, value] of streamSafetensors(golden, reading)) tensors.set(name, value);
      expect(tensors).toEqual(await readSafetensors(golden));
      expect(Math.max(...pieces.map(({ length }) => length))).toBeLessThanOrEqual(pieceBytes);
      expect(Buffer.concat(pieces)).toEqual(await readFile(golden));
    },
  );
});

test('half types are widened where they are read, and nothing else is', async () => {
  const halves = Uint16Array.from({ length: 65_536 }, (_, bits) => bits);
  const path = join(folder, 'halves.safetensors');
  await writeSafetensors(path, {
    a: tensor('float16', [256, 256], halves),
    b: tensor('bfloat16', [65_536], halves),
    c: int32([2], [7, 8]),
    d: tensor('float16', [0], new Uint16Array(0)),
  });
  const read = new Map<string, Tensor>();
  for await (const [name, value] of streamSafetensors(path, { widen: true })) read.set(name, value);
  const patterns = (values: Float32Array) => new Uint32Array(values.buffer);
  const [a, b] = [read.get('a') as Tensor, read.get('b') as Tensor];
  expect([a.dtype, a.shape, b.dtype]).toEqual(['float32', [256, 256], 'float32']);
  expect(patterns(a.data as Float32Array)).toEqual(patterns(float32FromHalf(halves)));
  expect(patterns(b.data as Float32Array)).toEqual(patterns(float32FromBfloat16(halves)));
  expect(read.get('c')).toEqual(int32([2], [7, 8]));
  expect(read.get('d')?.data).toHaveLength(0);
});

describe('writing', () => {
  test('is deterministic, sorted, aligned and leaves no other file', async () => {
    const a: Record<string, Tensor> = {
      b: tensor('bool', [3], Uint8Array.of(1, 0, 1)),
      c: int32([2], [1, 2]),
      a: tensor('float64', [1], Float64Array.of(0.1)),
    };
    const reversed = new Map(Object.entries(a).reverse());
    const path = join(folder, 'a.safetensors');
    await writeSafetensors(path, a, { z: '1', y: '2' });
    const bytes = new Uint8Array(Buffer.concat(safetensorsPieces(reversed, { y: '2', z: '1' })));
    expect(new Uint8Array(await readFile(path))).toEqual(bytes);
    expect(await readdir(folder)).toEqual(['a.safetensors']);

    const headerBytes = Number(new DataView(bytes.buffer).getBigUint64(0, true));
    expect(headerBytes % 8).toBe(0);
    const header = JSON.parse(new TextDecoder().decode(bytes.subarray(8, 8 + headerBytes)));
    expect(Object.keys(header)).toEqual(['__metadata__', 'a', 'b', 'c']);
    expect(header.c.data_offsets).toEqual([8, 16]);
  });

  test('brings back any names and values', async () => {
    const anyTensor: fc.Arbitrary<Tensor> = fc
      .array(fc.integer({ min: 0, max: 4 }), { maxLength: 3 })
      .chain((shape) => {
        const size = shape.reduce((a, b) => a * b, 1);
        const bits = { minLength: size, maxLength: size };
        return fc.oneof(
          fc.float32Array(bits).map((data): Tensor => tensor('float32', shape, data)),
          fc.uint16Array(bits).map((data): Tensor => tensor('bfloat16', shape, data)),
          fc.bigInt64Array(bits).map((data): Tensor => tensor('int64', shape, data)),
          fc.uint8Array({ ...bits, max: 1 }).map((data): Tensor => tensor('bool', shape, data)),
        );
      });
    const anyName = fc.oneof(
      fc.string({ unit: 'grapheme' }),
      fc.constantFrom('__proto__', 'constructor', '7', '"', '\\'),
    );
    const path = join(folder, 'any.safetensors');
    await fc.assert(
      fc.asyncProperty(
        fc.array(fc.tuple(anyName, anyTensor), { maxLength: 6 }),
        anyName,
        async (pairs, text) => {
          const tensors = new Map(pairs);
          const metadata = new Map([['__proto__', text]]);
          await writeFile(path, safetensorsPieces(tensors, metadata));
          expect(new Map([...(await readSafetensors(path))].sort())).toEqual(new Map([...tensors].sort()));
          expect(await readSafetensorsMetadata(path)).toEqual(metadata);
        },
      ),
    );
  });

  test('refuses the name that the format keeps for itself', () => {
    expect(() => safetensorsPieces({ __metadata__: float32([1], [0]) })).toThrow(/__metadata__/);
  });
});

describe('hostile files', () => {
  test.each<[string, Uint8Array, RegExp]>([
    ['shorter than its length field', Uint8Array.of(1, 2, 3), /at least 8 bytes, this one has 3/],
    [
      'a header longer than the file',
      fileWith('{}', 0, 3n),
      /header would have 3 bytes, but at most 2 are possible/,
    ],
    ['a header of 2^63 bytes', fileWith('{}', 0, 2n ** 63n), /header would have 9223372036854775808 bytes/],
    ['another format', fileWith('PK..', 0), /does not begin with "\{"/],
    ['no header', fileWith('', 0), /does not begin with "\{"/],
    ['bad JSON', fileWith('{"a":', 0), /not JSON/],
    [
      'bytes that are not UTF-8',
      fileWith('{"a":1}', 0).map((byte) => (byte === 0x61 ? 0xff : byte)),
      /not UTF-8/,
    ],
    ['deep nesting', fileWith(`{"a":${'['.repeat(50_000)}`, 0), /nested deeper than 4/],
    [
      'a name that stands twice',
      fileWith('{"a":{"dtype":"F32","shape":[],"data_offsets":[0,4]},"\\u0061":{}}', 4),
      /the key "a" stands twice/,
    ],
    [
      'a field that stands twice',
      fileWith('{"a":{"dtype":"F32","dtype":"F16","shape":[],"data_offsets":[0,4]}}', 4),
      /"dtype" stands twice/,
    ],
    ['an entry that is no object', fileWith({ a: 7 }, 0), /tensor "a".*object/],
    ['an unknown field', fileWith({ a: { ...f32([], 0, 4), extra: 1 } }, 4), /tensor "a".*extra/],
    [
      'an unknown dtype',
      fileWith({ a: { ...f32([], 0, 4), dtype: 'F4' } }, 4),
      /tensor "a": dtype "F4" is not known/,
    ],
    ['a negative dimension', fileWith({ a: f32([-1], 0, 4) }, 4), /tensor "a": shape\.0/],
    ['a fractional dimension', fileWith({ a: f32([1.5], 0, 6) }, 6), /tensor "a": shape\.0/],
    [
      'a dimension beyond 2^53',
      fileWith('{"a":{"dtype":"F32","shape":[1e300],"data_offsets":[0,4]}}', 4),
      /shape/,
    ],
    [
      'a product that overflows',
      fileWith({ a: f32([2 ** 32, 2 ** 32], 0, 0) }, 0),
      /takes 73786976294838206464 bytes/,
    ],
    ['offsets of the wrong length', fileWith({ a: f32([2], 0, 4) }, 4), /takes 8 bytes, .* hold 4/],
    ['reversed offsets', fileWith({ a: f32([1], 4, 0) }, 4), /hold -4/],
    ['three offsets', fileWith({ a: f32([1], 0, 4, 8) }, 4), /data_offsets/],
    ['a gap', fileWith({ a: f32([1], 0, 4), b: f32([1], 8, 12) }, 12), /"b" begins at byte 8 .* gap/],
    ['a late beginning', fileWith({ a: f32([1], 4, 8) }, 8), /"a" begins at byte 4 .* gap/],
    ['an overlap', fileWith({ a: f32([2], 0, 8), b: f32([1], 4, 8) }, 8), /"b" begins at byte 4 .* overlaps/],
    ['bytes that belong to no tensor', fileWith({ a: f32([1], 0, 4) }, 9), /5 bytes after the last tensor/],
    ['metadata that is no text', fileWith({ __metadata__: { a: 1 } }, 0), /__metadata__ must map strings/],
  ])('%s', async (_name, bytes, message) => {
    const path = join(folder, 'hostile.safetensors');
    await writeFile(path, bytes);
    await expect(readSafetensors(path)).rejects.toThrow(message);
    await expect(readSafetensors(path)).rejects.toThrow(path);
    await expect(readSafetensorsMetadata(path)).rejects.toThrow(message);
  });

  test('a boolean that is neither 0 nor 1', async () => {
    const bytes = fileWith({ a: { dtype: 'BOOL', shape: [1], data_offsets: [0, 1] } }, 1);
    bytes[bytes.length - 1] = 2;
    const path = join(folder, 'bool.safetensors');
    await writeFile(path, bytes);
    await expect(readSafetensors(path)).rejects.toThrow(`${path}: tensor "a": a BOOL byte`);
  });

  test('a truncated file names the file, the tensor and the bytes', async () => {
    const path = join(folder, 'cut.safetensors');
    await writeSafetensors(path, {
      first: float32([10], new Float32Array(10)),
      second: float32([10], new Float32Array(10)),
    });
    const whole = (await readFile(path)).length;
    await truncate(path, whole - 7);
    await expect(readSafetensors(path)).rejects.toThrow(
      `${path}: the file is truncated at tensor "second": expected ${whole} bytes, the file has ${whole - 7}`,
    );
  });

  test('any one changed byte is an error of ours or harmless', async () => {
    const bytes = await readFile(golden);
    const path = join(folder, 'changed.safetensors');
    await fc.assert(
      fc.asyncProperty(fc.nat(bytes.length - 1), fc.nat(255), async (at, value) => {
        const changed = Uint8Array.from(bytes);
        changed[at] = value;
        await writeFile(path, changed);
        const message = await readSafetensors(path).then(
          () => `${path}: fine`,
          (error: Error) => error.message,
        );
        expect(message.startsWith(`${path}: `)).toBe(true);
      }),
      { numRuns: 600 },
    );
  });
});
