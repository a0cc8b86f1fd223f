/** Sounds by physical modelling: plucked strings, struck modes, blown and swept oscillators. No samples. */
import type { Random } from '../../config/random.ts';

export const soundClasses = ['guitar', 'flute', 'drum', 'bell', 'siren', 'bird', 'noise', 'clock'] as const;
export type SoundClass = (typeof soundClasses)[number];

/** Classes that play a note; the others have no pitch of their own. */
export const pitchedClasses = ['guitar', 'flute', 'bell'] as const satisfies readonly SoundClass[];

export const sampleRate = 16_000;

export interface Tone {
  readonly durationSeconds: number;
  /** MIDI note number, 69 is 440 Hz; null for sounds without a pitch. */
  readonly pitchSemitones: number | null;
}

/** Frequency of a MIDI note number, in Hz. */
export function hertzOf(pitchSemitones: number): number {
  return 440 * 2 ** ((pitchSemitones - 69) / 12);
}

/** Samples of one sound at 16 kHz with a peak of one; every draw differs in timbre. */
export function playSound(sound: SoundClass, tone: Tone, random: Random): Float32Array {
  const samples = instruments[sound](Math.round(tone.durationSeconds * sampleRate), tone, random);
  fadeOut(samples, 0.02);
  return normalizePeak(samples);
}

type Instrument = (length: number, tone: Tone, random: Random) => Float32Array;

const between = (random: Random, low: number, high: number) => low + (high - low) * random.uniform();

function mustPitch({ pitchSemitones }: Tone): number {
  if (pitchSemitones === null) throw new RangeError('this sound needs a pitch');
  return hertzOf(pitchSemitones);
}

/** A sum of decaying sinusoids, each by a two-term recursion. */
function addModes(
  samples: Float32Array,
  modes: readonly (readonly [hertz: number, level: number, decaySeconds: number])[],
): void {
  for (const [hertz, level, decaySeconds] of modes) {
    if (hertz > 0.45 * sampleRate) continue;
    const decay = Math.exp(-1 / (decaySeconds * sampleRate));
    const turn = 2 * decay * Math.cos((2 * Math.PI * hertz) / sampleRate);
    const shrink = decay * decay;
    let before = 0;
    let now = level * Math.sin((2 * Math.PI * hertz) / sampleRate);
    for (let at = 0; at < samples.length; at++) {
      samples[at] = (samples[at] as number) + now;
      const next = turn * now - shrink * before;
      before = now;
      now = next;
    }
  }
}

