/** Spectrogram features: what audio encoders take in. */
import FFT from 'fft.js';
import { z } from 'zod';
import type { Waveform } from './waveform.ts';

const common = {
  windowMs: z.number().positive().default(25),
  hopMs: z.number().positive().default(10),
  /** Power of two, at least the window. */
  fftSize: z
    .int()
    .min(16)
    .max(65_536)
    .refine((size) => Number.isInteger(Math.log2(size)), 'a power of two')
    .default(512),
  minHz: z.number().positive(),
  /** Added to the power before the logarithm. */
  floor: z.number().positive().default(1e-10),
};

export const featureSchema = z.discriminatedUnion('kind', [
  z.strictObject({
    kind: z.literal('log-mel'),
    ...common,
    maxHz: z.number().positive(),
    bins: z.int().min(1).max(1024),
    scale: z.enum(['htk', 'slaney']).default('htk'),
  }),
  z.strictObject({
    kind: z.literal('log-frequency'),
    ...common,
    bins: z.int().min(1).max(1024),
    binsPerOctave: z.int().min(1).max(96).default(12),
  }),
]);

export type FeatureConfig = z.infer<typeof featureSchema>;

/** Log power per frame and band, row-major [frames, bins]. */
export interface Features {
  readonly frames: number;
  readonly bins: number;
  readonly data: Float32Array;
}

/** One frame per hop; the first is centred on the first sample (the signal is mirrored at both ends). */
export function frameCount(samples: number, sampleRate: number, { hopMs }: FeatureConfig): number {
  return Math.floor(samples / Math.round((hopMs / 1000) * sampleRate));
}

export interface Band {
  /** The first bin of the FFT that counts. */
  readonly start: number;
  readonly weights: Float64Array;
}

/** What a configuration means at a sample rate. */
export interface Analysis {
  readonly hopSamples: number;
  /** Hann's, periodic. */
  readonly window: Float64Array;
  readonly bands: readonly Band[];
}

/** @throws RangeError as `checkFeatures` does */
export function analysisOf(config: FeatureConfig, sampleRate: number): Analysis {
  checkFeatures(config, sampleRate);
  const windowSamples = Math.round((config.windowMs / 1000) * sampleRate);
  return {
    hopSamples: Math.round((config.hopMs / 1000) * sampleRate),
    window: Float64Array.from(
      { length: windowSamples },
      (_, at) => 0.5 - 0.5 * Math.cos((2 * Math.PI * at) / windowSamples),
    ),
    bands: config.kind === 'log-mel' ? melBands(config, sampleRate) : pitchBands(config, sampleRate),
  };
}

/**
 * Whether a configuration can be computed at a sample rate.
 * @throws RangeError naming the field that is wrong
 */
export function checkFeatures(config: FeatureConfig, sampleRate: number): void {
  const { windowMs, hopMs, fftSize, minHz } = config;
  const windowSamples = Math.round((windowMs / 1000) * sampleRate);
  if (windowSamples < 2) throw new RangeError(`windowMs ${windowMs} is less than two samples`);
  if (Math.round((hopMs / 1000) * sampleRate) < 1)
    throw new RangeError(`hopMs ${hopMs} is less than a sample`);
  if (windowSamples > fftSize) {
    throw new RangeError(
      `a window of ${windowSamples} samples does not fit an FFT of ${fftSize}: raise fftSize`,
    );
  }
  if (config.kind === 'log-mel') {
    if (config.maxHz > sampleRate / 2)
      throw new RangeError(`maxHz ${config.maxHz} is above half the sample rate ${sampleRate}`);
    if (minHz >= config.maxHz) throw new RangeError(`minHz ${minHz} is not below maxHz ${config.maxHz}`);
  } else if (minHz * 2 ** (config.bins / config.binsPerOctave) > sampleRate / 2) {
    throw new RangeError(
      `${config.bins} bins from ${minHz} Hz reach above half the sample rate ${sampleRate}`,
    );
  }
}

/**
 * Computes the features of a waveform.
 * @throws RangeError as `checkFeatures` does
 */
