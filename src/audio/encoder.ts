/** Audio encoders: a folder with a manifest and an ONNX model, run over waveforms. */
import { createHash } from 'node:crypto';
import { existsSync } from 'node:fs';
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import * as ort from 'onnxruntime-node';
import { parse } from 'yaml';
import { locate } from '../config/locate.ts';
import { float32 } from '../tensor/tensor.ts';
import {
  createSession,
  type Encoder,
  EncoderError,
  type EncoderManifest,
  encoderManifestSchema,
} from './encoderManifest.ts';
import { extractFeatures } from './features.ts';
import { openWakeWord } from './openWakeWord.ts';
import { resample } from './resample.ts';

/**
 * Loads an encoder by its name in encoders/, or by its folder.
 * @throws EncoderError naming the file and what is wrong with it, or what to install
 */
export async function loadEncoder(
  nameOrFolder: string,
  { threads = 2 }: { threads?: number } = {},
): Promise<Encoder> {
  const named = locate(join('encoders', nameOrFolder));
  const folder = existsSync(join(named, 'encoder.yaml')) ? named : nameOrFolder;
  const path = join(folder, 'encoder.yaml');
  const text = await readFile(path, 'utf8').catch(() => {
    throw new EncoderError(
      `encoder "${nameOrFolder}": neither encoders/${nameOrFolder} nor the folder ${folder} holds an encoder.yaml`,
    );
  });
  const parsed = encoderManifestSchema.safeParse(parse(text, { maxAliasCount: 10 }));
  if (!parsed.success) {
    const issues = parsed.error.issues.map((issue) => `  ${issue.path.join('.')}: ${issue.message}`);
    throw new EncoderError(`${path}: not an encoder\n${issues.join('\n')}`);
  }
  const manifest = parsed.data;
  const hash = createHash('sha256').update(text);
  return manifest.kind === 'features'
    ? featureEncoder(manifest, folder, hash, threads)
    : openWakeWord(manifest, hash, threads);
}

async function featureEncoder(
  manifest: EncoderManifest & { kind: 'features' },
  folder: string,
  hash: ReturnType<typeof createHash>,
  threads: number,
): Promise<Encoder> {
  const { name, width, hops, tokens, features, normalize, sampleRate } = manifest;
  const path = join(folder, manifest.model);
  const bytes = await readFile(path).catch((error: NodeJS.ErrnoException) => {
    throw new EncoderError(`${path}: the encoder's model cannot be read (${error.code})`);
  });
  const session = await createSession(bytes, path, threads);
  return {
    name,
    width,
    framesPerSecond: manifest.framesPerSecond,
    fingerprint: hash.update(bytes).digest('hex'),
    async encode(waveform) {
      const found = extractFeatures(resample(waveform, sampleRate), features);
      if (found.frames > hops) {
        const seconds = (count: number) => ((count * features.hopMs) / 1000).toFixed(2);
        throw new EncoderError(
          `the clip is ${seconds(found.frames)} s long, encoder "${name}" takes up to ${seconds(hops)} s: cut it, e.g. ` +
            `ffmpeg -i IN.wav -t ${seconds(hops)} OUT.wav`,
        );
      }
      // Silence is the floor of the features.
      const input = new Float32Array(hops * found.bins).fill(
        (Math.log(features.floor) - normalize.mean) / normalize.scale,
      );
      for (let at = 0; at < found.data.length; at++)
        input[at] = ((found.data[at] as number) - normalize.mean) / normalize.scale;
      const outputs = await session.run({
        features: new ort.Tensor('float32', input, [1, hops, found.bins]),
      });
      const embeddings = outputs.embeddings?.data;
      if (!(embeddings instanceof Float32Array) || embeddings.length !== tokens * width) {
        throw new EncoderError(
          `${path}: gives no embeddings of ${tokens} x ${width}, as its manifest promises`,
        );
      }
      return float32([tokens, width], embeddings.slice());
    },
    dispose: () => session.release(),
  };
}
