/** What an audio encoder is, and what its manifest may say. */
import * as ort from 'onnxruntime-node';
import { z } from 'zod';
import type { Tensor } from '../tensor/tensor.ts';
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
   * @throws EncoderError when the clip is longer than the encoder takes
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
    package: z.string(),
    melspectrogram: z.string(),
    embedding: z.string(),
    maxSeconds: z.number().positive(),
  }),
]);

export type EncoderManifest = z.infer<typeof encoderManifestSchema>;

/** A session for a model that came from somewhere: external data is refused by giving bytes, not a path. */
export async function createSession(
  bytes: Uint8Array,
  where: string,
  threads: number,
): Promise<ort.InferenceSession> {
  try {
    return await ort.InferenceSession.create(bytes, {
      intraOpNumThreads: threads,
      interOpNumThreads: 1,
      enableMemPattern: false,
      logSeverityLevel: 3,
    });
  } catch (error) {
    throw new EncoderError(
      `${where}: not a model that ONNX Runtime runs (${error instanceof Error ? error.message : error})`,
    );
  }
}