const instruments: { readonly [S in SoundClass]: Instrument } = {
  /** Karplus and Strong 1983: a burst of noise in a lossy delay line, tuned by an allpass. */
  guitar: (length, tone, random) => {
    const samples = new Float32Array(length);
    const period = sampleRate / mustPitch(tone);
    const blend = between(random, 0.4, 0.5);
    const delay = Math.floor(period - blend - 0.2);
    const fraction = period - blend - delay;
    const allpass = (1 - fraction) / (1 + fraction);
    const loss = between(random, 0.985, 0.997);
    const brightness = between(random, 0.3, 0.9);
    const line = new Float32Array(delay);
    let smooth = 0;
    for (let at = 0; at < delay; at++) {
      smooth += brightness * (2 * random.uniform() - 1 - smooth);
      line[at] = smooth;
    }
    let [previous, passedIn, passedOut, head] = [0, 0, 0, 0];
    for (let at = 0; at < length; at++) {
      const now = line[head] as number;
      const damped = loss * ((1 - blend) * now + blend * previous);
      passedOut = allpass * damped + passedIn - allpass * passedOut;
      passedIn = damped;
      previous = now;
      line[head] = passedOut;
      head = head + 1 === delay ? 0 : head + 1;
      samples[at] = now;
    }
    return samples;
  },
  /** A few harmonics with vibrato, and the breath that excites them. */
  flute: (length, tone, random) => {
    const samples = new Float32Array(length);
    const hertz = mustPitch(tone);
    const [second, third] = [between(random, 0.15, 0.5), between(random, 0.05, 0.25)];
    const vibrato = between(random, 0.001, 0.006);
    const breath = between(random, 0.05, 0.2);
    const attack = between(random, 0.03, 0.07) * sampleRate;
    const step = (2 * Math.PI * hertz) / sampleRate;
    let [phase, wobble, air] = [0, random.uniform() * 6, 0];
    for (let at = 0; at < length; at++) {
      wobble += (2 * Math.PI * 5.5) / sampleRate;
      phase += step * (1 + vibrato * Math.sin(wobble));
      air += 0.3 * (2 * random.uniform() - 1 - air);
      const envelope = Math.min(1, at / attack) * Math.min(1, (length - at) / attack);
      const wave = Math.sin(phase) + second * Math.sin(2 * phase) + third * Math.sin(3 * phase);
      samples[at] = envelope * (wave + breath * air);
    }
    return samples;
  },
  /** The modes of a circular membrane, and the stick. */
  drum: (length, _, random) => {
    const samples = new Float32Array(length);
    const hertz = between(random, 80, 170);
    const decay = between(random, 0.05, 0.12);
    const ratios = [1, 1.593, 2.135, 2.295, 2.653, 2.917];
    addModes(
      samples,
      ratios.map(
        (ratio, index) => [hertz * ratio, between(random, 0.4, 1) / (1 + index), decay / ratio] as const,
      ),
    );
    let level = between(random, 0.3, 0.8);
    for (let at = 0; at < Math.min(length, 900); at++) {
      samples[at] = (samples[at] as number) + level * (2 * random.uniform() - 1);
      level *= 0.994;
    }
    return samples;
  },
  /** The partials of a church bell: hum, prime, tierce, quint, nominal and above. */
  bell: (length, tone, random) => {
    const samples = new Float32Array(length);
    const hertz = mustPitch(tone);
    const decay = between(random, 0.3, 0.8);
    const partials = [0.5, 1, 1.183, 1.506, 2, 2.514, 2.662, 3.011, 4.166, 5.433];
    addModes(
      samples,
      partials.map((ratio) => {
        const level = ratio === 1 ? 1.2 : between(random, 0.3, 0.8) / Math.max(1, ratio / 2.5);
        return [hertz * ratio, level, decay / Math.sqrt(Math.max(0.7, ratio))] as const;
      }),
    );
    return samples;
  },
  /** A tone rich in harmonics that sweeps up and down again. */
  siren: (length, _, random) => {
    const samples = new Float32Array(length);
    const [low, high] = [between(random, 350, 550), between(random, 900, 1400)];
    const drive = between(random, 1.5, 4);
    let phase = 0;
    for (let at = 0; at < length; at++) {
      const sweep = 0.5 - 0.5 * Math.cos((2 * Math.PI * at) / length);
      phase += (2 * Math.PI * (low + (high - low) * sweep)) / sampleRate;
      samples[at] = Math.tanh(drive * Math.sin(phase)) * Math.min(1, at / 400);
    }
    return samples;
  },
  /** A fast, high chirp with a trill. */
  bird: (length, _, random) => {
    const samples = new Float32Array(length);
    const [start, bend] = [between(random, 2400, 3600), between(random, -900, 1800)];
    const trill = between(random, 18, 32);
    const chirp = Math.min(length, Math.round(between(random, 0.14, 0.24) * sampleRate));
    let phase = 0;
    for (let at = 0; at < chirp; at++) {
      const progress = at / chirp;
      phase += (2 * Math.PI * (start + bend * progress)) / sampleRate;
      const shape =
        Math.sin(Math.PI * progress) * (0.7 + 0.3 * Math.sin((2 * Math.PI * trill * at) / sampleRate));
      samples[at] = shape * (Math.sin(phase) + 0.15 * Math.sin(2 * phase));
    }
    return samples;
  },
  /** A burst of noise of some colour. */
  noise: (length, _, random) => {
    const samples = new Float32Array(length);
    const [color, bright] = [between(random, 0.15, 0.9), random.integer(2) === 0];
    const attack = between(random, 0.005, 0.04) * sampleRate;
    const fall = 2 / length;
    let low = 0;
    for (let at = 0; at < length; at++) {
      const white = 2 * random.uniform() - 1;
      low += color * (white - low);
      samples[at] = (bright ? white - 0.5 * low : low) * Math.min(1, at / attack) * Math.exp(-at * fall);
    }
    return samples;
  },
  /** One tick: two high, very short modes and a small body. */
  clock: (length, _, random) => {
    const samples = new Float32Array(length);
    addModes(samples, [
      [between(random, 2200, 3200), 1, between(random, 0.004, 0.008)],
      [between(random, 4200, 5600), 0.7, 0.004],
      [between(random, 900, 1300), 0.4, 0.012],
    ]);
    return samples;
  },
};

function fadeOut(samples: Float32Array, seconds: number): void {
  const length = Math.min(samples.length, Math.round(seconds * sampleRate));
  for (let at = 0; at < length; at++) {
    const index = samples.length - 1 - at;
    samples[index] = ((samples[index] as number) * at) / length;
  }
}

function normalizePeak(samples: Float32Array): Float32Array {
  let peak = 1e-9;
  for (const value of samples) peak = Math.max(peak, Math.abs(value));
  for (let at = 0; at < samples.length; at++) samples[at] = (samples[at] as number) / peak;
  return samples;
}
