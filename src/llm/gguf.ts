/**
 * The GGUF format of llama.cpp, versions 2 and 3, little-endian (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md):
 * metadata, the names, types and places of the tensors, then their bytes. A file is untrusted until every number in
 * its header has been checked. `@huggingface/gguf` is made for files on the web: it reads past the end of a broken
 * file, adds offsets in 32 bits, and lets tensors overlap and keys repeat.
 */
import { open } from 'node:fs/promises';
import { formatShape } from '../tensor/tensor.ts';
import { type GgufValue, type HeaderReader, headerReader, readValue } from './ggufValues.ts';
import { ModelError } from './modelError.ts';

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

const maximumDimensions = 4;
const maximumKeyBytes = 65_535;
/** Far above any model's tensors, and any file's keys: millions would take seconds. */
const maximumNames = 2 ** 16;

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
    return parseHeader(headerReader(file, information.size, path), information.size);
  } finally {
    await file.close();
  }
}

function parseHeader(reader: HeaderReader, fileBytes: number): GgufHeader {
  const { where } = reader;
  if (fileBytes < 24 || reader.take(4, 'the magic number').getUint32(0) !== 0x47475546) {
    throw new ModelError(`${where}: it does not begin with "GGUF"; this is not a GGUF file`);
  }
  const version = reader.take(4, 'the version').getUint32(0, true);
  if (version !== 2 && version !== 3) {
    const why = (version & 0xffff) === 0 ? 'a big-endian file' : `version ${version}`;
    throw new ModelError(`${where}: ${why} of GGUF; versions 2 and 3, little-endian, can be read`);
  }
  // The least that one takes: an empty name, a type and a number; an empty name, no dimension, a type and an offset.
  const tensorCount = reader.count(24, 'tensors', maximumNames);
  const keyCount = reader.count(13, 'metadata keys', maximumNames);

  const metadata = new Map<string, GgufValue>();
  for (let index = 0; index < keyCount; index++) {
    const key = reader.text(`metadata key ${index}`, maximumKeyBytes);
    if (metadata.has(key)) throw new ModelError(`${where}: the key ${JSON.stringify(key)} stands twice`);
    const label = JSON.stringify(key);
    const kind = reader.take(4, label).getUint32(0, true);
    metadata.set(key, readValue(reader, kind, label));
  }
  const alignment = alignmentOf(metadata, where);
  const placed = new Map<string, GgufTensor>();
  for (let index = 0; index < tensorCount; index++) {
    const tensor = readTensorInfo(reader, index, alignment, fileBytes);
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

function alignmentOf(metadata: ReadonlyMap<string, GgufValue>, where: string): number {
  const alignment = metadata.get('general.alignment') ?? 32;
  if (typeof alignment !== 'number' || ![8, 16, 32, 64, 128, 256, 512, 1024, 4096].includes(alignment)) {
    throw new ModelError(`${where}: general.alignment is ${alignment}, not a small power of two`);
  }
  return alignment;
}

/** The next tensor; `begin` counts from where the tensors' bytes begin, which is not known yet. */
function readTensorInfo(
  reader: HeaderReader,
  index: number,
  alignment: number,
  fileBytes: number,
): GgufTensor {
  const { where } = reader;
  const name = reader.text(`the name of tensor ${index}`, maximumKeyBytes);
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
