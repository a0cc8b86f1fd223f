/** Sample rate conversion by a windowed sinc. */
import type { Waveform } from './waveform.ts';

const zeroCrossings = 24;
const kaiserBeta = 9;

/** Resamples to another rate; band-limited to the lower of the two, so nothing folds back. */
export function resample(waveform: Waveform, sampleRate: number): Waveform {
  if (waveform.sampleRate === sampleRate) return waveform;
  const { samples } = waveform;
  const ratio = sampleRate / waveform.sampleRate;
  const cutoff = 0.95 * Math.min(1, ratio);
  const halfWidth = zeroCrossings / cutoff;
  const length = Math.round(samples.length * ratio);
  const result = new Float32Array(length);
  const scale = 1 / bessel(kaiserBeta);
  for (let at = 0; at < length; at++) {
    const center = at / ratio;
    const first = Math.max(0, Math.ceil(center - halfWidth));
    const last = Math.min(samples.length - 1, Math.floor(center + halfWidth));
    let total = 0;
    for (let index = first; index <= last; index++) {
      const distance = index - center;
      const edge = distance / halfWidth;
      const window = bessel(kaiserBeta * Math.sqrt(Math.max(0, 1 - edge * edge))) * scale;
      total += (samples[index] as number) * cutoff * sinc(cutoff * distance) * window;
    }
    result[at] = total;
  }
  return { samples: result, sampleRate };
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
