/**
 * The GGUF format of llama.cpp, versions 2 and 3, little-endian (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md):
 * metadata, the names, types and places of the tensors, then their bytes. A file is untrusted until every number in
 * its header has been checked. `@huggingface/gguf` is made for files on the web: it reads past the end of a broken
 * file, adds offsets in 32 bits, and lets tensors overlap and keys repeat.
 */
import { readSync } from 'node:fs';
import { type FileHandle, open } from 'node:fs/promises';
import { formatShape } from '../tensor/tensor.ts';
import { ModelError } from './modelError.ts';

/** A number above 2^53 stays a bigint. */
export type GgufValue = number | bigint | boolean | string | readonly GgufValue[];

/** How tensors of a type are stored: blocks of `elements` numbers in `bytes` bytes each. */
export interface GgufType {
  readonly name: GgufTypeName;
  readonly elements: number;
  readonly bytes: number;
}

export interface GgufTensor {
  readonly name: string;
  readonly type: GgufType;
  /** As everywhere in palkit, rows first: [outputs, inputs] of a matrix (the file has it the other way round). */
  readonly shape: readonly number[];
  /** Where its bytes begin, from the beginning of the file, and how many they are. */
  readonly begin: number;
  readonly bytes: number;
}

export interface GgufHeader {
  readonly metadata: ReadonlyMap<string, GgufValue>;
  /** In the order of their bytes. */
  readonly tensors: readonly GgufTensor[];
}

const typeTable = {
  F32: [0, 1, 4],
  F16: [1, 1, 2],
  BF16: [30, 1, 2],
  Q4_0: [2, 32, 18],
  Q4_1: [3, 32, 20],
  Q5_0: [6, 32, 22],
  Q5_1: [7, 32, 24],
  Q8_0: [8, 32, 34],
  Q2_K: [10, 256, 84],
  Q3_K: [11, 256, 110],
  Q4_K: [12, 256, 144],
  Q5_K: [13, 256, 176],
  Q6_K: [14, 256, 210],
} as const;
export type GgufTypeName = keyof typeof typeTable;

/** The types that can be read, by their number in a file. */
const types: ReadonlyMap<number, GgufType> = new Map(
  Object.entries(typeTable).map(([name, [number, elements, bytes]]) => [
    number,
    { name: name as GgufTypeName, elements, bytes },
  ]),
);

/** What no honest header needs more of; together they bound the memory and time that a header can take. */
const maximumHeaderBytes = 100_000_000;
const maximumValues = 2 ** 22;
const maximumNesting = 4;
const maximumDimensions = 4;
const maximumKeyBytes = 65_535;

/**
 * Reads metadata and the places of tensors, and leaves the tensors where they are. All is checked: a tensor that
 * stands in the answer lies inside the file, aligned, and overlaps no other.
 * @throws ModelError naming the file and what is wrong with it
 */
export async function readGgufHeader(path: string): Promise<GgufHeader> {
  const file = await open(path, 'r');
  try {
    const information = await file.stat();
    if (!information.isFile()) throw new ModelError(`${path}: this is not a file`);
    return parseHeader(headerReader(file, information.size, path), information.size, path);
  } finally {
    await file.close();
  }
}

/** Reads numbers and texts one after the other; none reaches beyond the file or the largest header. */
interface HeaderReader {
  /** Bytes read so far. */
  position(): number;
  /** The most bytes that can still come. */
  left(): number;
  /** The next bytes, as a view that the next call may overwrite. `what` names them in errors. */
  take(bytes: number, what: string): DataView;
}

function headerReader(file: FileHandle, fileBytes: number, where: string): HeaderReader {
  const end = Math.min(fileBytes, maximumHeaderBytes);
  let window = Buffer.alloc(0);
  let at = 0;
  let position = 0;
  return {
    position: () => position,
    left: () => end - position,
    take(bytes, what) {
      if (bytes > end - position) {
        const limit = end < fileBytes ? `a header may take ${end}` : `the file has ${fileBytes}`;
        throw new ModelError(
          `${where}: ${what} would end at byte ${position + bytes}, but ${limit}. The file is truncated or broken.`,
        );
      }
      if (window.length - at < bytes) {
        window = Buffer.alloc(Math.min(Math.max(bytes, 2 ** 20), end - position));
        at = 0;
        for (let done = 0; done < window.length; ) {
          const read = readSync(file.fd, window, done, window.length - done, position + done);
          if (read === 0) throw new ModelError(`${where}: the file became shorter while it was read`);
          done += read;
        }
      }
      const view = new DataView(window.buffer, window.byteOffset + at, bytes);
      at += bytes;
      position += bytes;
      return view;
    },
  };
}

