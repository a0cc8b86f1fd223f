import { createHash } from 'node:crypto';
import { mkdtempSync, readdirSync, readFileSync } from 'node:fs';
import { rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import FFT from 'fft.js';
import { afterAll, describe, expect, it } from 'vitest';
import { readWaveform } from '../../src/audio/waveform.ts';
import { random } from '../../src/config/random.ts';
import { readManifest } from '../../src/data/manifest.ts';
import { buildSoundWorld, soundWorldSettings } from '../../src/data/soundWorld/build.ts';
import {
  hertzOf,
  pitchedClasses,
  playSound,
  sampleRate,
  soundClasses,
} from '../../src/data/soundWorld/instruments.ts';
import { clipsOf, examplesOf } from '../../src/data/soundWorld/questions.ts';
import { drawPlan, drawScene, frameLabels, renderScene } from '../../src/data/soundWorld/scenes.ts';
import { worldText } from '../../src/data/soundWorld/text.ts';

const folder = mkdtempSync(join(tmpdir(), 'palkit-'));
afterAll(() => rm(folder, { recursive: true }));

function hashOf(path: string): string {
  const hash = createHash('sha256');
  for (const entry of readdirSync(path, { recursive: true, withFileTypes: true }).filter((found) =>
    found.isFile(),
  )) {
    hash.update(entry.name).update(readFileSync(join(entry.parentPath, entry.name)));
  }
  return hash.digest('hex');
}

const settings = soundWorldSettings.parse({});

describe('the sound world as a dataset', () => {
  it('is the same to the byte for the same settings, and whole', async () => {
    const split = { rounds: 1, presencePerClass: 1, describe: 2 };
    const small = { seed: 4, splits: { train: split, validation: split, test: split } };
    const [a, b] = [join(folder, 'a'), join(folder, 'b')];
    const fractions: number[] = [];
    await buildSoundWorld(a, small, (fraction) => fractions.push(fraction));
    await buildSoundWorld(b, small);
    expect(hashOf(a)).toBe(hashOf(b));
    expect(fractions.at(-1)).toBe(1);
    const examples = await readManifest(join(a, 'test.jsonl'));
    const { samples, sampleRate: rate } = await readWaveform(join(a, examples[0]?.audio ?? ''));
    expect([samples.length / rate, rate]).toEqual([3, 16_000]);
    expect(readdirSync(folder).filter((name) => name.includes('.tmp-'))).toEqual([]);
  });

  it('asks at least 400 choice questions in the test split', () => {
    const examples = clipsOf(settings.seed, 'test', settings.splits.test).flatMap((clip) =>
      examplesOf(clip, 'x.wav'),
    );
    expect(examples.filter((example) => example.kind === 'choice').length).toBeGreaterThanOrEqual(400);
  });

  for (const split of ['train', 'test'] as const) {
    it(`tells nothing by the wording: every answer equally often under every question text (${split})`, () => {
      const examples = clipsOf(settings.seed, split, settings.splits[split]).flatMap((clip) =>
        examplesOf(clip, 'x.wav'),
      );
      const counts = new Map<string, Map<string, number>>();
      for (const { kind, question, answer, options } of examples) {
        if (kind === 'open') continue;
        const own = counts.get(question) ?? new Map(options?.map((option) => [option, 0]));
        own.set(answer, (own.get(answer) ?? 0) + 1);
        counts.set(question, own);
      }
      for (const own of counts.values()) expect(new Set(own.values()).size).toBe(1);
    });
  }

  it('shares no scene between the splits', () => {
    const keys = (['train', 'validation', 'test'] as const).flatMap((split) =>
      clipsOf(settings.seed, split, settings.splits[split]).map(({ scene }) => JSON.stringify(scene.events)),
    );
    expect(new Set(keys).size).toBe(keys.length);
  });
});

/** The strongest frequency within ten percent of `near`, from a windowed spectrum with a parabola through its peak. */
function measuredHertz(samples: Float32Array, near: number): number {
  const size = 8192;
  const fft = new FFT(size);
  const spectrum = fft.createComplexArray();
  const window = (at: number) => 0.5 - 0.5 * Math.cos((2 * Math.PI * at) / size);
  fft.realTransform(
    spectrum,
    Array.from({ length: size }, (_, at) => window(at) * (samples[600 + at] ?? 0)),
  );
  const level = (bin: number) =>
    Math.log(Math.hypot(spectrum[2 * bin] as number, spectrum[2 * bin + 1] as number));
  const bins = Array.from({ length: size / 2 }, (_, bin) => bin);
  const close = bins.filter((bin) => Math.abs((bin * sampleRate) / size - near) < near / 10);
  const peak = close.reduce((best, bin) => (level(bin) > level(best) ? bin : best));
  const [left, middle, right] = [level(peak - 1), level(peak), level(peak + 1)];
  return ((peak + (left - right) / (2 * (left - 2 * middle + right))) * sampleRate) / size;
}

describe('the instruments', () => {
  for (const sound of pitchedClasses) {
    it(`${sound} plays in tune, within a tenth of a semitone`, () => {
      for (const pitch of [57, 64, 69, 76, 81]) {
        const samples = playSound(
          sound,
          { durationSeconds: 0.6, pitchSemitones: pitch },
          random(sound, pitch),
        );
        const semitones = 12 * Math.log2(measuredHertz(samples, hertzOf(pitch)) / hertzOf(pitch));
        expect(Math.abs(semitones)).toBeLessThan(0.1);
      }
    });
  }

  it('all sound, end silent, stay within bounds, and differ from draw to draw', () => {
    for (const sound of soundClasses) {
      const tone = { durationSeconds: 0.4, pitchSemitones: 69 };
      const [a, b] = [playSound(sound, tone, random(1, sound)), playSound(sound, tone, random(2, sound))];
      expect(Math.max(...a.map(Math.abs))).toBeCloseTo(1, 5);
      expect(Math.abs(a.at(-1) as number)).toBeLessThan(0.01);
      expect(a).not.toEqual(b);
      expect(a).toEqual(playSound(sound, tone, random(1, sound)));
    }
  });
});

describe('scenes', () => {
  const scenes = Array.from({ length: 300 }, (_, index) =>
    drawScene(drawPlan(random('plans', index)), `test/${index}`),
  );

  it('fit into the clip, in order', () => {
    for (const { events } of scenes) {
      for (const [index, { onsetSeconds }] of events.entries()) {
        expect(onsetSeconds).toBeGreaterThanOrEqual(0);
        expect(onsetSeconds).toBeLessThan(2.9);
        expect(onsetSeconds).toBeGreaterThanOrEqual(events[index - 1]?.onsetSeconds ?? 0);
      }
    }
  });

  it('sound as they say: intervals shrink when faster, notes rise when higher', () => {
    for (const { plan, events } of scenes) {
      const onsets = events.map((event) => event.onsetSeconds);
      const intervals = onsets.slice(1).map((onset, index) => onset - (onsets[index] as number));
      if (plan.kind === 'tempo') {
        for (const [index, interval] of intervals.slice(1).entries()) {
          if (plan.faster) expect(interval).toBeLessThan(intervals[index] as number);
          else expect(interval).toBeGreaterThan(intervals[index] as number);
        }
      }
      if (plan.kind === 'pair') {
        const [first, second] = events.map((event) => event.pitchSemitones as number) as [number, number];
        expect(Math.abs(second - first)).toBeGreaterThanOrEqual(3);
        expect(second > first).toBe(plan.higher);
      }
      if (plan.kind === 'repeat') expect(events).toHaveLength(plan.count);
    }
  });

  it('are loud where an event is and quiet where none is', () => {
    for (const scene of scenes.filter(({ plan }) => plan.kind === 'sequence').slice(0, 20)) {
      const { samples } = renderScene(scene);
      expect(Math.max(...samples.map(Math.abs))).toBeLessThan(1);
      const rms = (from: number, to: number) => {
        const part = samples.subarray(Math.round(from * sampleRate), Math.round(to * sampleRate));
        return Math.sqrt(part.reduce((total, value) => total + value * value, 0) / part.length);
      };
      const first = scene.events[0]?.onsetSeconds as number;
      expect(rms(first, first + 0.04)).toBeGreaterThan(3 * rms(0, Math.max(0.02, first - 0.01)));
    }
  });

  it('label their frames truly', () => {
    const scene = drawScene({ kind: 'repeat', sound: 'bell', count: 3 }, 'labels');
    const labels = frameLabels(scene, 10);
    expect(labels.count.at(-1)).toBe(3);
    expect(labels.onset.reduce((total, onset) => total + onset, 0)).toBe(3);
    expect(labels.active.flat().reduce((total, active) => total + active, 0)).toBeGreaterThanOrEqual(6);
    expect(labels.intervalSeconds.at(-1)).toBeCloseTo(
      (scene.events[2]?.onsetSeconds ?? 0) - (scene.events[1]?.onsetSeconds ?? 0),
      9,
    );
  });
});

describe('the text of the world', () => {
  it('is the same for the same seed, asks and answers in the shape of the prompt', () => {
    for (let index = 0; index < 200; index++) {
      const text = worldText(1, index);
      expect(text).toBe(worldText(1, index));
      const questions = text.split('\n').filter((line) => line.startsWith('Question: '));
      expect(questions.length).toBeGreaterThanOrEqual(1);
      for (const question of questions) expect(question).toMatch(/^Question: .+[?.] Answer: [a-z ]+$/);
    }
    expect(worldText(1, 0)).not.toBe(worldText(2, 0));
  });
});
