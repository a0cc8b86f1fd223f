import { execFileSync } from 'node:child_process';
import { mkdtempSync } from 'node:fs';
import { rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import fc from 'fast-check';
import { afterAll, describe, expect, it } from 'vitest';
import { AudioError, decodeWav, encodeWav, readWaveform } from '../../src/audio/waveform.ts';

const folder = mkdtempSync(join(tmpdir(), 'palkit-'));
afterAll(() => rm(folder, { recursive: true }));

const bytesOf = (...parts: Uint8Array[]) => new Uint8Array(Buffer.concat(parts));
const ascii = (text: string) => new TextEncoder().encode(text);
const u16 = (...values: number[]) => new Uint8Array(Uint16Array.from(values).buffer);
const u32 = (...values: number[]) => new Uint8Array(Uint32Array.from(values).buffer);

function chunk(id: string, body: Uint8Array, claimed = body.length): Uint8Array {
  return bytesOf(ascii(id), u32(claimed), body, new Uint8Array(body.length % 2));
}

interface Fmt {
  readonly tag: number;
  readonly bits: number;
  readonly channels?: number;
  readonly sampleRate?: number;
  readonly frameBytes?: number;
  readonly extension?: Uint8Array;
}

function fmt({ tag, bits, channels = 1, sampleRate = 8000, ...rest }: Fmt): Uint8Array {
  const { frameBytes = channels * Math.ceil(bits / 8), extension = new Uint8Array(0) } = rest;
  const rates = u32(sampleRate, sampleRate * frameBytes);
  return chunk('fmt ', bytesOf(u16(tag, channels), rates, u16(frameBytes, bits), extension));
}

/** A format chunk of the extensible kind: size, valid bits, channel mask, the sub-format's GUID. */
function extensible(tag: number, bits: number): Uint8Array {
  const guid = Uint8Array.of(0, 0, 0, 0, 0x10, 0, 0x80, 0, 0, 0xaa, 0, 0x38, 0x9b, 0x71);
  return fmt({ tag: 0xfffe, bits, extension: bytesOf(u16(22, bits), u32(0), u16(tag), guid) });
}

function riff(body: Uint8Array, claimed = body.length + 4): Uint8Array {
  return bytesOf(ascii('RIFF'), u32(claimed), ascii('WAVE'), body);
}

/** The same four samples in every format, their bytes by hand. */
const quarters = [0, 0.25, -0.25, 0.5];
const pcm8 = Uint8Array.of(0x80, 0xa0, 0x60, 0xc0);
const pcm16 = Uint8Array.of(0, 0, 0, 0x20, 0, 0xe0, 0, 0x40);
const pcm24 = Uint8Array.of(0, 0, 0, 0, 0, 0x20, 0, 0, 0xe0, 0, 0, 0x40);
const pcm32 = Uint8Array.of(0, 0, 0, 0, 0, 0, 0, 0x20, 0, 0, 0, 0xe0, 0, 0, 0, 0x40);
const float32 = Uint8Array.of(0, 0, 0, 0, 0, 0, 0x80, 0x3e, 0, 0, 0x80, 0xbe, 0, 0, 0, 0x3f);
const float64 = new Uint8Array(Float64Array.from(quarters).buffer);

const plain16 = bytesOf(fmt({ tag: 1, bits: 16 }), chunk('data', pcm16));
const plainFloat = bytesOf(fmt({ tag: 3, bits: 32 }), chunk('data', float32));
const formats: Record<string, Uint8Array> = {
  '8-bit': bytesOf(fmt({ tag: 1, bits: 8 }), chunk('data', pcm8)),
  '12 bits in 16': bytesOf(fmt({ tag: 1, bits: 12 }), chunk('data', pcm16)),
  '16-bit': plain16,
  '20 bits in 24': bytesOf(fmt({ tag: 1, bits: 20 }), chunk('data', pcm24)),
  '24-bit': bytesOf(fmt({ tag: 1, bits: 24 }), chunk('data', pcm24)),
  '32-bit': bytesOf(fmt({ tag: 1, bits: 32 }), chunk('data', pcm32)),
  float: plainFloat,
  'double float': bytesOf(fmt({ tag: 3, bits: 64 }), chunk('data', float64)),
  'extensible 8-bit': bytesOf(extensible(1, 8), chunk('data', pcm8)),
  'extensible 16-bit': bytesOf(extensible(1, 16), chunk('data', pcm16)),
  'extensible 24-bit': bytesOf(extensible(1, 24), chunk('data', pcm24)),
  'extensible float': bytesOf(extensible(3, 32), chunk('data', float32)),
};

describe('decodeWav', () => {
  for (const [name, body] of Object.entries(formats)) {
    it(`reads ${name}`, () => {
      expect([...decodeWav(riff(body), 'a.wav').samples]).toEqual(quarters);
    });

    it(`reads ${name} from a stream whose writer left the sizes open`, () => {
      const data = Buffer.from(body).indexOf('data');
      for (const unknown of [0, 0xffffffff]) {
        const open = riff(body, unknown);
        open.set(u32(unknown), 12 + data + 4);
        expect([...decodeWav(open, 'stream.wav').samples]).toEqual(quarters);
      }
    });

    it(`names ${name} that is cut off at any byte`, () => {
      const whole = riff(body);
      for (let length = 0; length < whole.length; length++)
        expect(() => decodeWav(whole.slice(0, length), 'cut.wav')).toThrow(/^cut\.wav: /);
    });
  }

  it('reads the telephone formats as G.711 defines them', () => {
    const decoded = (tag: number, data: Uint8Array) =>
      [...decodeWav(riff(bytesOf(fmt({ tag, bits: 8 }), chunk('data', data))), 'a.wav').samples].map(
        (value) => value * 32_768,
      );
    expect(decoded(6, Uint8Array.of(0xd5, 0x55, 0xaa, 0x2a))).toEqual([8, -8, 32_256, -32_256]);
    expect(decoded(7, Uint8Array.of(0xff, 0x80, 0x00, 0xf0))).toEqual([0, 32_124, -32_124, 120]);
  });

  it('averages the channels of every frame', () => {
    const data = chunk('data', u16(0x4000, 0, 0xc000, 0x2000));
    const stereo = riff(bytesOf(fmt({ tag: 1, bits: 16, channels: 2 }), data));
    expect([...decodeWav(stereo, 'a.wav').samples]).toEqual([0.25, -0.125]);
  });

  const strays: Record<string, Uint8Array> = {
    'a list': chunk('LIST', ascii('INFOISFT\x03\x00\x00\x00abc\x00')),
    'a list that is cut off': chunk('LIST', ascii('INFO'), 0xfffffff0),
    'a cue list of a billion points': chunk('cue ', bytesOf(u32(1_000_000_000), new Uint8Array(24))),
    'a sampler chunk of a billion loops': chunk('smpl', bytesOf(new Uint8Array(28), u32(1e9, 0))),
    'a broadcast chunk that is too short': chunk('bext', ascii('abc')),
    'stray bytes': Uint8Array.of(1, 2, 3),
  };
  for (const [name, extra] of Object.entries(strays)) {
    it(`reads what has ${name} behind the data`, () => {
      for (const body of [plain16, plainFloat])
        expect([...decodeWav(riff(bytesOf(body, extra)), 'a.wav').samples]).toEqual(quarters);
    });
  }

  it('steps over whole chunks in front of the data, and names what it cannot step over', () => {
    const { length } = fmt({ tag: 3, bits: 32 });
    for (const [name, extra] of Object.entries(strays)) {
      const bytes = riff(bytesOf(plainFloat.subarray(0, length), extra, plainFloat.subarray(length)));
      if (/cut off|stray/.test(name)) expect(() => decodeWav(bytes, 'a.wav')).toThrow('has no data chunk');
      else expect([...decodeWav(bytes, 'a.wav').samples]).toEqual(quarters);
    }
  });

  const zeros = (count: number) => chunk('data', new Uint8Array(count));
  const refused: Record<string, [body: Uint8Array, message: string]> = {
    'MP3 in WAV': [
      bytesOf(fmt({ tag: 0x55, bits: 0, frameBytes: 1 }), zeros(64)),
      'audio of format 0x0055; PCM, float, A-law and mu-law are read; convert it: ffmpeg -i',
    ],
    'MP3 in extensible WAV': [bytesOf(extensible(0x55, 16), zeros(64)), 'audio of format 0x0055'],
    'an extension that is not there': [bytesOf(fmt({ tag: 0xfffe, bits: 16 }), zeros(64)), 'extension'],
    'frames that do not add up': [
      bytesOf(fmt({ tag: 1, bits: 16, frameBytes: 4 }), zeros(64)),
      '16 bits, 1 to a frame of 4 bytes',
    ],
    'float of 16 bits': [bytesOf(fmt({ tag: 3, bits: 16 }), zeros(64)), 'float samples of 16 bits'],
    'samples of no bits': [bytesOf(fmt({ tag: 1, bits: 0, frameBytes: 2 }), zeros(64)), '0 bits'],
    'two formats': [bytesOf(fmt({ tag: 1, bits: 16 }), plain16), 'two format chunks'],
    'data in front of its format': [bytesOf(zeros(64), fmt({ tag: 1, bits: 16 })), 'before the format chunk'],
    'a header alone': [bytesOf(fmt({ tag: 1, bits: 16 }), zeros(0)), 'holds no samples'],
    'half a sample': [bytesOf(fmt({ tag: 1, bits: 16 }), zeros(1)), 'holds no samples'],
    '33 channels': [bytesOf(fmt({ tag: 1, bits: 16, channels: 33 }), zeros(660)), 'claims 33 channels'],
    'more than ten minutes': [
      bytesOf(fmt({ tag: 1, bits: 8, sampleRate: 10 }), zeros(6020)),
      '602 s long, at most 600 s are read',
    ],
    infinity: [
      bytesOf(fmt({ tag: 3, bits: 32 }), chunk('data', Uint8Array.of(0, 0, 0x80, 0x7f))),
      'sample 0 is not a finite number',
    ],
    'a number too large for a float': [
      bytesOf(fmt({ tag: 3, bits: 64 }), chunk('data', new Uint8Array(Float64Array.of(0, 1e300).buffer))),
      'sample 1 is not a finite number',
    ],
  };
  for (const [name, [body, message]] of Object.entries(refused)) {
    it(`refuses ${name}`, () => {
      expect(() => decodeWav(riff(body), 'bad.wav')).toThrow(AudioError);
      expect(() => decodeWav(riff(body), 'bad.wav')).toThrow(/^bad\.wav: /);
      expect(() => decodeWav(riff(body), 'bad.wav')).toThrow(message);
    });
  }

  it('takes any bytes and any change of a good file: finite samples or an AudioError', () => {
    const whole = Object.values(formats).map((body) => riff(body));
    const damaged = fc
      .tuple(
        fc.constantFrom(...whole),
        fc.array(fc.tuple(fc.nat(90), fc.integer({ min: 0, max: 255 })), { maxLength: 8 }),
      )
      .map(([bytes, changes]) => {
        const copy = bytes.slice();
        for (const [at, value] of changes) copy[at % copy.length] = value;
        return copy;
      });
    const headed = fc.uint8Array({ maxLength: 200 }).map((body) => riff(body));
    fc.assert(
      fc.property(fc.oneof(damaged, headed, fc.uint8Array({ maxLength: 200 })), (bytes) => {
        try {
          const { samples, sampleRate } = decodeWav(bytes, 'fuzz.wav');
          expect(samples.every(Number.isFinite)).toBe(true);
          expect(samples.length / sampleRate).toBeLessThanOrEqual(600);
        } catch (error) {
          expect(error).toBeInstanceOf(AudioError);
        }
      }),
      { numRuns: 3000, seed: 7 },
    );
  });
});

describe('readWaveform', () => {
  it('names a folder, and a pipe that nobody writes to, instead of waiting', async () => {
    await expect(readWaveform(folder)).rejects.toThrow(`${folder}: not a file`);
    const pipe = join(folder, 'pipe.wav');
    execFileSync('mkfifo', [pipe]);
    await expect(readWaveform(pipe)).rejects.toThrow('pipe.wav: not a file');
  });

  it('says how to convert another format', async () => {
    const path = join(folder, 'song.mp3');
    await writeFile(path, ascii(`ID3\x04${'x'.repeat(200)}`));
    await expect(readWaveform(path)).rejects.toThrow(AudioError);
    await expect(readWaveform(path)).rejects.toThrow(/song\.mp3: not a WAV file; convert it: ffmpeg -i/);
  });
});

it('encodeWav refuses what is not a number, which would be written as silence', () => {
  const samples = Float32Array.of(0, Number.NaN);
  expect(() => encodeWav({ samples, sampleRate: 8000 })).toThrow('sample 1 is not a number');
});
