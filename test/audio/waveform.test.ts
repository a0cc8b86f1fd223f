import { mkdtempSync } from 'node:fs';
import { rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import fc from 'fast-check';
import { afterAll, describe, expect, it } from 'vitest';
import { AudioError, decodeWav, encodeWav, readWaveform } from '../../src/audio/waveform.ts';

const folder = mkdtempSync(join(tmpdir(), 'palkit-'));
afterAll(() => rm(folder, { recursive: true }));

const ramp = Float32Array.from({ length: 64 }, (_, at) => (at - 32) / 40);

interface Format {
  readonly tag?: number;
  readonly channels?: number;
  readonly sampleRate?: number;
  readonly bits: number;
  readonly write: (view: DataView, at: number, value: number) => void;
  /** A chunk in front of the data. */
  readonly extra?: boolean;
  /** What the data chunk claims to hold. */
  readonly claimed?: number;
}

/** A WAV file written by hand, sample by sample. */
function wav({
  tag = 1,
  channels = 1,
  sampleRate = 8000,
  bits,
  write,
  extra = false,
  claimed,
}: Format): Uint8Array {
  const width = bits / 8;
  const dataBytes = ramp.length * channels * width;
  const junk = extra ? 12 : 0;
  const bytes = new Uint8Array(44 + junk + dataBytes);
  const view = new DataView(bytes.buffer);
  const text = (at: number, value: string) => bytes.set(new TextEncoder().encode(value), at);
  text(0, 'RIFF');
  view.setUint32(4, bytes.length - 8, true);
  text(8, 'WAVEfmt ');
  view.setUint32(16, 16, true);
  view.setUint16(20, tag, true);
  view.setUint16(22, channels, true);
  view.setUint32(24, sampleRate, true);
  view.setUint32(28, sampleRate * channels * width, true);
  view.setUint16(32, channels * width, true);
  view.setUint16(34, bits, true);
  if (extra) {
    text(36, 'LIST');
    view.setUint32(40, 3, true);
  }
  text(36 + junk, 'data');
  view.setUint32(40 + junk, claimed ?? dataBytes, true);
  for (const [at, value] of ramp.entries()) {
    for (let channel = 0; channel < channels; channel++)
      write(view, 44 + junk + (at * channels + channel) * width, value);
  }
  return bytes;
}

const pcm16 = (view: DataView, at: number, value: number) =>
  view.setInt16(at, Math.round(value * 32_768), true);

describe('decodeWav', () => {
  const formats: Record<string, Format> = {
    '8-bit': { bits: 8, write: (view, at, value) => view.setUint8(at, Math.round(128 + value * 128)) },
    '16-bit': { bits: 16, write: pcm16 },
    '24-bit': {
      bits: 24,
      write: (view, at, value) => {
        const number = Math.round(value * 2 ** 23);
        view.setUint16(at, number & 0xffff, true);
        view.setInt8(at + 2, number >> 16);
      },
    },
    '32-bit': { bits: 32, write: (view, at, value) => view.setInt32(at, Math.round(value * 2 ** 31), true) },
    float: { tag: 3, bits: 32, write: (view, at, value) => view.setFloat32(at, value, true) },
    stereo: { bits: 16, channels: 2, write: pcm16 },
    'an odd chunk in front of the data': { bits: 16, extra: true, write: pcm16 },
    'a stream of unknown length': { bits: 16, claimed: 0xffffffff, write: pcm16 },
  };
  for (const [name, format] of Object.entries(formats)) {
    it(`reads ${name}`, () => {
      const { samples, sampleRate } = decodeWav(wav(format), 'test.wav');
      expect(sampleRate).toBe(8000);
      expect(samples).toHaveLength(ramp.length);
      for (const [at, value] of samples.entries())
        expect(Math.abs(value - (ramp[at] as number))).toBeLessThan(format.bits === 8 ? 0.01 : 1e-4);
    });
  }

  it('gives back what encodeWav wrote, clipped to full scale', () => {
    const { samples } = decodeWav(
      encodeWav({ samples: Float32Array.of(0, 0.5, -0.5, 3, -3), sampleRate: 16_000 }),
      'a',
    );
    for (const [at, value] of [0, 0.5, -0.5, 1, -1].entries()) expect(samples[at]).toBeCloseTo(value, 4);
  });

  it('names a file that is cut off anywhere, and never takes it for a short clip', () => {
    const whole = wav({ bits: 16, write: pcm16 });
    for (let length = 0; length < whole.length; length++) {
      expect(() => decodeWav(whole.slice(0, length), 'cut.wav')).toThrow(AudioError);
      expect(() => decodeWav(whole.slice(0, length), 'cut.wav')).toThrow('cut.wav: ');
    }
  });

  const claims: Record<string, [Uint8Array, string]> = {
    'no channels': [wav({ bits: 16, channels: 1, write: pcm16 }).fill(0, 22, 24), 'claims 0 channels'],
    'no sample rate': [wav({ bits: 16, sampleRate: 0, write: pcm16 }), '0 Hz'],
    'a sample rate of gigahertz': [wav({ bits: 16, sampleRate: 4e9, write: pcm16 }), 'claims'],
    'more than is there': [wav({ bits: 16, claimed: 5_000_000, write: pcm16 }), 'promises 5000000 bytes'],
    'not a number': [
      wav({ tag: 3, bits: 32, write: (view, at) => view.setFloat32(at, Number.NaN, true) }),
      'not a finite number',
    ],
    'another format': [new TextEncoder().encode(`ID3${'x'.repeat(100)}`), 'ffmpeg'],
  };
  for (const [name, [bytes, message]] of Object.entries(claims)) {
    it(`refuses ${name}`, () => {
      expect(() => decodeWav(bytes, 'bad.wav')).toThrow(AudioError);
      expect(() => decodeWav(bytes, 'bad.wav')).toThrow(message);
    });
  }

  it('takes any bytes: samples or an AudioError, nothing else', () => {
    const whole = wav({ bits: 16, extra: true, write: pcm16 });
    fc.assert(
      fc.property(fc.array(fc.tuple(fc.nat(whole.length - 1), fc.nat(255)), { maxLength: 12 }), (changes) => {
        const bytes = whole.slice();
        for (const [at, value] of changes) bytes[at] = value;
        try {
          expect(decodeWav(bytes, 'fuzz.wav').samples.length).toBeGreaterThan(0);
        } catch (error) {
          expect(error).toBeInstanceOf(AudioError);
        }
      }),
      { numRuns: 500, seed: 3 },
    );
  });
});

it('readWaveform names a file that is not there', async () => {
  await expect(readWaveform(join(folder, 'none.wav'))).rejects.toThrow('none.wav: there is no such file');
  await writeFile(join(folder, 'a.wav'), encodeWav({ samples: ramp, sampleRate: 8000 }));
  expect((await readWaveform(join(folder, 'a.wav'))).samples).toHaveLength(64);
});
