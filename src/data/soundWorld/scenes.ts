/** Scenes: what sounds when, as data, and as three seconds of audio. */
import { type Random, random } from '../../config/random.ts';
import { pitchedClasses, playSound, type SoundClass, sampleRate, soundClasses } from './instruments.ts';

export const clipSeconds = 3;

export interface SoundEvent {
  readonly sound: SoundClass;
  readonly onsetSeconds: number;
  readonly durationSeconds: number;
  /** MIDI note number; null for sounds without a pitch. */
  readonly pitchSemitones: number | null;
}

export type SceneKind = 'repeat' | 'tempo' | 'pair' | 'sequence' | 'overlap';

/** What is asked of a scene; everything else about it is drawn. */
export type ScenePlan =
  | { readonly kind: 'repeat'; readonly sound: SoundClass; readonly count: number }
  | { readonly kind: 'tempo'; readonly sound: SoundClass; readonly faster: boolean }
  | { readonly kind: 'pair'; readonly sound: (typeof pitchedClasses)[number]; readonly higher: boolean }
  | { readonly kind: 'sequence'; readonly sounds: readonly SoundClass[] }
  | { readonly kind: 'overlap'; readonly sounds: readonly [SoundClass, SoundClass] };

export interface Scene {
  readonly plan: ScenePlan;
  /** In order of onset. */
  readonly events: readonly SoundEvent[];
  /** Names the random stream that the audio is drawn from. */
  readonly key: string;
}

const between = (draw: Random, low: number, high: number) => low + (high - low) * draw.uniform();

const lowestPitch = 57;
const highestPitch = 81;

function isPitched(sound: SoundClass): sound is (typeof pitchedClasses)[number] {
  return (pitchedClasses as readonly SoundClass[]).includes(sound);
}

function drawPitch(sound: SoundClass, draw: Random): number | null {
  return isPitched(sound) ? lowestPitch + draw.integer(highestPitch - lowestPitch + 1) : null;
}

/** Draws the events of a plan. */
export function drawScene(plan: ScenePlan, key: string): Scene {
  const draw = random('scene', key);
  return { plan, key, events: drawEvents(plan, draw) };
}

function drawEvents(plan: ScenePlan, draw: Random): SoundEvent[] {
  switch (plan.kind) {
    case 'repeat': {
      const interval = between(draw, 0.44, 0.56);
      const start = between(draw, 0.05, clipSeconds - 0.4 - interval * (plan.count - 1));
      const pitchSemitones = drawPitch(plan.sound, draw);
      return Array.from({ length: plan.count }, (_, index) => ({
        sound: plan.sound,
        onsetSeconds: start + interval * index + between(draw, -0.02, 0.02),
        durationSeconds: between(draw, 0.25, 0.38),
        pitchSemitones,
      }));
    }
    case 'tempo': {
      const ratio = between(draw, 0.6, 0.74);
      const longest = between(draw, 0.75, 0.95);
      const falling = [0, 1, 2, 3].map((index) => longest * ratio ** index);
      const intervals = plan.faster ? falling : falling.reverse();
      const total = intervals.reduce((sum, interval) => sum + interval, 0);
      let onset = between(draw, 0.05, clipSeconds - 0.25 - total);
      const pitchSemitones = drawPitch(plan.sound, draw);
      return [0, ...intervals].map((interval) => {
        onset += interval;
        return { sound: plan.sound, onsetSeconds: onset, durationSeconds: 0.22, pitchSemitones };
      });
    }
    case 'pair': {
      const step = 3 + draw.integer(8);
      const low = lowestPitch + draw.integer(highestPitch - lowestPitch - step + 1);
      const pitches = plan.higher ? [low, low + step] : [low + step, low];
      const first = between(draw, 0.05, 0.7);
      const gap = between(draw, 0.8, 1.2);
      return pitches.map((pitchSemitones, index) => ({
        sound: plan.sound,
        onsetSeconds: first + gap * index,
        durationSeconds: between(draw, 0.5, 0.75),
        pitchSemitones,
      }));
    }
    case 'sequence': {
      const slot = (clipSeconds - 0.1) / plan.sounds.length;
      return plan.sounds.map((sound, index) => {
        const durationSeconds = between(draw, 0.4, Math.min(0.8, slot - 0.15));
        const slack = slot - durationSeconds - 0.05;
        const onsetSeconds = 0.05 + slot * index + between(draw, 0, slack);
        return { sound, onsetSeconds, durationSeconds, pitchSemitones: drawPitch(sound, draw) };
      });
    }
    case 'overlap': {
      const onsetSeconds = between(draw, 0.1, 2);
      return plan.sounds.map((sound) => ({
        sound,
        onsetSeconds,
        durationSeconds: between(draw, 0.6, 0.85),
        pitchSemitones: drawPitch(sound, draw),
      }));
    }
  }
}

