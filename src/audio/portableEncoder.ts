/**
 * An encoder as a chain of ONNX models that takes a waveform at the encoder's sample rate, for programs that have
 * nothing but ONNX Runtime. What `encode` does in front of its models is computed by programs.
 */
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import {
  add,
  cast,
  constant,
  divide,
  gather,
  less,
  log,
  matmul,
  multiply,
  reshape,
  subtract,
  where,
} from '../tensor/operations.ts';
import type { Program, Value } from '../tensor/program.ts';
import { float32, int32, tensor } from '../tensor/tensor.ts';
import { trace } from '../tensor/trace.ts';
import { readEncoderManifest } from './encoder.ts';
import { createSession, EncoderError, type EncoderManifest } from './encoderManifest.ts';
import { analysisOf, type Band } from './features.ts';
import { hopFrames, hopSamples, melBands, packageFolder, windowFrames } from './openWakeWord.ts';

/** One model of a chain: a program, or an ONNX file that is there. */
export interface PortableStep {
  readonly name: string;
  readonly model: Program | Uint8Array;
  /** What it takes from the step before it. */
  readonly input: string;
  readonly output: string;
}

export interface PortableEncoder {
  readonly sampleRate: number;
  /** Samples of the waveform; shorter clips are filled up with zeros. */
  readonly samples: number;
  /**
   * The first step takes the waveform [1, samples], each other one what the one before it gives; the last gives the
   * embeddings. Where a step has an input `samples` [1], it is told how many samples are the clip's.
   */
  readonly steps: readonly PortableStep[];
  /** The step that gives `valid` [1, frames]: 1 where an embedding is the clip's. */
  readonly validBy: string;
}

/**
 * @param frames embeddings that the chain gives
 * @throws EncoderError as `readEncoderManifest`, and when a model cannot be read
 */
export async function portableEncoder(nameOrFolder: string, frames: number): Promise<PortableEncoder> {
  const { manifest, folder } = await readEncoderManifest(nameOrFolder);
  const { sampleRate } = manifest;
  if (manifest.kind === 'features') {
    const { hopSamples: hop } = analysisOf(manifest.features, sampleRate);
    const path = join(folder, manifest.model);
    const { model } = await readModel(path, "put the encoder's model there");
    const steps = [
      { name: 'features', model: featureProgram(manifest), input: 'waveform', output: 'features' },
      { name: 'model', model, input: 'features', output: 'embeddings' },
    ];
    return { sampleRate, samples: hop * manifest.hops, steps, validBy: 'features' };
  }
  // What is left of a clip behind its last window is shorter than a hop.
  const melFrames = windowFrames + hopFrames * frames;
  const samples = hopSamples * (melFrames + 3) - 1;
  const steps = [
    { name: 'pcm', model: pcmProgram(samples), input: 'waveform', output: 'pcm' },
    await packagedStep('melspectrogram', manifest.package, manifest.melspectrogram),
    { name: 'windows', model: windowProgram(melFrames, frames), input: 'melspectrogram', output: 'windows' },
    await packagedStep('embedding', manifest.package, manifest.embedding),
  ];
  return { sampleRate, samples, steps, validBy: 'windows' };
}

/** A model of an npm package, which names its one input and output as it likes. */
async function packagedStep(name: string, packageName: string, file: string): Promise<PortableStep> {
  const path = join(packageFolder(packageName), file);
  const { model, inputs, outputs } = await readModel(path, `reinstall it: npm install ${packageName}`);
  return { name, model, input: inputs[0] ?? '', output: outputs[0] ?? '' };
}

/** An ONNX file that runs on its own: what goes out must not name other files. */
async function readModel(path: string, remedy: string) {
  const model = await readFile(path).catch((error: NodeJS.ErrnoException) => {
    throw new EncoderError(`${path}: cannot be read (${error.code}); ${remedy}`);
  });
  const session = await createSession(model, path, 1);
  const { inputNames: inputs, outputNames: outputs } = session;
  await session.release();
  return { model, inputs, outputs };
}

const double = (shape: readonly number[], values: Float64Array) => constant(tensor('float64', shape, values));

/**
 * `extractFeatures`, normalised, behind the clip's end filled up with silence. In float64, as there: what is almost
 * silent has a logarithm too.
 */
