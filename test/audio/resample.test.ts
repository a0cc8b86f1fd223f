import { describe, expect, it } from 'vitest';
import { resample } from '../../src/audio/resample.ts';

function sine(hertz: number, sampleRate: number, seconds = 0.5) {
  const samples = Float32Array.from({ length: seconds * sampleRate }, (_, at) =>
    Math.sin((2 * Math.PI * hertz * at) / sampleRate),
  );
  return { samples, sampleRate };
}

/** Largest deviation away from the ends, where the filter reaches over the edge. */
function deviation(actual: Float32Array, expected: Float32Array): number {
  let largest = 0;
  for (let at = 500; at < actual.length - 500; at++)
    largest = Math.max(largest, Math.abs((actual[at] as number) - (expected[at] as number)));
  return largest;
}

describe('resample', () => {
  for (const [from, to] of [
    [8000, 16_000],
    [48_000, 16_000],
    [44_100, 16_000],
    [16_000, 22_050],
  ] as const) {
    it(`${from} to ${to} Hz gives the analytic sine`, () => {
      for (const hertz of [50, 440, 3000]) {
        const made = resample(sine(hertz, from), to);
        expect(made.sampleRate).toBe(to);
        expect(made.samples.length).toBe(Math.ceil((0.5 * from * to) / from));
        expect(deviation(made.samples, sine(hertz, to, 0.6).samples)).toBeLessThan(1e-3);
      }
    });
  }

  it('lets nothing above half the new rate through: aliases are 60 dB down', () => {
    const { samples } = resample(sine(11_000, 48_000), 16_000);
    expect(deviation(samples, new Float32Array(samples.length))).toBeLessThan(1e-3);
  });

  it('passes 85 % of the band within 0.1 dB, and damps what would fold back the more the higher it lies', () => {
    const level = (hertz: number, from: number) => {
      const { samples } = resample(sine(hertz, from), 16_000);
      const inner = samples.subarray(800, -800);
      const power = inner.reduce((sum, sample) => sum + sample * sample, 0) / inner.length;
      return 10 * Math.log10(2 * power);
    };
    for (const from of [44_100, 48_000]) {
      for (const hertz of [100, 4000, 6800]) expect(Math.abs(level(hertz, from))).toBeLessThan(0.1);
      expect(level(8200, from)).toBeLessThan(-34);
      for (const hertz of [8560, 9000, 15_000]) expect(level(hertz, from)).toBeLessThan(-85);
    }
    expect(Math.abs(level(3400, 8000))).toBeLessThan(0.1);
  });

  it('refuses a rate that is none', () => {
    for (const rate of [0, -1, 0.5, Number.NaN, Number.POSITIVE_INFINITY])
      expect(() => resample(sine(440, 16_000), rate)).toThrow(`a sample rate of ${rate} Hz`);
  });

  it('leaves a waveform of the same rate as it is', () => {
    const same = sine(440, 16_000);
    expect(resample(same, 16_000)).toBe(same);
  });
});
