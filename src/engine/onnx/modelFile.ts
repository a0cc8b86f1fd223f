/** Programs as ONNX files that share one file of weights. */
import { join } from 'node:path';
import { writeFlushed } from '../../config/writeFile.ts';
import type { Program } from '../../tensor/program.ts';
import type { Placement } from './initializers.ts';
import { lowerProgram } from './lower.ts';

/** What ONNX recommends, so that the file can be mapped into memory. */
const alignment = 4096;

/** Constants from here on lie in the file of weights; smaller ones would be padding for the most part. */
const externalFrom = 4 * alignment;

/**
 * Writes each program as `<name>.onnx`; their large constants, if there are any, lie in `<weights>`, each once.
 * @param folder where they go; the caller sees to it that it appears whole
 * @throws EngineError as `lowerProgram`
 */
export async function writeOnnxFiles(
  folder: string,
  programs: ReadonlyMap<string, Program>,
  weights: string,
): Promise<void> {
  const placed = new Map<ArrayBufferLike, Map<string, number>>();
  const pieces: Uint8Array[] = [];
  let end = 0;
  const place: Placement = (bytes) => {
    const own = placed.get(bytes.buffer) ?? new Map<string, number>();
    placed.set(bytes.buffer, own);
    const span = `${bytes.byteOffset}+${bytes.byteLength}`;
    const known = own.get(span);
    if (known !== undefined) return { location: weights, offset: known };
    const offset = Math.ceil(end / alignment) * alignment;
    pieces.push(new Uint8Array(offset - end), bytes);
    end = offset + bytes.byteLength;
    own.set(span, offset);
    return { location: weights, offset };
  };
  for (const [name, program] of programs) {
    const { model } = lowerProgram(program, 'cpu', { externalFrom, place });
    await writeFlushed(join(folder, `${name}.onnx`), model);
  }
  if (end > 0) await writeFlushed(join(folder, weights), pieces);
}
