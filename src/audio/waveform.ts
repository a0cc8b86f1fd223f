/** Waveforms and the WAV files they are read from. */
import { readFile, stat } from 'node:fs/promises';
import wavefile from 'wavefile';
import { AudioError, limits, type WavFormat, wavFormat } from './wavFormat.ts';

export { AudioError };

/** Mono audio, -1 to 1. */
export interface Waveform {
  readonly samples: Float32Array;
  readonly sampleRate: number;
}

/**
 * Reads a WAV file: PCM of 8 to 32 bits, float, A-law, mu-law, plain or extensible. Channels are averaged.
 * @throws AudioError naming the file and what is wrong with it
 */
export async function readWaveform(path: string): Promise<Waveform> {
  let bytes: Uint8Array;
  try {
    const found = await stat(path);
    // A pipe or a device might never end.
    if (!found.isFile()) throw new AudioError(`${path}: not a file`);
    if (found.size > limits.bytes)
      throw new AudioError(`${path}: ${found.size} bytes, at most ${limits.bytes} are read`);
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
 * @throws AudioError
 */
export function decodeWav(bytes: Uint8Array, where: string): Waveform {
  const format = wavFormat(bytes, where);
  const { channels, sampleRate } = format;
  const { interleaved, offset, fullScale } =
    format.encoding === 'pcm' && format.bits === 16
      ? readPcm16(bytes, format)
      : decodeByLibrary(bytes, format, where);
  const length = Math.floor(interleaved.length / channels);
  const samples = new Float32Array(length);
  for (let at = 0; at < length; at++) {
    let total = 0;
    for (let channel = 0; channel < channels; channel++)
      total += interleaved[at * channels + channel] as number;
    samples[at] = (total / channels - offset) / fullScale;
    if (!Number.isFinite(samples[at])) throw new AudioError(`${where}: sample ${at} is not a finite number`);
  }
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

/**
 * The library sees format and samples alone, as they were checked: it takes an extensible file's float samples for
 * integers, and a few bytes of a cue list that claims a billion points keep it busy for ever.
 */
function decodeByLibrary(bytes: Uint8Array, format: WavFormat, where: string): Interleaved {
  const { encoding, bits, dataStart, dataBytes } = format;
  // Middle and full scale of what the library gives: the companded formats come out as 16-bit PCM, 8 bits unsigned.
  let scale = { offset: 0, fullScale: encoding === 'float' ? 1 : 2 ** (bits - 1) };
  if (encoding === 'pcm' && bits === 8) scale = { offset: 128, fullScale: 128 };
  try {
    const bare = Buffer.concat([wavHeader(format), bytes.subarray(dataStart, dataStart + dataBytes)]);
    const wav = new wavefile.WaveFile(bare);
    if (encoding === 'A-law') wav.fromALaw();
    else if (encoding === 'mu-law') wav.fromMuLaw();
    if (encoding === 'A-law' || encoding === 'mu-law') scale = { offset: 0, fullScale: 32_768 };
    const interleaved = wav.getSamples(true, Float64Array as never) as unknown as Float64Array;
    return { interleaved, ...scale };
  } catch (error) {
    throw new AudioError(
      `${where}: not a WAV file that can be decoded (${error instanceof Error ? error.message : error})`,
    );
  }
}

const formatTags: Readonly<Record<WavFormat['encoding'], number>> = {
  pcm: 1,
  float: 3,
  'A-law': 6,
  'mu-law': 7,
};

/** The 44 bytes in front of the samples. */
function wavHeader(format: Omit<WavFormat, 'dataStart'>): Uint8Array {
  const { encoding, bits, channels, sampleRate, dataBytes } = format;
  const bytes = new Uint8Array(44);
  const view = new DataView(bytes.buffer);
  const tag = (at: number, text: string) => bytes.set(new TextEncoder().encode(text), at);
  const frameBytes = (bits / 8) * channels;
  tag(0, 'RIFF');
  view.setUint32(4, 36 + dataBytes, true);
  tag(8, 'WAVEfmt ');
  view.setUint32(16, 16, true);
  view.setUint16(20, formatTags[encoding], true);
  view.setUint16(22, channels, true);
  view.setUint32(24, sampleRate, true);
  view.setUint32(28, sampleRate * frameBytes, true);
  view.setUint16(32, frameBytes, true);
  view.setUint16(34, bits, true);
  tag(36, 'data');
  view.setUint32(40, dataBytes, true);
  return bytes;
}

/**
 * 16-bit PCM bytes; samples beyond -1 to 1 are clipped. Written out here because the library takes 13 ms for a
 * clip of three seconds, and a dataset has thousands.
 * @throws RangeError for a sample that is not a number, which would be written as silence
 */
export function encodeWav({ samples, sampleRate }: Waveform): Uint8Array {
  const dataBytes = 2 * samples.length;
  const bytes = new Uint8Array(44 + dataBytes);
  bytes.set(wavHeader({ encoding: 'pcm', bits: 16, channels: 1, sampleRate, dataBytes }));
  const view = new DataView(bytes.buffer);
  for (let at = 0; at < samples.length; at++) {
    const value = Math.max(-1, Math.min(1, samples[at] as number));
    if (Number.isNaN(value)) throw new RangeError(`sample ${at} is not a number`);
    view.setInt16(44 + 2 * at, Math.round(value * 32_767), true);
  }
  return bytes;
}
