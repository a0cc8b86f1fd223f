/** Reading the tensors of a GGUF file as float32, whatever they are stored as. */
import { type FileHandle, open } from 'node:fs/promises';
import { float32FromHalf } from '../tensor/halfPrecision.ts';
import type { GgufTensor, GgufType, GgufTypeName } from './gguf.ts';
import { ModelError } from './modelError.ts';

/** Stored bytes that are read and widened at once; beside the tensors themselves this is all that is held. */
const pieceBytes = 2 ** 22;

/**
 * Reads one tensor at a time, widened to float32.
 * @param tensors what `readGgufHeader` found in the file, or some of it
 * @throws ModelError naming the file when it has changed since
 */
export async function* streamGgufTensors(
  path: string,
  tensors: readonly GgufTensor[],
): AsyncGenerator<readonly [GgufTensor, Float32Array<ArrayBuffer>]> {
  const file = await open(path, 'r');
  try {
    for (const tensor of tensors) yield [tensor, await readTensor(file, tensor, path)];
  } finally {
    await file.close();
  }
}

async function readTensor(
  file: FileHandle,
  { type, begin, bytes }: GgufTensor,
  path: string,
): Promise<Float32Array<ArrayBuffer>> {
  const values = new Float32Array((bytes / type.bytes) * type.elements);
  const block = type.name === 'F32' ? undefined : blocks[type.name];
  const piece = Math.floor(pieceBytes / type.bytes) * type.bytes;
  const stored = block === undefined ? new Uint8Array(values.buffer) : new Uint8Array(Math.min(piece, bytes));
  for (let done = 0; done < bytes; done += piece) {
    const length = Math.min(piece, bytes - done);
    const from = block === undefined ? done : 0;
    const target = stored.subarray(from, from + length);
    await readExactly(file, target, begin + done, path);
    if (block === undefined) continue;
    dequantize(type, block, target, values.subarray((done / type.bytes) * type.elements));
  }
  return values;
}

async function readExactly(file: FileHandle, target: Uint8Array, position: number, path: string) {
  for (let done = 0; done < target.length; ) {
    const { bytesRead } = await file.read(target, done, target.length - done, position + done);
    if (bytesRead === 0) throw new ModelError(`${path}: the file became shorter while it was read`);
    done += bytesRead;
  }
}

/** Fills `values` from the block of stored bytes that begins at `at`, the values from `to`. */
type Block = (bytes: Uint8Array, at: number, values: Float32Array, to: number) => void;

/**
 * Widens whole blocks, as ggml does (ggml-quants.c): every number is the float32 nearest to the exact one.
 * @param values takes the elements from its beginning
 */
function dequantize(type: GgufType, block: Block, bytes: Uint8Array, values: Float32Array): void {
  for (let at = 0, to = 0; at < bytes.length; at += type.bytes, to += type.elements) {
    block(bytes, at, values, to);
  }
}

let halves: Float32Array | undefined;

/** The float16 at a byte. */
function half(bytes: Uint8Array, at: number): number {
  halves ??= float32FromHalf(Uint16Array.from({ length: 65_536 }, (_, bits) => bits));
  return halves[u8(bytes, at) | (u8(bytes, at + 1) << 8)] as number;
}

const u8 = (bytes: Uint8Array, at: number) => bytes[at] as number;
const i8 = (bytes: Uint8Array, at: number) => ((bytes[at] as number) << 24) >> 24;

/** A block of 32: one scale, and a number of 4 bits for each element, the first half in the low bits. */
function nibbles(offset: number, minimum: boolean, fifth: boolean): Block {
  const headBytes = (minimum ? 4 : 2) + (fifth ? 4 : 0);
  return (bytes, at, values, to) => {
    const scale = half(bytes, at);
    // Minus zero leaves every number as it is, minus zero too.
    const least = minimum ? half(bytes, at + 2) : -0;
    const high = at + headBytes - 4;
    const fifths = fifth
      ? u8(bytes, high) |
        (u8(bytes, high + 1) << 8) |
        (u8(bytes, high + 2) << 16) |
        (u8(bytes, high + 3) << 24)
      : 0;
    for (let index = 0; index < 16; index++) {
      const pair = u8(bytes, at + headBytes + index);
      const low = (pair & 15) | (((fifths >>> index) & 1) << 4);
      const top = (pair >> 4) | (((fifths >>> (index + 16)) & 1) << 4);
      values[to + index] = scale * (low - offset) + least;
      values[to + index + 16] = scale * (top - offset) + least;
    }
  };
}

