/** Audio encoders: a folder with a manifest and an ONNX model, run over waveforms. */
import { createHash } from 'node:crypto';
import { existsSync } from 'node:fs';
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { parse } from 'yaml';
import { locate } from '../config/locate.ts';
import type { InferenceSession } from '../engine/onnx/runtime.ts';
import { float32 } from '../tensor/tensor.ts';
import {
  createSession,
  type Encoder,
  EncoderError,
  type EncoderManifest,
  encoderManifestSchema,
  mustBeFinite,
  runModel,
} from './encoderManifest.ts';
import { checkFeatures, extractFeatures } from './features.ts';
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
  const { manifest, text, folder } = await readEncoderManifest(nameOrFolder);
  const hash = createHash('sha256').update(text);
  return manifest.kind === 'features'
    ? featureEncoder(manifest, folder, hash, threads)
    : openWakeWord(manifest, hash, threads);
}

/**
 * Reads an encoder's manifest, by the encoder's name in encoders/ or by its folder.
 * @throws EncoderError naming the file and what is wrong with it
 */
export async function readEncoderManifest(
  nameOrFolder: string,
): Promise<{ manifest: EncoderManifest; text: string; folder: string }> {
  const named = locate(join('encoders', nameOrFolder));
  const folder = existsSync(join(named, 'encoder.yaml')) ? named : nameOrFolder;
  const path = join(folder, 'encoder.yaml');
  const text = await readFile(path, 'utf8').catch(() => {
    throw new EncoderError(
      `encoder "${nameOrFolder}": neither encoders/${nameOrFolder} nor the folder ${folder} holds an encoder.yaml`,
    );
  });
  const parsed = encoderManifestSchema.safeParse(parseYaml(text, path));
  if (!parsed.success) {
    const issues = parsed.error.issues.map((issue) => `  ${issue.path.join('.')}: ${issue.message}`);
    throw new EncoderError(`${path}: not an encoder\n${issues.join('\n')}`);
  }
  return { manifest: parsed.data, text, folder };
}

function parseYaml(text: string, path: string): unknown {
  try {
    return parse(text, { maxAliasCount: 10 });
  } catch (error) {
    throw new EncoderError(`${path}: not YAML: ${error instanceof Error ? error.message : error}`);
  }
}

async function featureEncoder(
  manifest: EncoderManifest & { kind: 'features' },
  folder: string,
  hash: ReturnType<typeof createHash>,
  threads: number,
): Promise<Encoder> {
  const { name, width, hops, tokens, features, normalize, sampleRate } = manifest;
  try {
    checkFeatures(features, sampleRate);
  } catch (error) {
    throw new EncoderError(
      `${join(folder, 'encoder.yaml')}: features: ${error instanceof Error ? error.message : error}`,
    );
  }
  const path = join(folder, manifest.model);
  const bytes = await readFile(path).catch((error: NodeJS.ErrnoException) => {
    throw new EncoderError(`${path}: the encoder's model cannot be read (${error.code})`);
  });
  const session = await createSession(bytes, path, threads);
  try {
    mustTake(session, path, hops, features.bins);
  } catch (error) {
    await session.release();
    throw error;
  }
  return {
    name,
    width,
    framesPerSecond: manifest.framesPerSecond,
    fingerprint: hash.update(bytes).digest('hex'),
    async encode(waveform) {
      mustBeFinite(waveform);
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
      const { data, shape } = await runModel(session, path, {
        input: 'features',
        values: input,
        shape: [1, hops, found.bins],
        output: 'embeddings',
      });
      if (shape.join(' x ') !== `1 x ${tokens} x ${width}`) {
        throw new EncoderError(
          `${path}: gives embeddings of ${shape.join(' x ')}, its manifest promises 1 x ${tokens} x ${width}`,
        );
      }
      return float32([tokens, width], data.slice());
    },
    dispose: () => session.release(),
  };
}

/** The model's input and output are those that the manifest's kind asks for. */
function mustTake(session: InferenceSession, path: string, hops: number, bins: number): void {
  const [input, ...others] = session.inputMetadata;
  const fits =
    input?.name === 'features' &&
    others.length === 0 &&
    input.isTensor &&
    input.type === 'float32' &&
    input.shape.length === 3 &&
    [1, hops, bins].every((size, axis) => takes(input.shape[axis], size));
  if (!fits) {
    const found = session.inputMetadata
      .map((one) => `${one.name}${one.isTensor ? ` ${one.type} [${one.shape.join(', ')}]` : ''}`)
      .join('; ');
    throw new EncoderError(
      `${path}: takes ${found}; its manifest asks for one input, features float32 [1, ${hops}, ${bins}]`,
    );
  }
  if (!session.outputNames.includes('embeddings')) {
    throw new EncoderError(`${path}: gives ${session.outputNames.join(', ')}, but no "embeddings"`);
  }
}

/** Dimensions without a number, named or not, take any size. */
function takes(dimension: number | string | undefined, size: number): boolean {
  return typeof dimension !== 'number' || dimension < 0 || dimension === size;
}