/** A plan of a kind with everything drawn at random. */
export function drawPlan(draw: Random): ScenePlan {
  const kind = draw.pick(['repeat', 'tempo', 'pair', 'sequence', 'overlap'] as const);
  const [first, second, third] = draw.shuffle(soundClasses) as [SoundClass, SoundClass, SoundClass];
  switch (kind) {
    case 'repeat':
      return { kind, sound: first, count: 1 + draw.integer(5) };
    case 'tempo':
      return { kind, sound: first, faster: draw.integer(2) === 0 };
    case 'pair':
      return { kind, sound: draw.pick(pitchedClasses), higher: draw.integer(2) === 0 };
    case 'sequence':
      return { kind, sounds: draw.integer(2) === 0 ? [first, second] : [first, second, third] };
    case 'overlap':
      return { kind, sounds: [first, second] };
  }
}

/** The scene as audio: 3 s, mono, 16 kHz, over a quiet floor of noise. */
export function renderScene(scene: Scene): { samples: Float32Array; sampleRate: number } {
  const draw = random('audio', scene.key);
  const samples = new Float32Array(clipSeconds * sampleRate);
  const level = between(draw, 0.25, 0.6);
  const repeats = scene.plan.kind !== 'sequence' && scene.plan.kind !== 'overlap';
  const timbre = draw.integer(2 ** 30);
  for (const [index, event] of scene.events.entries()) {
    // Repetitions come from one instrument: the same timbre, struck anew.
    const player = random('timbre', timbre, repeats ? 0 : index);
    const sound = playSound(event.sound, event, player);
    const loudness = level * between(draw, 0.8, 1);
    const start = Math.round(event.onsetSeconds * sampleRate);
    const length = Math.min(sound.length, samples.length - start);
    for (let at = 0; at < length; at++) {
      samples[start + at] = (samples[start + at] as number) + loudness * (sound[at] as number);
    }
  }
  addFloor(samples, draw);
  let peak = 1;
  for (const value of samples) peak = Math.max(peak, Math.abs(value) / 0.99);
  if (peak > 1) for (let at = 0; at < samples.length; at++) samples[at] = (samples[at] as number) / peak;
  return { samples, sampleRate };
}

/** Background noise between -66 and -46 dB, cheap: the floor needs no good generator. */
function addFloor(samples: Float32Array, draw: Random): void {
  const floor = 10 ** (-between(draw, 46, 66) / 20);
  let state = 1 + draw.integer(2 ** 30);
  for (let at = 0; at < samples.length; at++) {
    state = (Math.imul(state, 1664525) + 1013904223) | 0;
    samples[at] = (samples[at] as number) + (floor * state) / 2 ** 31;
  }
}

export interface FrameLabels {
  /** 1 where a class sounds, [frames][class]. */
  readonly active: readonly (readonly number[])[];
  /** 1 in the frame where an event begins. */
  readonly onset: readonly number[];
  /** Note of the newest sounding pitched event; NaN where none sounds. */
  readonly pitchSemitones: readonly number[];
  /** Events begun so far. */
  readonly count: readonly number[];
  /** Seconds between the two newest onsets; 0 before the second. */
  readonly intervalSeconds: readonly number[];
}

/** What is true in each frame of a scene; the targets that audio encoders learn. */
export function frameLabels({ events }: Scene, framesPerSecond: number): FrameLabels {
  const times = Array.from(
    { length: clipSeconds * framesPerSecond },
    (_, frame) => (frame + 1) / framesPerSecond,
  );
  const sounding = (time: number) =>
    events.filter(
      ({ onsetSeconds, durationSeconds }) =>
        onsetSeconds < time &&
        onsetSeconds + Math.max(durationSeconds, 1 / framesPerSecond) > time - 1 / framesPerSecond,
    );
  const begun = (time: number) => [
    ...new Set(events.filter((event) => event.onsetSeconds < time).map((event) => event.onsetSeconds)),
  ];
  return {
    active: times.map((time) =>
      soundClasses.map((sound) => (sounding(time).some((event) => event.sound === sound) ? 1 : 0)),
    ),
    onset: times.map((time) => (begun(time).length > begun(time - 1 / framesPerSecond).length ? 1 : 0)),
    pitchSemitones: times.map(
      (time) =>
        sounding(time).findLast((event) => event.pitchSemitones !== null)?.pitchSemitones ?? Number.NaN,
    ),
    count: times.map((time) => begun(time).length),
    intervalSeconds: times.map((time) => {
      const [last, before] = begun(time).reverse();
      return last === undefined || before === undefined ? 0 : last - before;
    }),
  };
}