function parseHeader(reader: HeaderReader, fileBytes: number, where: string): GgufHeader {
  if (fileBytes < 24 || reader.take(4, 'the magic number').getUint32(0) !== 0x47475546) {
    throw new ModelError(`${where}: it does not begin with "GGUF"; this is not a GGUF file`);
  }
  const version = reader.take(4, 'the version').getUint32(0, true);
  if (version !== 2 && version !== 3) {
    const why = (version & 0xffff) === 0 ? 'a big-endian file' : `version ${version}`;
    throw new ModelError(`${where}: ${why} of GGUF; versions 2 and 3, little-endian, can be read`);
  }
  const budget = { values: maximumValues };
  // The least that one takes: an empty name, a type and a number; an empty name, no dimension, a type and an offset.
  const tensorCount = takeCount(reader, 24, budget, 'tensors', where);
  const keyCount = takeCount(reader, 13, budget, 'metadata keys', where);

  const metadata = new Map<string, GgufValue>();
  for (let index = 0; index < keyCount; index++) {
    const key = takeText(reader, `metadata key ${index}`, where, maximumKeyBytes);
    if (metadata.has(key)) throw new ModelError(`${where}: the key ${JSON.stringify(key)} stands twice`);
    const label = JSON.stringify(key);
    const kind = reader.take(4, label).getUint32(0, true);
    metadata.set(key, takeValue(reader, kind, label, where, budget, 0));
  }
  const alignment = alignmentOf(metadata, where);
  const placed = new Map<string, GgufTensor>();
  for (let index = 0; index < tensorCount; index++) {
    const tensor = takeTensor(reader, index, alignment, fileBytes, where);
    if (placed.has(tensor.name)) {
      throw new ModelError(`${where}: the tensor ${JSON.stringify(tensor.name)} stands twice`);
    }
    placed.set(tensor.name, tensor);
  }
  const dataStart = align(reader.position(), alignment);
  const tensors = [...placed.values()]
    .map((tensor) => ({ ...tensor, begin: dataStart + tensor.begin }))
    .sort((a, b) => a.begin - b.begin);
  checkLayout(tensors, dataStart, alignment, fileBytes, where);
  return { metadata, tensors };
}

const align = (position: number, alignment: number) => Math.ceil(position / alignment) * alignment;

/** A count of things, of which each takes at least `leastBytes` of what is left of the file. */
function takeCount(
  reader: HeaderReader,
  leastBytes: number,
  budget: { values: number },
  what: string,
  where: string,
): number {
  const count = reader.take(8, `the number of ${what}`).getBigUint64(0, true);
  const limit = Math.min(Math.floor(reader.left() / leastBytes), budget.values);
  if (count > BigInt(limit)) {
    throw new ModelError(`${where}: ${count} ${what}, but at most ${limit} are possible here`);
  }
  budget.values -= Number(count);
  return Number(count);
}

const utf8 = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true });

function takeText(reader: HeaderReader, what: string, where: string, limit = maximumHeaderBytes): string {
  const length = reader.take(8, what).getBigUint64(0, true);
  if (length > BigInt(Math.min(limit, reader.left()))) {
    throw new ModelError(
      `${where}: ${what} is a text of ${length} bytes, but at most ${Math.min(limit, reader.left())} are possible here`,
    );
  }
  const bytes = reader.take(Number(length), what);
  try {
    return utf8.decode(bytes);
  } catch {
    throw new ModelError(`${where}: ${what} is not UTF-8 text`);
  }
}

/** Values of fixed width by their number in a file: how many bytes, and how to read them. */
const scalars: ReadonlyMap<
  number,
  readonly [bytes: number, read: (view: DataView) => GgufValue | undefined]
> = new Map([
  [0, [1, (view) => view.getUint8(0)]],
  [1, [1, (view) => view.getInt8(0)]],
  [2, [2, (view) => view.getUint16(0, true)]],
  [3, [2, (view) => view.getInt16(0, true)]],
  [4, [4, (view) => view.getUint32(0, true)]],
  [5, [4, (view) => view.getInt32(0, true)]],
  [6, [4, (view) => view.getFloat32(0, true)]],
  [7, [1, (view) => [false, true][view.getUint8(0)]]],
  [10, [8, (view) => numberWhereExact(view.getBigUint64(0, true))]],
  [11, [8, (view) => numberWhereExact(view.getBigInt64(0, true))]],
  [12, [8, (view) => view.getFloat64(0, true)]],
]);
const textKind = 8;
const arrayKind = 9;

function numberWhereExact(value: bigint): number | bigint {
  const number = Number(value);
  return Number.isSafeInteger(number) ? number : value;
}