export function extractFeatures({ samples, sampleRate }: Waveform, config: FeatureConfig): Features {
  const { hopSamples, window, bands } = analysisOf(config, sampleRate);
  const windowSamples = window.length;
  const { fftSize, floor } = config;
  const frames = frameCount(samples.length, sampleRate, config);
  const fft = new FFT(fftSize);
  const input = new Float64Array(fftSize);
  const spectrum = fft.createComplexArray();
  const power = new Float64Array(fftSize / 2 + 1);
  const data = new Float32Array(frames * bands.length);
  const half = Math.floor(windowSamples / 2);
  const padded = mirrorEnds(samples, half);
  for (let frame = 0; frame < frames; frame++) {
    const start = frame * hopSamples;
    for (let at = 0; at < windowSamples; at++)
      input[at] = (window[at] as number) * (padded[start + at] as number);
    fft.realTransform(spectrum, input as never);
    for (let bin = 0; bin < power.length; bin++) {
      const real = spectrum[2 * bin] as number;
      const imaginary = spectrum[2 * bin + 1] as number;
      power[bin] = real * real + imaginary * imaginary;
    }
    for (let index = 0; index < bands.length; index++) {
      const { start: first, weights } = bands[index] as Band;
      let total = 0;
      for (let at = 0; at < weights.length; at++)
        total += (weights[at] as number) * (power[first + at] as number);
      data[frame * bands.length + index] = Math.log(total + floor);
    }
  }
  return { frames, bins: bands.length, data };
}

/** The signal with `length` mirrored samples in front of it and behind it. */
function mirrorEnds(samples: Float32Array, length: number): Float32Array {
  const last = samples.length - 1;
  const padded = new Float32Array(samples.length + 2 * length);
  padded.set(samples, length);
  for (let at = 1; at <= length; at++) {
    padded[length - at] = samples[last === 0 ? 0 : foldBack(at, last)] as number;
    padded[length + last + at] = samples[last === 0 ? 0 : foldBack(last + at, last)] as number;
  }
  return padded;
}

/** An index beyond the end, reflected as often as it takes. */
function foldBack(index: number, last: number): number {
  const at = index % (2 * last);
  return at > last ? 2 * last - at : at;
}

/** Triangles that are even on the mel scale, each of height one. */
function melBands(config: FeatureConfig & { kind: 'log-mel' }, sampleRate: number): Band[] {
  const toMel = config.scale === 'htk' ? htkMel : slaneyMel;
  const fromMel = config.scale === 'htk' ? htkHertz : slaneyHertz;
  const [low, high] = [toMel(config.minHz), toMel(config.maxHz)];
  const edges = Array.from({ length: config.bins + 2 }, (_, index) =>
    fromMel(low + ((high - low) * index) / (config.bins + 1)),
  );
  return Array.from({ length: config.bins }, (_, index) =>
    triangle(
      edges[index] as number,
      edges[index + 1] as number,
      edges[index + 2] as number,
      config.fftSize,
      sampleRate,
    ),
  );
}

/** Triangles one step of the scale apart: semitones for twelve bins an octave. */
function pitchBands(config: FeatureConfig & { kind: 'log-frequency' }, sampleRate: number): Band[] {
  const center = (index: number) => config.minHz * 2 ** (index / config.binsPerOctave);
  return Array.from({ length: config.bins }, (_, index) =>
    triangle(center(index - 1), center(index), center(index + 1), config.fftSize, sampleRate),
  );
}

/** A triangle over the FFT's bins; one that falls between two bins takes both by their distance. */
function triangle(low: number, middle: number, high: number, fftSize: number, sampleRate: number): Band {
  const step = sampleRate / fftSize;
  const lowest = Math.min(low, middle - step);
  const highest = Math.max(high, middle + step);
  const start = Math.max(0, Math.ceil(lowest / step));
  const end = Math.min(fftSize / 2, Math.floor(highest / step));
  const weights = Float64Array.from({ length: end - start + 1 }, (_, at) => {
    const hertz = (start + at) * step;
    const slope =
      hertz <= middle ? (hertz - lowest) / (middle - lowest) : (highest - hertz) / (highest - middle);
    return Math.max(0, slope);
  });
  return { start, weights };
}

const htkMel = (hertz: number) => 2595 * Math.log10(1 + hertz / 700);
const htkHertz = (mel: number) => 700 * (10 ** (mel / 2595) - 1);

/** Slaney's Auditory Toolbox: linear below 1 kHz, logarithmic above. */
const slaneyMel = (hertz: number) =>
  hertz < 1000 ? (3 * hertz) / 200 : 15 + (27 * Math.log(hertz / 1000)) / Math.log(6.4);
const slaneyHertz = (mel: number) =>
  mel < 15 ? (200 * mel) / 3 : 1000 * Math.exp((Math.log(6.4) / 27) * (mel - 15));
