import { type FileHandle, open } from 'node:fs/promises';
import { z } from 'zod';
import { writeFileAtomic } from '../config/writeFile.ts';
import { float32FromBfloat16, float32FromHalf } from '../tensor/halfPrecision.ts';
import { bytesPerElement, type DType, formatShape, type Tensor, tensor } from '../tensor/tensor.ts';
import { ModelError } from './modelError.ts';
import { parseStrictJsonBytes } from './strictJson.ts';

/*
 * The safetensors format (https://github.com/huggingface/safetensors): 8 bytes with the header's length, a JSON
 * header `{name: {dtype, shape, data_offsets}}`, then the tensors' bytes, little-endian like every machine that
 * Node runs on. A file is untrusted until every number in its header has been checked.
 */

/** How a file is read. */
export interface Reading {
  /** Told every byte of the file, once and in order, as it comes (for a hash of the file, say). */
  readonly onBytes?: (bytes: Uint8Array) => void;
  /** The most bytes that are read at once; a single read of the system ends at 2 GiB. */
  readonly pieceBytes?: number;
  /** Widen float16 and bfloat16 to float32, in the memory that they are read into. */
  readonly widen?: boolean;
}

/** Some 80,000 tensors; the format allows ten times as much, which would take seconds. */
const maximumHeaderBytes = 2 ** 23;
const metadataKey = '__metadata__';

const formatNames: Readonly<Record<DType, string>> = {
  float32: 'F32',
  float16: 'F16',
  bfloat16: 'BF16',
  float64: 'F64',
  int32: 'I32',
  int64: 'I64',
  bool: 'BOOL',
};
const dtypeOf = new Map(Object.entries(formatNames).map(([dtype, name]) => [name, dtype as DType]));

const entrySchema = z.strictObject({
  dtype: z.string(),
  shape: z.array(z.int().nonnegative()).max(32),
  data_offsets: z.tuple([z.int().nonnegative(), z.int().nonnegative()]),
});
const metadataSchema = z.record(z.string(), z.string());

/** Where a tensor's bytes lie; `begin` and `end` count from the end of the header. */
interface Entry {
  readonly name: string;
  readonly dtype: DType;
  readonly shape: readonly number[];
  readonly begin: number;
  readonly end: number;
}

interface Header {
  readonly entries: readonly Entry[];
  readonly metadata: ReadonlyMap<string, string>;
}

/**
 * Reads all tensors of a file.
 * @throws ModelError naming the file and what is wrong with it; a truncated file names the first tensor cut off.
 */
export async function readSafetensors(path: string): Promise<Map<string, Tensor>> {
  const tensors = new Map<string, Tensor>();
  for await (const [name, value] of streamSafetensors(path)) tensors.set(name, value);
  return tensors;
}

/** Reads the free text of a file (its `__metadata__`) and leaves the tensors where they are. */
export async function readSafetensorsMetadata(path: string): Promise<ReadonlyMap<string, string>> {
  const file = await open(path, 'r');
  try {
    return (await readHeader(file, path)).header.metadata;
  } finally {
    await file.close();
  }
}

/**
 * Reads one tensor at a time, so that a file of any size stands in memory once at most.
 * The whole header is checked before the first tensor comes.
 * @throws like `readSafetensors`.
 */
export async function* streamSafetensors(
  path: string,
  reading: Reading = {},
): AsyncGenerator<readonly [string, Tensor]> {
  const file = await open(path, 'r');
  try {
    const { header, dataStart } = await readHeader(file, path, reading);
    // The entries are in the order of their bytes and leave no gap, so all of the file passes by in order.
    for (const entry of header.entries) {
      const widen = reading.widen && (entry.dtype === 'float16' || entry.dtype === 'bfloat16');
      const length = entry.end - entry.begin;
      const memory = new Uint8Array(widen ? 2 * length : length);
      const bytes = memory.subarray(memory.length - length);
      await readExactly(file, dataStart + entry.begin, bytes, path, reading);
      const read = tensorFromBytes(entry, bytes, path);
      yield [entry.name, widen ? widened(read, memory.buffer) : read];
    }
  } finally {
    await file.close();
  }
}

/**
 * The bytes of a file in pieces, one after the other; the tensors' are views of their own memory. Equal content
 * gives equal bytes: names are sorted in the header; the data of wide elements comes first, so that every tensor is
 * aligned to its element size.
 * @throws RangeError for a tensor named `__metadata__`, which the format keeps for itself.
 */
