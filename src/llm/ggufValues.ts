/** Reading the values of a GGUF header one after the other, each checked before it takes memory. */
import { readSync } from 'node:fs';
import type { FileHandle } from 'node:fs/promises';
import { ModelError } from './modelError.ts';

/** A number above 2^53 stays a bigint. */
export type GgufValue = number | bigint | boolean | string | readonly GgufValue[];

/** What no honest header needs more of; together they bound the memory and time that a header can take. */
const maximumHeaderBytes = 100_000_000;
const maximumValues = 2 ** 21;
const maximumNesting = 4;

/** Reads a header from its beginning; nothing reaches beyond the file or the largest header. */
export interface HeaderReader {
  /** How error messages name the file. */
  readonly where: string;
  /** Bytes read so far. */
  position(): number;
  /** The next bytes, as a view that the next call may overwrite. `what` names them in errors. */
  take(bytes: number, what: string): DataView;
  /** A count of things, of which each takes at least `leastBytes` of what is left of the file. */
  count(leastBytes: number, what: string, limit?: number): number;
  /** A text and its length in front of it. */
  text(what: string, limit?: number): string;
}

const utf8 = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true });

export function headerReader(file: FileHandle, fileBytes: number, where: string): HeaderReader {
  const end = Math.min(fileBytes, maximumHeaderBytes);
  let window = Buffer.alloc(0);
  let at = 0;
  let position = 0;
  let valuesLeft = maximumValues;

  /** Moves the window so that it begins here and holds so many bytes. */
  function fill(bytes: number): void {
    window = Buffer.alloc(Math.min(Math.max(bytes, 2 ** 20), end - position));
    at = 0;
    for (let done = 0; done < window.length; ) {
      const read = readSync(file.fd, window, done, window.length - done, position + done);
      if (read === 0) throw new ModelError(`${where}: the file became shorter while it was read`);
      done += read;
    }
  }

  function take(bytes: number, what: string): DataView {
    if (bytes > end - position) {
      const limit = end < fileBytes ? `a header may take ${end}` : `the file has ${fileBytes}`;
      throw new ModelError(
        `${where}: ${what} would end at byte ${position + bytes}, but ${limit}. The file is truncated or broken.`,
      );
    }
    if (window.length - at < bytes) fill(bytes);
    const view = new DataView(window.buffer, window.byteOffset + at, bytes);
    at += bytes;
    position += bytes;
    return view;
  }

  function count(leastBytes: number, what: string, limit = valuesLeft): number {
    const found = take(8, `the number of ${what}`).getBigUint64(0, true);
    const most = Math.min(Math.floor((end - position) / leastBytes), limit, valuesLeft);
    if (found > BigInt(most)) {
      throw new ModelError(`${where}: ${found} ${what}, but at most ${most} are possible here`);
    }
    valuesLeft -= Number(found);
    return Number(found);
  }

  function text(what: string, limit = maximumHeaderBytes): string {
    const length = take(8, what).getBigUint64(0, true);
    const most = Math.min(limit, end - position);
    if (length > BigInt(most)) {
      throw new ModelError(
        `${where}: ${what} is a text of ${length} bytes, but at most ${most} are possible here`,
      );
    }
    const bytes = take(Number(length), what);
    try {
      return utf8.decode(bytes);
    } catch {
      throw new ModelError(`${where}: ${what} is not UTF-8 text`);
    }
  }

  return { where, position: () => position, take, count, text };
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

/**
 * Reads a value of any type.
 * @param kind the number that a file has for the type
 * @param what names the value in errors
 */
export function readValue(reader: HeaderReader, kind: number, what: string, nesting = 0): GgufValue {
  const { where } = reader;
  const scalar = scalars.get(kind);
  if (scalar !== undefined) {
    const value = scalar[1](reader.take(scalar[0], what));
    if (value === undefined) throw new ModelError(`${where}: ${what} is a bool that is neither 0 nor 1`);
    return value;
  }
  if (kind === textKind) return reader.text(what);
  if (kind !== arrayKind) throw new ModelError(`${where}: ${what} has the unknown type ${kind}`);
  if (nesting === maximumNesting) {
    throw new ModelError(`${where}: ${what} is nested deeper than ${maximumNesting} levels`);
  }
  const elementKind = reader.take(4, what).getUint32(0, true);
  const leastBytes = scalars.get(elementKind)?.[0] ?? (elementKind === textKind ? 8 : 12);
  const count = reader.count(leastBytes, `elements of ${what}`);
  const elements: GgufValue[] = [];
  for (let index = 0; index < count; index++) {
    elements.push(readValue(reader, elementKind, what, nesting + 1));
  }
  return elements;
}
