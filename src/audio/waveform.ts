/** Waveforms and the WAV files they are read from. */
import { readFile, stat } from 'node:fs/promises';
import wavefile from 'wavefile';

/** Mono audio, -1 to 1. */
export interface Waveform {
  readonly samples: Float32Array;
  readonly sampleRate: number;
}

export class AudioError extends Error {
  override readonly name = 'AudioError';
}

/** What is read at most; a header may claim anything. */
export const limits = { seconds: 600, bytes: 512 * 1024 * 1024, channels: 32, sampleRate: 384_000 } as const;

/**
 * Reads a WAV file: PCM of 8 to 32 bits, float, extensible. Channels are averaged.
 * @throws AudioError naming the file and what is wrong with it
 */
export async function readWaveform(path: string): Promise<Waveform> {
  let bytes: Uint8Array;
  try {
    const { size } = await stat(path);
    if (size > limits.bytes) throw new AudioError(`${path}: ${size} bytes, at most ${limits.bytes} are read`);
    bytes = await readFile(path);
  } catch (error) {
    if (error instanceof AudioError) throw error;
    const code = (error as NodeJS.ErrnoException).code;
    throw new AudioError(
      `${path}: ${code === 'ENOENT' ? 'there is no such file' : `cannot be read (${code ?? error})`}`,
    );
  }
  return decodeWav(bytes, path);
}

/**
 * Decodes WAV bytes.
 * @param where names the source in errors
 */
export function decodeWav(bytes: Uint8Array, where: string): Waveform {
  const format = checkWav(bytes, where);
  const { channels, sampleRate } = format;
  const { interleaved, offset, fullScale } = format.plainPcm16
    ? readPcm16(bytes, format)
    : decodeByLibrary(bytes, where);
  const length = Math.floor(interleaved.length / channels);
  const samples = new Float32Array(length);
  for (let at = 0; at < length; at++) {
    let total = 0;
    for (let channel = 0; channel < channels; channel++)
      total += interleaved[at * channels + channel] as number;
    const sample = (total / channels - offset) / fullScale;
    if (!Number.isFinite(sample)) throw new AudioError(`${where}: sample ${at} is not a finite number`);
    samples[at] = sample;
  }
  if (length === 0) throw new AudioError(`${where}: holds no samples`);
  return { samples, sampleRate };
}

interface Interleaved {
  readonly interleaved: ArrayLike<number>;
  /** Middle and full scale of the numbers. */
  readonly offset: number;
  readonly fullScale: number;
}

/** The common case, ten times as fast as the library. */
function readPcm16(bytes: Uint8Array, { dataStart, dataBytes }: WavFormat): Interleaved {
  const view = new DataView(bytes.buffer, bytes.byteOffset + dataStart, dataBytes);
  const interleaved = new Int16Array(dataBytes >> 1);
  for (let at = 0; at < interleaved.length; at++) interleaved[at] = view.getInt16(2 * at, true);
  return { interleaved, offset: 0, fullScale: 32_768 };
}

function decodeByLibrary(bytes: Uint8Array, where: string): Interleaved {
  try {
    const wav = new wavefile.WaveFile(bytes);
    // Compressed formats become 16-bit PCM.
    if (wav.bitDepth === '4') wav.fromIMAADPCM();
    else if (wav.bitDepth === '8a') wav.fromALaw();
    else if (wav.bitDepth === '8m') wav.fromMuLaw();
    const interleaved = wav.getSamples(true, Float64Array as never) as unknown as Float64Array;
    const [offset, fullScale] = pcmScale(wav.bitDepth);
    return { interleaved, offset, fullScale };
  } catch (error) {
    throw new AudioError(
      `${where}: not a WAV file that can be decoded (${error instanceof Error ? error.message : error})`,
    );
  }
}

/** Middle and full scale of a sample format; 8-bit samples are unsigned. */
function pcmScale(bitDepth: string): [offset: number, fullScale: number] {
  if (bitDepth === '32f' || bitDepth === '64') return [0, 1];
  if (bitDepth === '8') return [128, 128];
  const bits = Number(bitDepth);
  if (!Number.isInteger(bits)) throw new Error(`samples of format "${bitDepth}"`);
  return [0, 2 ** (bits - 1)];
}

