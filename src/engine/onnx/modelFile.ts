/** Programs as ONNX files that share one file of weights. */
import { open } from 'node:fs/promises';
import { join } from 'node:path';
import { writeFlushed } from '../../config/writeFile.ts';
import type { Program } from '../../tensor/program.ts';
import type { Placement } from './initializers.ts';
import { lowerProgram } from './lower.ts';

/** What ONNX recommends, so that the file can be mapped into memory. */
const alignment = 4096;

/** Constants from here on lie in the file of weights. */
const externalFrom = 1024;

/**
 * Writes each program as `<name>.onnx`; their large constants lie in `<weights>`, each once.
 * @param folder where they go; the caller sees to it that it appears whole
 * @throws EngineError as `lowerProgram`
 */
export async function writeOnnxFiles(
  folder: string,
  programs: ReadonlyMap<string, Program>,
  weights: string,
): Promise<void> {
  const placed = new Map<ArrayBufferLike, Map<number, number>>();
  const pieces: { readonly bytes: Uint8Array; readonly offset: number }[] = [];
  let end = 0;
  const place: Placement = (bytes) => {
    const own = placed.get(bytes.buffer) ?? new Map<number, number>();
    placed.set(bytes.buffer, own);
    const known = own.get(bytes.byteOffset);
    if (known !== undefined) return { location: weights, offset: known };
    const offset = Math.ceil(end / alignment) * alignment;
    end = offset + bytes.byteLength;
    own.set(bytes.byteOffset, offset);
    pieces.push({ bytes, offset });
    return { location: weights, offset };
  };
  for (const [name, program] of programs) {
    await writeFlushed(
      join(folder, `${name}.onnx`),
      lowerProgram(program, 'cpu', { externalFrom, place }).model,
    );
  }
  const file = await open(join(folder, weights), 'w');
  try {
    for (const { bytes, offset } of pieces) await file.write(bytes, 0, bytes.byteLength, offset);
    await file.sync();
  } finally {
    await file.close();
  }
}
