/** Embeddings of clips, computed once: a cache keyed by the audio, the encoder and this code's version. */
import { createHash, randomUUID } from 'node:crypto';
import { mkdir, readFile, rename, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { float32, type Tensor } from '../tensor/tensor.ts';
import type { Encoder } from './encoderManifest.ts';
import { readWaveform, type Waveform } from './waveform.ts';

type Embeddings = Tensor & { dtype: 'float32' };

/** Changes whenever the same audio would give other features. */
const version = 1;
const magic = 0x704b4643;

/**
 * A clip's embeddings, from the cache or computed. An entry that is damaged is computed anew.
 * @param notice hears of damaged entries; by default Node prints a warning
 */
export async function encodeCached(
  encoder: Encoder,
  waveform: Waveform,
  cacheFolder: string,
  notice: (text: string) => void = (text) => process.emitWarning(text),
): Promise<Embeddings> {
  const { samples, sampleRate } = waveform;
  const key = createHash('sha256')
    .update(`${version} ${sampleRate} ${encoder.fingerprint} `)
    .update(new Uint8Array(samples.buffer, samples.byteOffset, samples.byteLength))
    .digest('hex');
  const path = join(cacheFolder, key.slice(0, 2), `${key}.bin`);
  const entry = await readFile(path).catch(() => undefined);
  const known = entry && parseEntry(entry, encoder.width);
  if (known !== undefined) return known;
  if (entry !== undefined) notice(`${path}: this cached entry is damaged and is computed anew`);
  const made = await encoder.encode(waveform);
  await mkdir(join(cacheFolder, key.slice(0, 2)), { recursive: true });
  await writeEntry(path, entryOf(made));
  return made;
}

/** Renamed into place but not flushed: a torn entry is seen by its hash and computed anew. */
async function writeEntry(path: string, bytes: Uint8Array): Promise<void> {
  // The same clip may be encoded twice at once.
  const aside = `${path}.tmp-${process.pid}-${randomUUID()}`;
  try {
    await writeFile(aside, bytes);
    await rename(aside, path);
  } catch (error) {
    await rm(aside, { force: true });
    throw error;
  }
}

function entryOf({ shape, data }: Embeddings): Uint8Array {
  const body = new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
  const header = Buffer.alloc(44);
  header.writeUInt32LE(magic, 0);
  header.writeUInt32LE(shape[0] ?? 0, 4);
  header.writeUInt32LE(shape[1] ?? 0, 8);
  createHash('sha256').update(body).digest().copy(header, 12);
  return Buffer.concat([header, body]);
}

function parseEntry(bytes: Buffer, width: number): Embeddings | undefined {
  if (bytes.length < 44 || bytes.readUInt32LE(0) !== magic) return undefined;
  const [frames, found] = [bytes.readUInt32LE(4), bytes.readUInt32LE(8)];
  const body = bytes.subarray(44);
  if (found !== width || body.length !== 4 * frames * width) return undefined;
  if (!createHash('sha256').update(body).digest().equals(bytes.subarray(12, 44))) return undefined;
  return float32([frames, width], new Float32Array(new Uint8Array(body).buffer));
}

export interface EncodeAllOptions {
  readonly cacheFolder: string;
  readonly onProgress?: (done: number) => void;
  /** Stop at a clip that cannot be read or encoded, or leave it out and say so. */
  readonly onBadSample: 'error' | 'skip';
}

export interface EncodedSamples {
  readonly features: Map<string, Embeddings>;
  readonly skipped: { readonly id: string; readonly reason: string }[];
}

/**
 * Encodes many clips.
 * @throws AudioError or EncoderError naming the sample, unless bad samples are skipped
 */
export async function encodeAll(
  encoder: Encoder,
  items: readonly { readonly id: string; readonly path: string }[],
  { cacheFolder, onProgress, onBadSample }: EncodeAllOptions,
): Promise<EncodedSamples> {
  const features = new Map<string, Embeddings>();
  const skipped: EncodedSamples['skipped'] = [];
  for (const [index, { id, path }] of items.entries()) {
    try {
      features.set(id, await encodeCached(encoder, await readWaveform(path), cacheFolder));
    } catch (error) {
      skipped.push({ id, reason: reasonToSkip(error, id, onBadSample) });
    }
    onProgress?.(index + 1);
  }
  return { features, skipped };
}

/**
 * Why a clip is left out, from the error of reading or encoding it.
 * @throws the error itself where it is not about the clip; naming the sample where bad samples are not skipped
 */
export function reasonToSkip(
  error: unknown,
  id: string,
  onBadSample: EncodeAllOptions['onBadSample'],
): string {
  if (!(error instanceof Error) || !['AudioError', 'EncoderError'].includes(error.name)) throw error;
  if (onBadSample === 'error') {
    error.message =
      `sample "${id}": ${error.message}\n` +
      'Repair or remove it, or leave such samples out with --on-bad-sample skip.';
    throw error;
  }
  return error.message;
}