export function safetensorsPieces(
  tensors: ReadonlyMap<string, Tensor> | Readonly<Record<string, Tensor>>,
  metadata: ReadonlyMap<string, string> | Readonly<Record<string, string>> = {},
): Uint8Array[] {
  const named = sortedEntries(tensors);
  const header: string[] = [];
  const texts = sortedEntries(metadata).map(
    ([key, text]) => `${JSON.stringify(key)}:${JSON.stringify(text)}`,
  );
  if (texts.length > 0) header.push(`"${metadataKey}":{${texts.join(',')}}`);

  const begins = new Map<string, number>();
  let dataBytes = 0;
  const pieces: Uint8Array[] = [];
  for (const [name, value] of named.toSorted(([, a], [, b]) => widthOf(b) - widthOf(a))) {
    begins.set(name, dataBytes);
    const { buffer, byteOffset, byteLength } = value.data;
    pieces.push(new Uint8Array(buffer, byteOffset, byteLength));
    dataBytes += byteLength;
  }
  for (const [name, value] of named) {
    if (name === metadataKey)
      throw new RangeError(`no tensor of a safetensors file may be named ${metadataKey}`);
    const begin = begins.get(name) ?? 0;
    const entry = {
      dtype: formatNames[value.dtype],
      shape: value.shape,
      data_offsets: [begin, begin + value.data.byteLength],
    };
    header.push(`${JSON.stringify(name)}:${JSON.stringify(entry)}`);
  }

  const text = new TextEncoder().encode(`{${header.join(',')}}`);
  const headerBytes = Math.ceil(text.length / 8) * 8;
  const front = new Uint8Array(8 + headerBytes);
  new DataView(front.buffer).setBigUint64(0, BigInt(headerBytes), true);
  front.fill(0x20, 8).set(text, 8);
  return [front, ...pieces];
}

/** Writes a file that other readers of safetensors understand, whole or not at all. */
export async function writeSafetensors(
  path: string,
  tensors: ReadonlyMap<string, Tensor> | Readonly<Record<string, Tensor>>,
  metadata: ReadonlyMap<string, string> | Readonly<Record<string, string>> = {},
): Promise<void> {
  await writeFileAtomic(path, safetensorsPieces(tensors, metadata));
}

function widthOf(value: Tensor): number {
  return bytesPerElement[value.dtype];
}

function sortedEntries<T>(named: ReadonlyMap<string, T> | Readonly<Record<string, T>>): [string, T][] {
  const entries = named instanceof Map ? [...named] : Object.entries(named as Readonly<Record<string, T>>);
  return entries.sort(([a], [b]) => (a < b ? -1 : a > b ? 1 : 0));
}

async function readHeader(
  file: FileHandle,
  path: string,
  reading: Reading = {},
): Promise<{ header: Header; dataStart: number }> {
  const information = await file.stat();
  if (!information.isFile()) throw new ModelError(`${path}: this is not a file`);
  const fileBytes = information.size;
  const prefix = new Uint8Array(Math.min(8, fileBytes));
  await readExactly(file, 0, prefix, path, reading);
  const text = new Uint8Array(headerLength(prefix, fileBytes, path));
  await readExactly(file, 8, text, path, reading);
  return { header: parseHeader(text, fileBytes, path), dataStart: 8 + text.length };
}

async function readExactly(
  file: FileHandle,
  position: number,
  bytes: Uint8Array,
  path: string,
  { onBytes, pieceBytes = 2 ** 30 }: Reading,
): Promise<void> {
  for (let done = 0; done < bytes.length; ) {
    const piece = Math.min(bytes.length - done, pieceBytes);
    const { bytesRead } = await file.read(bytes, done, piece, position + done);
    if (bytesRead === 0) throw new ModelError(`${path}: the file became shorter while it was read`);
    onBytes?.(bytes.subarray(done, done + bytesRead));
    done += bytesRead;
  }
}

/** Checks the length of the header before anything of that length is allocated. */
function headerLength(prefix: Uint8Array, fileBytes: number, where: string): number {
  if (prefix.length < 8) {
    throw new ModelError(`${where}: a safetensors file has at least 8 bytes, this one has ${fileBytes}`);
  }
  const length = new DataView(prefix.buffer, prefix.byteOffset, 8).getBigUint64(0, true);
  const limit = Math.min(maximumHeaderBytes, fileBytes - 8);
  if (length > BigInt(limit)) {
    throw new ModelError(
      `${where}: its header would have ${length} bytes, but at most ${limit} are possible (file of ${fileBytes} ` +
        'bytes). The file is truncated or is not a safetensors file.',
    );
  }
  return Number(length);
}

