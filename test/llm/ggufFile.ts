/** Writing GGUF files for tests, right and wrong ones. */

export type Metadata = Readonly<Record<string, unknown>> | readonly (readonly [string, unknown])[];

export interface StoredTensor {
  readonly name: string;
  /** As a file has them: the innermost first. */
  readonly dimensions: readonly (number | bigint)[];
  readonly type: number;
  readonly data: Uint8Array;
  /** Where it claims to begin; behind the tensor before it when left out. */
  readonly offset?: number | bigint;
}

export interface Changes {
  readonly version?: number;
  readonly tensorCount?: bigint;
  readonly keyCount?: bigint;
  readonly alignment?: number;
  /** Bytes after the last tensor. */
  readonly tail?: number;
}

/** A value of a type that its JavaScript value does not show. */
export interface Typed {
  readonly type: number;
  readonly bytes: Uint8Array;
}

export const u32 = (value: number) => new Uint8Array(new Uint32Array([value]).buffer);
export const u64 = (value: number | bigint) => new Uint8Array(new BigUint64Array([BigInt(value)]).buffer);
export const text = (value: string) => {
  const bytes = new TextEncoder().encode(value);
  return joined([u64(bytes.length), bytes]);
};

export function joined(pieces: readonly Uint8Array[]): Uint8Array<ArrayBuffer> {
  const all = new Uint8Array(pieces.reduce((total, piece) => total + piece.length, 0));
  let at = 0;
  for (const piece of pieces) {
    all.set(piece, at);
    at += piece.length;
  }
  return all;
}

/** Texts, booleans, whole numbers (as uint32), other numbers (as float32) and lists of these. */
function typed(value: unknown): Typed {
  if (typeof value === 'string') return { type: 8, bytes: text(value) };
  if (typeof value === 'boolean') return { type: 7, bytes: new Uint8Array([Number(value)]) };
  if (typeof value === 'number' && Number.isInteger(value) && value >= 0)
    return { type: 4, bytes: u32(value) };
  if (typeof value === 'number') return { type: 6, bytes: new Uint8Array(new Float32Array([value]).buffer) };
  if (!Array.isArray(value)) return value as Typed;
  const anyFraction = value.some(
    (element) => typeof element === 'number' && !(Number.isInteger(element) && element >= 0),
  );
  const elements = value.map((element) =>
    anyFraction
      ? { type: 6, bytes: new Uint8Array(new Float32Array([element as number]).buffer) }
      : typed(element),
  );
  const bytes = joined([
    u32(elements[0]?.type ?? 4),
    u64(elements.length),
    ...elements.map((element) => element.bytes),
  ]);
  return { type: 9, bytes };
}

const padding = (length: number, alignment: number) =>
  new Uint8Array((alignment - (length % alignment)) % alignment);

export function ggufBytes(
  metadata: Metadata,
  tensors: readonly StoredTensor[] = [],
  { version = 3, tensorCount, keyCount, alignment = 32, tail = 0 }: Changes = {},
): Uint8Array<ArrayBuffer> {
  const entries = Array.isArray(metadata) ? metadata : Object.entries(metadata);
  const keys = entries.map(([key, value]: readonly [string, unknown]) => {
    const { type, bytes } = typed(value);
    return joined([text(key), u32(type), bytes]);
  });
  let next = 0;
  const infos = tensors.map(({ name, dimensions, type, data, offset = next }) => {
    next = Math.ceil((Number(offset) + data.length) / alignment) * alignment;
    return joined([text(name), u32(dimensions.length), ...dimensions.map(u64), u32(type), u64(offset)]);
  });
  const header = joined([
    new TextEncoder().encode('GGUF'),
    u32(version),
    u64(tensorCount ?? tensors.length),
    u64(keyCount ?? entries.length),
    ...keys,
    ...infos,
  ]);
  const data = tensors.flatMap((tensor) => [tensor.data, padding(tensor.data.length, alignment)]);
  return joined([header, padding(header.length, alignment), ...data, new Uint8Array(tail)]);
}

/** A tensor of float32. */
export function stored(name: string, shape: readonly number[], values: Float32Array): StoredTensor {
  return {
    name,
    dimensions: shape.toReversed(),
    type: 0,
    data: new Uint8Array(values.buffer, values.byteOffset, values.byteLength),
  };
}