interface WavFormat {
  readonly channels: number;
  readonly sampleRate: number;
  readonly plainPcm16: boolean;
  readonly dataStart: number;
  readonly dataBytes: number;
}

/** Walks the chunks before anything is allocated: what the header claims must be in the file. */
function checkWav(bytes: Uint8Array, where: string): WavFormat {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const tag = (at: number) => String.fromCharCode(...bytes.subarray(at, at + 4));
  if (bytes.length < 12 || !['RIFF', 'RIFX', 'RF64'].includes(tag(0)) || tag(8) !== 'WAVE') {
    throw new AudioError(`${where}: not a WAV file; convert it: ffmpeg -i INPUT -ac 1 -ar 16000 OUTPUT.wav`);
  }
  if (tag(0) !== 'RIFF')
    throw new AudioError(`${where}: ${tag(0)} files are not read; convert it to plain WAV`);
  let format: { channels: number; sampleRate: number; blockBytes: number; plainPcm16: boolean } | undefined;
  for (let at = 12; at + 8 <= bytes.length; ) {
    const size = view.getUint32(at + 4, true);
    const body = at + 8;
    if (tag(at) === 'fmt ') {
      if (size < 16 || body + 16 > bytes.length)
        throw new AudioError(`${where}: the format chunk is cut off`);
      format = {
        channels: view.getUint16(body + 2, true),
        sampleRate: view.getUint32(body + 4, true),
        blockBytes: view.getUint16(body + 12, true),
        plainPcm16: view.getUint16(body, true) === 1 && view.getUint16(body + 14, true) === 16,
      };
    }
    if (tag(at) === 'data') {
      if (format === undefined) throw new AudioError(`${where}: the data stands before the format chunk`);
      const { channels, sampleRate, blockBytes } = format;
      if (
        channels < 1 ||
        channels > limits.channels ||
        sampleRate < 1 ||
        sampleRate > limits.sampleRate ||
        blockBytes < 1
      ) {
        throw new AudioError(
          `${where}: claims ${channels} channels, ${sampleRate} Hz, ${blockBytes} bytes a frame`,
        );
      }
      const present = bytes.length - body;
      const streamed = size === 0xffffffff;
      if (!streamed && present < size) {
        throw new AudioError(
          `${where}: cut off: the header promises ${size} bytes of audio, ${present} are there`,
        );
      }
      const seconds = Math.min(present, size) / blockBytes / sampleRate;
      if (seconds > limits.seconds) {
        throw new AudioError(`${where}: ${seconds.toFixed(0)} s long, at most ${limits.seconds} s are read`);
      }
      const dataBytes = Math.min(present, size) & ~1;
      return { channels, sampleRate, plainPcm16: format.plainPcm16, dataStart: body, dataBytes };
    }
    at = body + size + (size % 2);
  }
  throw new AudioError(`${where}: has no ${format === undefined ? 'format' : 'data'} chunk`);
}

/**
 * 16-bit PCM bytes; samples beyond -1 to 1 are clipped. Written out here because the library takes 13 ms for a
 * clip of three seconds, and a dataset has thousands.
 */
export function encodeWav({ samples, sampleRate }: Waveform): Uint8Array {
  const bytes = new Uint8Array(44 + 2 * samples.length);
  const view = new DataView(bytes.buffer);
  const tag = (at: number, text: string) => bytes.set(new TextEncoder().encode(text), at);
  tag(0, 'RIFF');
  view.setUint32(4, bytes.length - 8, true);
  tag(8, 'WAVEfmt ');
  view.setUint32(16, 16, true);
  view.setUint16(20, 1, true);
  view.setUint16(22, 1, true);
  view.setUint32(24, sampleRate, true);
  view.setUint32(28, 2 * sampleRate, true);
  view.setUint16(32, 2, true);
  view.setUint16(34, 16, true);
  tag(36, 'data');
  view.setUint32(40, 2 * samples.length, true);
  for (let at = 0; at < samples.length; at++) {
    const value = Math.max(-1, Math.min(1, samples[at] as number));
    view.setInt16(44 + 2 * at, Math.round(value * 32_767), true);
  }
  return bytes;
}
