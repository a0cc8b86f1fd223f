/** What an audio encoder is, and what its manifest may say. */

import { z } from 'zod';
import * as ort from '../engine/onnx/runtime.ts';
import type { Tensor } from '../tensor/tensor.ts';
import { externalTensor } from './externalData.ts';
import { featureSchema } from './features.ts';
import type { Waveform } from './waveform.ts';

export class EncoderError extends Error {
  override readonly name = 'EncoderError';
}

export interface Encoder {
  readonly name: string;
  /** Width of an embedding. */
  readonly width: number;
  readonly framesPerSecond: number;
  /** sha256 over the manifest and the model files. */
  readonly fingerprint: string;
  /**
   * Embeddings of a clip, [frames, width].
   * @throws EncoderError when the clip is longer than the encoder takes, or holds what is not a number
   */
  encode(waveform: Waveform): Promise<Tensor & { dtype: 'float32' }>;
  dispose(): Promise<void>;
}

const common = {
  name: z.string().min(1),
  description: z.string(),
  licence: z.string(),
  citation: z.string(),
  sampleRate: z.int().min(1000).max(384_000),
  width: z.int().min(1).max(65_536),
  framesPerSecond: z.number().positive(),
};

const packagedModel = z
  .string()
  .regex(/^([\w-][\w.-]*\/)*[\w-][\w.-]*\.onnx$/, "a path inside the package's folder");

export const encoderManifestSchema = z.discriminatedUnion('kind', [
  /** A spectrogram, normalised, into one ONNX model: `features` [1, hops, bins] -> `embeddings` [1, tokens, width]. */
  z.strictObject({
    kind: z.literal('features'),
    ...common,
    features: featureSchema,
    /** (x - mean) / scale */
    normalize: z.strictObject({ mean: z.number(), scale: z.number().positive() }),
    /** Feature frames that the model takes; shorter clips are filled up with silence. */
    hops: z.int().min(1),
    tokens: z.int().min(1),
    model: z.string().regex(/^[\w.-]+\.onnx$/, 'a plain file name beside the manifest'),
  }),
  /** Google's speech embedding as openWakeWord runs it; the models ship in an npm package. */
  z.strictObject({
    kind: z.literal('openwakeword'),
    ...common,
    package: z.string().regex(/^(@[a-z0-9][\w.-]*\/)?[a-z0-9][\w.-]*$/, 'the name of an npm package'),
    melspectrogram: packagedModel,
    embedding: packagedModel,
    maxSeconds: z.number().positive(),
  }),
]);

export type EncoderManifest = z.infer<typeof encoderManifestSchema>;

/**
 * A session for a model that came from somewhere.
 * @throws EncoderError when ONNX Runtime does not take it, or its weights lie in other files
 */
export async function createSession(
  bytes: Uint8Array,
  where: string,
  threads: number,
): Promise<ort.InferenceSession> {
  let external: string | undefined;
  try {
    external = externalTensor(bytes);
  } catch (error) {
    throw notRunnable(where, error);
  }
  if (external !== undefined) {
    throw new EncoderError(
      `${where}: the tensor "${external}" lies in another file; put all weights into the model's own file`,
    );
  }
  try {
    return await ort.InferenceSession.create(bytes, {
      intraOpNumThreads: threads,
      interOpNumThreads: 1,
      enableMemPattern: false,
      logSeverityLevel: 3,
    });
  } catch (error) {
    throw notRunnable(where, error);
  }
}

function notRunnable(where: string, error: unknown): EncoderError {
  return new EncoderError(
    `${where}: not a model that ONNX Runtime runs (${error instanceof Error ? error.message : error})`,
  );
}

/**
 * Runs a model on one input and gives its one output of interest.
 * @throws EncoderError when it fails, or when the output is not float32 or not a number everywhere
 */
export async function runModel(
  session: ort.InferenceSession,
  where: string,
  { input, values, shape, output }: { input: string; values: Float32Array; shape: number[]; output: string },
): Promise<{ readonly data: Float32Array; readonly shape: readonly number[] }> {
  let found: ort.Tensor | undefined;
  try {
    found = (await session.run({ [input]: new ort.Tensor('float32', values, shape) }, [output]))[output];
  } catch (error) {
    throw new EncoderError(
      `${where}: failed on an input of ${shape.join(' x ')} (${error instanceof Error ? error.message : error})`,
    );
  }
  const data = found?.data;
  if (found === undefined || !(data instanceof Float32Array))
    throw new EncoderError(`${where}: its output "${output}" is not float32`);
  if (!data.every(Number.isFinite))
    throw new EncoderError(`${where}: its output "${output}" holds what is not a number`);
  return { data, shape: found.dims };
}

/** A clip that would silently give embeddings of nonsense is refused. */
export function mustBeFinite({ samples, sampleRate }: Waveform): void {
  const bad = samples.findIndex((sample) => !Number.isFinite(sample));
  if (bad >= 0) throw new EncoderError(`sample ${bad} of the clip is not a finite number`);
  if (samples.length === 0) throw new EncoderError('the clip holds no samples');
  if (!Number.isInteger(sampleRate) || sampleRate < 1)
    throw new EncoderError(`the clip's sample rate is ${sampleRate}, not a whole number of Hz`);
}
