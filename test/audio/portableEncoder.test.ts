/** Encoders for plain ONNX Runtime: what they compute in front of their models, and what may go out. */
import { copyFile, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, it } from 'vitest';
import { extractFeatures, type FeatureConfig } from '../../src/audio/features.ts';
import { portableEncoder } from '../../src/audio/portableEncoder.ts';
import { random } from '../../src/config/random.ts';
import { plain } from '../../src/engine/engine.ts';
import { onnxEngine } from '../../src/engine/onnx/engine.ts';
import type { Program } from '../../src/tensor/program.ts';
import { float32, int32 } from '../../src/tensor/tensor.ts';

const engine = onnxEngine();
let folder: string;
const features: FeatureConfig = {
  kind: 'log-mel',
  windowMs: 64,
  hopMs: 5,
  fftSize: 1024,
  minHz: 60,
  maxHz: 7600,
  bins: 40,
  scale: 'htk',
  floor: 1e-4,
};
const [hops, sampleRate] = [12, 16_000];

beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'palkit-'));
  const manifest = {
    kind: 'features',
    name: 'own',
    description: 'A window of many hops',
    licence: 'MIT',
    citation: 'none',
    sampleRate,
    width: 4,
    framesPerSecond: 10,
    features,
    normalize: { mean: 0, scale: 1 },
    hops,
    tokens: 2,
    model: 'model.onnx',
  };
  await writeFile(join(folder, 'encoder.yaml'), JSON.stringify(manifest));
  await copyFile('encoders/timbre/encoder.onnx', join(folder, 'model.onnx'));
});
afterAll(async () => {
  await engine.dispose();
  await rm(folder, { recursive: true });
});

it.each([80, 100, 250, 511, 512, 513, 960])('mirrors a clip of %i samples at its ends', async (length) => {
  const { samples: room, steps } = await portableEncoder(folder, 2);
  const draw = random(3, 'clip');
  const clip = Float32Array.from({ length }, () => draw.normal());
  const waveform = new Float32Array(room);
  waveform.set(clip);
  const executable = await engine.compile(steps[0]?.model as Program);
  const feeds = { waveform: float32([1, room], waveform), samples: int32([1], [length]) };
  const found = plain(await executable.run(feeds), 'features').data as Float32Array;
  await executable.dispose();
  const expected = extractFeatures({ samples: clip, sampleRate }, features);
  expect(expected.frames).toBeGreaterThan(0);
  for (const [at, value] of expected.data.entries())
    expect(Math.abs((found[at] as number) - value)).toBeLessThan(1e-4);
});

it('names the model that is missing', async () => {
  await rm(join(folder, 'model.onnx'));
  await expect(portableEncoder(folder, 2)).rejects.toThrow(
    `${join(folder, 'model.onnx')}: cannot be read (ENOENT); put the encoder's model there`,
  );
});
