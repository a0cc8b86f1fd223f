import { readFileSync } from 'node:fs';
import { describe, expect, it } from 'vitest';
import { checkFeatures, extractFeatures, featureSchema } from '../../src/audio/features.ts';

const golden: Record<string, number[][]> = JSON.parse(readFileSync('test/golden/spectrogram.json', 'utf8'));

/** The signal of test/golden/spectrogram.py. */
function signal() {
  let state = 1;
  const samples = Float32Array.from({ length: 3200 }, (_, at) => {
    state = (16_807 * state) % 2_147_483_647;
    const turn = (2 * Math.PI * at) / 16_000;
    return 0.2 * (state / 2_147_483_647 - 0.5) + 0.3 * Math.sin(523.25 * turn) + 0.1 * Math.sin(3000 * turn);
  });
  return { samples, sampleRate: 16_000 };
}

describe('extractFeatures', () => {
  const mel = { kind: 'log-mel', minHz: 200, maxHz: 7600, bins: 12 };
  const cases: Record<string, object> = {
    htk: { ...mel, scale: 'htk' },
    slaney: { ...mel, scale: 'slaney' },
    logFrequency: {
      kind: 'log-frequency',
      windowMs: 64,
      hopMs: 20,
      fftSize: 1024,
      minHz: 440,
      bins: 24,
      binsPerOctave: 12,
    },
  };
  for (const [name, config] of Object.entries(cases)) {
    it(`gives what librosa and numpy give: ${name}`, () => {
      const expected = golden[name] ?? [];
      const { data, frames, bins } = extractFeatures(signal(), featureSchema.parse(config));
      expect([frames, bins]).toEqual([expected.length, expected[0]?.length]);
      const errors = expected.flat().map((value, at) => Math.abs((data[at] as number) - value));
      expect(Math.max(...errors)).toBeLessThan(1e-5);
    });
  }

  it('gives the same bytes each time, and finite ones for silence and a single sample', () => {
    const config = featureSchema.parse(mel);
    expect(extractFeatures(signal(), config).data).toEqual(extractFeatures(signal(), config).data);
    for (const length of [1, 160, 161]) {
      const { data, frames } = extractFeatures(
        { samples: new Float32Array(length), sampleRate: 16_000 },
        config,
      );
      expect(frames).toBe(Math.floor(length / 160));
      expect(data.every((value) => Math.abs(value - Math.log(1e-10)) < 1e-5)).toBe(true);
    }
  });

  const mistakes: Record<string, [change: object, message: string]> = {
    'a hop of no samples': [{ hopMs: 0.01 }, 'hopMs 0.01'],
    'a window of one sample': [{ windowMs: 0.05 }, 'windowMs 0.05'],
    'a window longer than the FFT': [{ windowMs: 40 }, 'raise fftSize'],
    'bands upside down': [{ minHz: 7700 }, 'minHz 7700 is not below maxHz 7600'],
    'bands above half the rate': [{ maxHz: 9000 }, 'maxHz 9000'],
    'semitones above half the rate': [
      { kind: 'log-frequency', maxHz: undefined, minHz: 440, bins: 60 },
      '60 bins from 440 Hz',
    ],
  };
  for (const [name, [change, message]] of Object.entries(mistakes)) {
    it(`refuses ${name}`, () => {
      const changed = Object.entries({ ...mel, ...change }).filter(([, value]) => value !== undefined);
      const config = featureSchema.parse(Object.fromEntries(changed));
      expect(() => checkFeatures(config, 16_000)).toThrow(message);
      expect(() => extractFeatures(signal(), config)).toThrow(message);
    });
  }

  it('asks for an FFT of a power of two', () => {
    const found = featureSchema.safeParse({ ...mel, fftSize: 500 });
    expect(found.error?.issues[0]).toMatchObject({ path: ['fftSize'], message: 'a power of two' });
  });
});
