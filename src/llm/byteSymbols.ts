import { ModelError } from './modelError.ts';

const utf8 = new TextEncoder();

/** The printable character that stands for each byte in a byte-level vocabulary: "Ġ" for the space. */
export function byteSymbols(): string[] {
  let next = 256;
  return Array.from({ length: 256 }, (_, byte) => {
    const printable = (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174;
    return String.fromCodePoint(printable ? byte : next++);
  });
}

/** Bytes that no token stands for: some vocabularies hold only those that their training met. */
export function missingBytes(idOf: ReadonlyMap<string, number>): Set<number> {
  return new Set(byteSymbols().flatMap((symbol, byte) => (idOf.has(symbol) ? [] : [byte])));
}

/** Whether a text has such bytes. */
export function needsAny(missing: ReadonlySet<number>, text: string): boolean {
  return missing.size > 0 && utf8.encode(text).some((byte) => missing.has(byte));
}

/** @throws ModelError for a text that has such bytes, naming the first of its characters; the library would drop it */
export function refuseMissing(text: string, missing: ReadonlySet<number>, where: string): void {
  if (!needsAny(missing, text)) return;
  for (const character of text) {
    if (!needsAny(missing, character)) continue;
    const codePoint = character.codePointAt(0)?.toString(16).toUpperCase().padStart(4, '0');
    throw new ModelError(`${where}: the character U+${codePoint} has no token in this tokenizer`);
  }
}
