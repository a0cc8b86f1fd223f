/** What an encoder will give, read off its manifest: nothing is run, and its model need not be there. */

import { readEncoderManifest } from './encoder.ts';
import type { EncoderManifest } from './encoderManifest.ts';
import { checkLength, framesOfSamples } from './openWakeWord.ts';

export interface EncoderShape {
  readonly name: string;
  /** Width of an embedding. */
  readonly width: number;
  /** Frames for every clip alike; undefined where a clip's length decides. */
  readonly frames: number | undefined;
  /** Frames for a clip. @throws EncoderError where a clip's length decides, for one that is too long */
  readonly framesOf: (clip: { readonly samples: number; readonly sampleRate: number }) => number;
}

/** @throws EncoderError as `loadEncoder`, but for what is wrong with the model itself */
export async function encoderShape(nameOrFolder: string): Promise<EncoderShape> {
  const { manifest } = await readEncoderManifest(nameOrFolder);
  return shapeOf(manifest);
}

function shapeOf(manifest: EncoderManifest): EncoderShape {
  const { name, width } = manifest;
  if (manifest.kind === 'features') {
    return { name, width, frames: manifest.tokens, framesOf: () => manifest.tokens };
  }
  return {
    name,
    width,
    frames: undefined,
    framesOf: ({ samples, sampleRate }) => {
      const resampled = Math.ceil((samples * manifest.sampleRate) / sampleRate);
      checkLength(resampled, manifest);
      return framesOfSamples(resampled);
    },
  };
}