/** The 6-bit scale and minimum of one of 8 groups, packed in 12 bytes. */
function scaleAndMinimum(bytes: Uint8Array, at: number, group: number): [scale: number, minimum: number] {
  const own = u8(bytes, at + group);
  const next = u8(bytes, at + group + 4);
  if (group < 4) return [own & 63, next & 63];
  return [(next & 15) | ((u8(bytes, at + group - 4) >> 6) << 4), (next >> 4) | ((own >> 6) << 4)];
}

/** Blocks of 256 in 8 groups with a scale and a minimum each; 4 bits an element, and a fifth with Q5_K. */
function scaledGroups(fifth: boolean): Block {
  return (bytes, at, values, to) => {
    const scale = half(bytes, at);
    const least = half(bytes, at + 2);
    const low = at + 16 + (fifth ? 32 : 0);
    for (let group = 0; group < 8; group++) {
      const [factor, minimum] = scaleAndMinimum(bytes, at + 4, group);
      const shift = 4 * (group % 2);
      const from = low + 32 * (group >> 1);
      for (let index = 0; index < 32; index++) {
        const top = fifth ? ((u8(bytes, at + 16 + index) >> group) & 1) << 4 : 0;
        const value = ((u8(bytes, from + index) >> shift) & 15) | top;
        values[to + 32 * group + index] = scale * factor * value - least * minimum;
      }
    }
  };
}

/** A block of 256 in 16 groups, each with a signed scale; 6 bits an element. */
const sixBits: Block = (bytes, at, values, to) => {
  const scale = half(bytes, at + 208);
  for (let index = 0; index < 256; index++) {
    const [part, quarter, column] = [index >> 7, (index >> 5) & 3, index & 31];
    const low = u8(bytes, at + 64 * part + 32 * (quarter & 1) + column) >> (4 * (quarter >> 1));
    const high = u8(bytes, at + 128 + 32 * part + column) >> (2 * quarter);
    const value = ((low & 15) | ((high & 3) << 4)) - 32;
    values[to + index] = scale * i8(bytes, at + 192 + (index >> 4)) * value;
  }
};

/** A block of 256 in 16 groups with 4-bit scales and minima; 2 bits an element. */
const twoBits: Block = (bytes, at, values, to) => {
  const scale = half(bytes, at + 80);
  const least = half(bytes, at + 82);
  for (let index = 0; index < 256; index++) {
    const packed = u8(bytes, at + (index >> 4));
    const value = (u8(bytes, at + 16 + 32 * (index >> 7) + (index & 31)) >> (2 * ((index >> 5) & 3))) & 3;
    values[to + index] = scale * (packed & 15) * value - least * (packed >> 4);
  }
};

/** A block of 256 in 16 groups with signed 6-bit scales; 3 bits an element. */
const threeBits: Block = (bytes, at, values, to) => {
  const scale = half(bytes, at + 108);
  for (let index = 0; index < 256; index++) {
    const group = index >> 4;
    const low = u8(bytes, at + 96 + (group & 7)) >> (group < 8 ? 0 : 4);
    const high = u8(bytes, at + 104 + (group & 3)) >> (2 * (group >> 2));
    const factor = ((low & 15) | ((high & 3) << 4)) - 32;
    const bits = (u8(bytes, at + 32 + 32 * (index >> 7) + (index & 31)) >> (2 * ((index >> 5) & 3))) & 3;
    const third = (u8(bytes, at + (index & 31)) >> (index >> 5)) & 1;
    values[to + index] = scale * factor * (bits - (third === 0 ? 4 : 0));
  }
};

const eightBits: Block = (bytes, at, values, to) => {
  const scale = half(bytes, at);
  for (let index = 0; index < 32; index++) values[to + index] = scale * i8(bytes, at + 2 + index);
};

const float16: Block = (bytes, at, values, to) => {
  values[to] = half(bytes, at);
};

const patterns = new Uint32Array(1);
const pattern = new Float32Array(patterns.buffer);
const bfloat16: Block = (bytes, at, values, to) => {
  patterns[0] = (u8(bytes, at) << 16) | (u8(bytes, at + 1) << 24);
  values[to] = pattern[0] as number;
};

const blocks: Readonly<Record<Exclude<GgufTypeName, 'F32'>, Block>> = {
  F16: float16,
  BF16: bfloat16,
  Q4_0: nibbles(8, false, false),
  Q4_1: nibbles(0, true, false),
  Q5_0: nibbles(16, false, true),
  Q5_1: nibbles(0, true, true),
  Q8_0: eightBits,
  Q2_K: twoBits,
  Q3_K: threeBits,
  Q4_K: scaledGroups(false),
  Q5_K: scaledGroups(true),
  Q6_K: sixBits,
};
