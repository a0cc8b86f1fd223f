/** Sample rate conversion by a windowed sinc, one filter per phase. */
import type { Waveform } from './waveform.ts';

const zeroCrossings = 24;
const kaiserBeta = 9;

/**
 * Resamples to another rate, band-limited to 0.95 of the lower of the two. Of the lower rate's band, 85 %
 * passes within 0.1 dB; tones 2.5 % above its end fold back 34 dB down, those 7 % above it more than 85 dB.
 * @throws RangeError when a rate is not a whole number of Hz
 */
export function resample(waveform: Waveform, sampleRate: number): Waveform {
  if (waveform.sampleRate === sampleRate) return waveform;
  for (const rate of [waveform.sampleRate, sampleRate])
    if (!Number.isInteger(rate) || rate < 1) throw new RangeError(`a sample rate of ${rate} Hz`);
  const { samples } = waveform;
  const divisor = greatestCommonDivisor(waveform.sampleRate, sampleRate);
  const [up, down] = [sampleRate / divisor, waveform.sampleRate / divisor];
  const filters = phaseFilters(up, down);
  const reach = (filters[0]?.length ?? 1) >> 1;
  const length = Math.ceil((samples.length * up) / down);
  const result = new Float32Array(length);
  for (let at = 0; at < length; at++) {
    const position = at * down;
    const filter = filters[position % up] as Float64Array;
    const first = Math.floor(position / up) - reach + 1;
    let total = 0;
    for (let tap = Math.max(0, -first); tap < filter.length && first + tap < samples.length; tap++) {
      total += (filter[tap] as number) * (samples[first + tap] as number);
    }
    result[at] = total;
  }
  return { samples: result, sampleRate };
}

/** For every fractional position of an output sample between two input samples, the weights around it. */
function phaseFilters(up: number, down: number): Float64Array[] {
  const cutoff = 0.95 * Math.min(1, up / down);
  const reach = Math.ceil(zeroCrossings / cutoff);
  const scale = cutoff / bessel(kaiserBeta);
  return Array.from({ length: up }, (_, phase) =>
    Float64Array.from({ length: 2 * reach }, (_tap, tap) => {
      const distance = tap - reach + 1 - phase / up;
      const edge = Math.min(1, Math.abs(distance / reach));
      return scale * sinc(cutoff * distance) * bessel(kaiserBeta * Math.sqrt(1 - edge * edge));
    }),
  );
}

function sinc(x: number): number {
  return x === 0 ? 1 : Math.sin(Math.PI * x) / (Math.PI * x);
}

/** The modified Bessel function of order zero, by its series. */
function bessel(x: number): number {
  let [term, total] = [1, 1];
  for (let order = 1; term > 1e-12 * total; order++) {
    term *= (x / (2 * order)) ** 2;
    total += term;
  }
  return total;
}

function greatestCommonDivisor(a: number, b: number): number {
  return b === 0 ? a : greatestCommonDivisor(b, a % b);
}
