/** What the chunks of a WAV file say, checked before anything is allocated or decoded. */

export class AudioError extends Error {
  override readonly name = 'AudioError';
}

/** What is read at most; a header may claim anything. */
export const limits = { seconds: 600, bytes: 512 * 1024 * 1024, channels: 32, sampleRate: 384_000 } as const;

export interface WavFormat {
  readonly encoding: 'pcm' | 'float' | 'A-law' | 'mu-law';
  /** Of a sample of one channel, as it lies in the file. */
  readonly bits: number;
  readonly channels: number;
  readonly sampleRate: number;
  readonly dataStart: number;
  /** Whole frames only. */
  readonly dataBytes: number;
}

const convert = 'convert it: ffmpeg -i INPUT -ac 1 -ar 16000 OUTPUT.wav';

/** Format tags that are read, and the widths of their samples. */
const encodings: ReadonlyMap<number, readonly [WavFormat['encoding'], readonly number[]]> = new Map([
  [1, ['pcm', [8, 16, 24, 32]]],
  [3, ['float', [32, 64]]],
  [6, ['A-law', [8]]],
  [7, ['mu-law', [8]]],
]);
/** WAVE_FORMAT_EXTENSIBLE: the tag is the first two bytes of the sub-format at the end of the chunk. */
const extensible = 0xfffe;
/** What a stream leaves where its size should stand. */
const unknownSizes = [0, 0xffffffff];

/**
 * Walks the chunks up to the data. Whatever follows the data is left alone.
 * @param where names the source in errors
 * @throws AudioError when the header promises what the file does not hold, or what is not read
 */
export function wavFormat(bytes: Uint8Array, where: string): WavFormat {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const tag = (at: number) => String.fromCharCode(...bytes.subarray(at, at + 4));
  if (bytes.length < 12 || !['RIFF', 'RIFX', 'RF64'].includes(tag(0)) || tag(8) !== 'WAVE') {
    throw new AudioError(`${where}: not a WAV file; ${convert}`);
  }
  if (tag(0) !== 'RIFF')
    throw new AudioError(`${where}: ${tag(0)} files are not read; convert it to plain WAV`);
  let format: Layout | undefined;
  for (let at = 12; at + 8 <= bytes.length; ) {
    const size = view.getUint32(at + 4, true);
    const body = at + 8;
    if (tag(at) === 'fmt ') {
      if (format !== undefined) throw new AudioError(`${where}: has two format chunks`);
      format = readLayout(view, body, size, where);
    }
    if (tag(at) === 'data') {
      if (format === undefined) throw new AudioError(`${where}: the data stands before the format chunk`);
      const present = bytes.length - body;
      // A stream's writer could not go back to fill in the sizes.
      const streamed = size === 0xffffffff || (size === 0 && unknownSizes.includes(view.getUint32(4, true)));
      if (!streamed && present < size) {
        throw new AudioError(
          `${where}: cut off: the header promises ${size} bytes of audio, ${present} are there`,
        );
      }
      const dataBytes = wholeFrames(streamed ? present : size, format, where);
      return { ...format, dataStart: body, dataBytes };
    }
    at = body + size + (size % 2);
  }
  throw new AudioError(`${where}: has no ${format === undefined ? 'format' : 'data'} chunk`);
}

type Layout = Omit<WavFormat, 'dataStart' | 'dataBytes'>;

/** The bytes of the frames that are there in full; their length in time is checked before they are read. */
function wholeFrames(dataBytes: number, { bits, channels, sampleRate }: Layout, where: string): number {
  const frameBytes = (bits / 8) * channels;
  const frames = Math.floor(dataBytes / frameBytes);
  const seconds = frames / sampleRate;
  if (frames === 0) throw new AudioError(`${where}: holds no samples`);
  if (seconds > limits.seconds) {
    throw new AudioError(`${where}: ${seconds.toFixed(0)} s long, at most ${limits.seconds} s are read`);
  }
  return frames * frameBytes;
}

function readLayout(view: DataView, body: number, size: number, where: string): Layout {
  if (size < 16 || body + 16 > view.byteLength) throw new AudioError(`${where}: the format chunk is cut off`);
  const channels = view.getUint16(body + 2, true);
  const sampleRate = view.getUint32(body + 4, true);
  const frameBytes = view.getUint16(body + 12, true);
  const claimedBits = view.getUint16(body + 14, true);
  if (
    channels < 1 ||
    channels > limits.channels ||
    sampleRate < 1 ||
    sampleRate > limits.sampleRate ||
    frameBytes < 1
  ) {
    throw new AudioError(
      `${where}: claims ${channels} channels, ${sampleRate} Hz, ${frameBytes} bytes a frame`,
    );
  }
  const formatTag = view.getUint16(body, true);
  if (formatTag === extensible && (size < 40 || body + 40 > view.byteLength))
    throw new AudioError(`${where}: the extension of the format chunk is cut off`);
  const resolved = formatTag === extensible ? view.getUint16(body + 24, true) : formatTag;
  const [encoding, widths] = encodings.get(resolved) ?? [];
  if (encoding === undefined || widths === undefined) {
    const hexadecimal = `0x${resolved.toString(16).padStart(4, '0')}`;
    throw new AudioError(
      `${where}: holds audio of format ${hexadecimal}; PCM, float, A-law and mu-law are read; ${convert}`,
    );
  }
  // Samples of 12 or 20 bits, say, fill the upper part of the next whole byte.
  const bits = 8 * Math.ceil(claimedBits / 8);
  if (!widths.includes(bits) || frameBytes !== (bits / 8) * channels) {
    throw new AudioError(
      `${where}: claims ${encoding} samples of ${claimedBits} bits, ${channels} to a frame of ${frameBytes} bytes; ${convert}`,
    );
  }
  return { encoding, bits, channels, sampleRate };
}