function parseHeader(bytes: Uint8Array, fileBytes: number, where: string): Header {
  if (bytes[0] !== 0x7b) {
    throw new ModelError(`${where}: the header does not begin with "{"; this is not a safetensors file`);
  }
  const json = parseStrictJsonBytes(bytes, `${where}: safetensors header`, { depth: 4 });
  const entries: Entry[] = [];
  const metadata = new Map<string, string>();
  for (const [name, value] of Object.entries(json as Record<string, unknown>)) {
    if (name === metadataKey) {
      const texts = metadataSchema.safeParse(value);
      if (!texts.success) throw new ModelError(`${where}: ${metadataKey} must map strings to strings`);
      // Taken from the value itself, where a key like __proto__ is a key like any other.
      for (const [key, text] of Object.entries(value as Record<string, string>)) metadata.set(key, text);
    } else {
      entries.push(parseEntry(name, value, where));
    }
  }
  entries.sort((a, b) => a.begin - b.begin || a.end - b.end);
  checkLayout(entries, 8 + bytes.length, fileBytes, where);
  return { entries, metadata };
}

function parseEntry(name: string, value: unknown, where: string): Entry {
  const label = `${where}: tensor ${JSON.stringify(name)}`;
  const parsed = entrySchema.safeParse(value);
  if (!parsed.success) {
    const issue = parsed.error.issues[0];
    throw new ModelError(`${label}: ${issue?.path.join('.') || 'entry'}: ${issue?.message ?? 'malformed'}`);
  }
  const { shape, data_offsets } = parsed.data;
  const dtype = dtypeOf.get(parsed.data.dtype);
  if (dtype === undefined) {
    throw new ModelError(
      `${label}: dtype ${JSON.stringify(parsed.data.dtype)} is not known (${[...dtypeOf.keys()].join(', ')})`,
    );
  }
  let expected = BigInt(bytesPerElement[dtype]);
  for (const dimension of shape) expected *= BigInt(dimension);
  const [begin, end] = data_offsets;
  if (BigInt(end) - BigInt(begin) !== expected) {
    throw new ModelError(
      `${label}: ${parsed.data.dtype} ${formatShape(shape)} takes ${expected} bytes, but its data_offsets ` +
        `[${begin}, ${end}] hold ${BigInt(end) - BigInt(begin)}`,
    );
  }
  return { name, dtype, shape, begin, end };
}

/** The data must be covered exactly, from its first byte to its last, with no gap and no overlap. */
function checkLayout(entries: readonly Entry[], dataStart: number, fileBytes: number, where: string): void {
  const dataBytes = fileBytes - dataStart;
  let covered = 0;
  for (const { name, begin, end } of entries) {
    if (begin !== covered) {
      const what = begin > covered ? 'leaves a gap after' : 'overlaps';
      throw new ModelError(
        `${where}: tensor ${JSON.stringify(name)} begins at byte ${begin} of the data and ${what} what comes before it, ` +
          `which ends at ${covered}`,
      );
    }
    covered = end;
  }
  const cutOff = entries.find(({ end }) => end > dataBytes);
  if (cutOff !== undefined) {
    throw new ModelError(
      `${where}: the file is truncated at tensor ${JSON.stringify(cutOff.name)}: expected ${dataStart + covered} bytes, ` +
        `the file has ${fileBytes}. Copy or download it again.`,
    );
  }
  if (covered !== dataBytes) {
    throw new ModelError(
      `${where}: ${dataBytes - covered} bytes after the last tensor belong to none (expected ` +
        `${dataStart + covered} bytes, the file has ${fileBytes})`,
    );
  }
}

/** A tensor of a half type as float32, in memory that ends with its bits. */
function widened({ dtype, shape, data }: Tensor, memory: ArrayBuffer): Tensor {
  const widen = dtype === 'bfloat16' ? float32FromBfloat16 : float32FromHalf;
  return { dtype: 'float32', shape, data: widen(data as Uint16Array, new Float32Array(memory)) };
}

/** @param bytes where they begin is a multiple of every element's width, or of 2 for the half types */
function tensorFromBytes(entry: Entry, bytes: Uint8Array, where: string): Tensor {
  const { dtype, shape } = entry;
  const width = bytesPerElement[dtype];
  const { buffer, byteOffset } = bytes;
  const size = bytes.length / width;
  const build: { [D in DType]: () => Tensor } = {
    float32: () => tensor('float32', shape, new Float32Array(buffer, byteOffset, size)),
    float16: () => tensor('float16', shape, new Uint16Array(buffer, byteOffset, size)),
    bfloat16: () => tensor('bfloat16', shape, new Uint16Array(buffer, byteOffset, size)),
    float64: () => tensor('float64', shape, new Float64Array(buffer, byteOffset, size)),
    int32: () => tensor('int32', shape, new Int32Array(buffer, byteOffset, size)),
    int64: () => tensor('int64', shape, new BigInt64Array(buffer, byteOffset, size)),
    bool: () => tensor('bool', shape, new Uint8Array(buffer, byteOffset, size)),
  };
  if (dtype === 'bool' && bytes.some((value) => value > 1)) {
    throw new ModelError(`${where}: tensor ${JSON.stringify(entry.name)}: a BOOL byte is neither 0 nor 1`);
  }
  return build[dtype]();
}