function takeValue(
  reader: HeaderReader,
  kind: number,
  what: string,
  where: string,
  budget: { values: number },
  nesting: number,
): GgufValue {
  const scalar = scalars.get(kind);
  if (scalar !== undefined) {
    const value = scalar[1](reader.take(scalar[0], what));
    if (value === undefined) throw new ModelError(`${where}: ${what} is a bool that is neither 0 nor 1`);
    return value;
  }
  if (kind === textKind) return takeText(reader, what, where);
  if (kind !== arrayKind) throw new ModelError(`${where}: ${what} has the unknown type ${kind}`);
  if (nesting === maximumNesting) {
    throw new ModelError(`${where}: ${what} is nested deeper than ${maximumNesting} levels`);
  }
  const elementKind = reader.take(4, what).getUint32(0, true);
  const leastBytes = scalars.get(elementKind)?.[0] ?? (elementKind === textKind ? 8 : 12);
  const count = takeCount(reader, leastBytes, budget, `elements of ${what}`, where);
  const elements: GgufValue[] = [];
  for (let index = 0; index < count; index++) {
    elements.push(takeValue(reader, elementKind, what, where, budget, nesting + 1));
  }
  return elements;
}

function alignmentOf(metadata: ReadonlyMap<string, GgufValue>, where: string): number {
  const alignment = metadata.get('general.alignment') ?? 32;
  if (typeof alignment !== 'number' || ![8, 16, 32, 64, 128, 256, 512, 1024, 4096].includes(alignment)) {
    throw new ModelError(`${where}: general.alignment is ${alignment}, not a small power of two`);
  }
  return alignment;
}

/** The next tensor; `begin` counts from where the tensors' bytes begin, which is not known yet. */
function takeTensor(
  reader: HeaderReader,
  index: number,
  alignment: number,
  fileBytes: number,
  where: string,
): GgufTensor {
  const name = takeText(reader, `the name of tensor ${index}`, where, maximumKeyBytes);
  const label = `tensor ${JSON.stringify(name)}`;
  const dimensions = reader.take(4, label).getUint32(0, true);
  if (dimensions > maximumDimensions) {
    throw new ModelError(
      `${where}: ${label} has ${dimensions} dimensions; there are at most ${maximumDimensions}`,
    );
  }
  const sizes: bigint[] = [];
  for (let at = 0; at < dimensions; at++) sizes.unshift(reader.take(8, label).getBigUint64(0, true));
  const kind = reader.take(4, label).getUint32(0, true);
  const stored = types.get(kind);
  if (stored === undefined) {
    const known = Object.keys(typeTable).join(', ');
    throw new ModelError(`${where}: ${label} is stored as type ${kind}; what can be read is ${known}`);
  }
  const offset = reader.take(8, label).getBigUint64(0, true);
  const rowElements = sizes.at(-1) ?? 1n;
  if (rowElements % BigInt(stored.elements) !== 0n) {
    throw new ModelError(
      `${where}: ${label} has rows of ${rowElements} elements, but ${stored.name} is stored in blocks of ${stored.elements}`,
    );
  }
  const elements = sizes.reduce((product, size) => product * size, 1n);
  const bytes = (elements / BigInt(stored.elements)) * BigInt(stored.bytes);
  if (elements === 0n || bytes > BigInt(fileBytes) || offset > BigInt(fileBytes)) {
    throw new ModelError(
      `${where}: ${label}, ${stored.name} [${sizes.join(', ')}], would take ${bytes} bytes from byte ${offset} of the ` +
        `data, but the file has ${fileBytes} bytes in all. The file is truncated or broken.`,
    );
  }
  if (offset % BigInt(alignment) !== 0n) {
    throw new ModelError(`${where}: ${label} begins at byte ${offset}, not at a multiple of ${alignment}`);
  }
  return { name, type: stored, shape: sizes.map(Number), begin: Number(offset), bytes: Number(bytes) };
}

/** The tensors follow each other, each from the next multiple of the alignment, to the end of the file. */
function checkLayout(
  tensors: readonly GgufTensor[],
  dataStart: number,
  alignment: number,
  fileBytes: number,
  where: string,
): void {
  let end = dataStart;
  for (const { name, shape, type, begin, bytes } of tensors) {
    const label = `tensor ${JSON.stringify(name)}`;
    if (begin !== align(end, alignment)) {
      const what = begin < end ? 'overlaps' : 'leaves a gap after';
      throw new ModelError(
        `${where}: ${label} begins at byte ${begin} of the file and ${what} what comes before it, which ends at ${end}`,
      );
    }
    end = begin + bytes;
    if (end > fileBytes) {
      throw new ModelError(
        `${where}: the file is truncated at ${label}, ${type.name} ${formatShape(shape)}: it ends at byte ${end}, ` +
          `the file has ${fileBytes}. Copy or download it again.`,
      );
    }
  }
  if (fileBytes > align(end, alignment)) {
    throw new ModelError(
      `${where}: ${fileBytes - end} bytes after the last tensor belong to none (the tensors end at byte ${end})`,
    );
  }
}