function featureProgram(manifest: EncoderManifest & { kind: 'features' }): Program {
  const { features, normalize, hops, sampleRate, tokens } = manifest;
  const { hopSamples: hop, window, bands } = analysisOf(features, sampleRate);
  const { fftSize, floor } = features;
  const half = Math.floor(window.length / 2);
  const bins = fftSize / 2 + 1;
  const frame = [...Array(hops).keys()];
  // Mirrored at the beginning here, and at the clip's ends, as often as it takes, when its length is known.
  const places = frame.flatMap((at) => Array.from(window, (_, sample) => Math.abs(at * hop + sample - half)));
  const wave = (of: (angle: number) => number) =>
    double(
      [window.length, bins],
      Float64Array.from(
        { length: window.length * bins },
        (_, at) =>
          (window[Math.floor(at / bins)] as number) *
          of((2 * Math.PI * Math.floor(at / bins) * (at % bins)) / fftSize),
      ),
    );
  const normalized = (x: Value) => multiply(subtract(x, normalize.mean), 1 / normalize.scale);
  const types = {
    waveform: { dtype: 'float32', shape: [1, hop * hops] },
    samples: { dtype: 'int32', shape: [1] },
  } as const;
  return trace(types, ({ waveform, samples }) => {
    const last = subtract(samples, 1);
    const place = constant(int32([hops, window.length], places));
    const twice = multiply(last, 2);
    const period = where(less(twice, 1), 1, twice);
    const periods = cast(divide(cast(place, 'float64'), cast(period, 'float64')), 'int32');
    const within = subtract(place, multiply(periods, period));
    const inside = where(less(last, within), subtract(twice, within), within);
    const framed = gather(cast(reshape(waveform, [hop * hops]), 'float64'), inside, 0);
    const [real, imaginary] = [matmul(framed, wave(Math.cos)), matmul(framed, wave(Math.sin))];
    const power = add(multiply(real, real), multiply(imaginary, imaginary));
    const level = normalized(
      log(add(matmul(power, double([bins, bands.length], bandMatrix(bands, bins))), floor)),
    );
    const ends = constant(
      int32(
        [hops, 1],
        frame.map((at) => (at + 1) * hop),
      ),
    );
    const silence = (Math.log(floor) - normalize.mean) / normalize.scale;
    const filled = where(less(samples, ends), silence, level);
    return {
      features: reshape(cast(filled, 'float32'), [1, hops, bands.length]),
      valid: constant(float32([1, tokens], new Float32Array(tokens).fill(1))),
    };
  });
}

/** [bins, bands], row-major. */
function bandMatrix(bands: readonly Band[], bins: number): Float64Array {
  const matrix = new Float64Array(bins * bands.length);
  for (const [column, { start, weights }] of bands.entries()) {
    for (const [at, weight] of weights.entries()) matrix[(start + at) * bands.length + column] = weight;
  }
  return matrix;
}

/** The models take samples on the scale of 16-bit integers. */
function pcmProgram(length: number): Program {
  return trace({ waveform: { dtype: 'float32', shape: [1, length] } } as const, ({ waveform }) => ({
    pcm: multiply(waveform, 32_768),
  }));
}

/** Windows of the mel spectrum, each one beginning a hop after the other. */
function windowProgram(melFrames: number, frames: number): Program {
  const rows = [...Array(frames).keys()].flatMap((frame) =>
    [...Array(windowFrames).keys()].map((row) => frame * hopFrames + row),
  );
  const types = {
    melspectrogram: { dtype: 'float32', shape: [1, 1, melFrames, melBands] },
    samples: { dtype: 'int32', shape: [1] },
  } as const;
  return trace(types, ({ melspectrogram, samples }) => {
    const scaled = add(multiply(reshape(melspectrogram, [melFrames, melBands]), 0.1), 2);
    const windows = gather(scaled, constant(int32([frames, windowFrames], rows)), 0);
    // As framesOfSamples counts them.
    const needed = Array.from({ length: frames }, (_, frame) =>
      frame === 0 ? 0 : hopSamples * (frame * hopFrames + windowFrames + 2),
    );
    const valid = less(constant(int32([1, frames], needed)), samples);
    return {
      windows: reshape(windows, [frames, windowFrames, melBands, 1]),
      valid: cast(valid, 'float32'),
    };
  });
}
