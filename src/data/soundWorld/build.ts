/** Builds the embedded dataset: synthesised clips and balanced questions about them. */
import { mkdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { z } from 'zod';
import { encodeWav } from '../../audio/waveform.ts';
import { mustBeReplaceable, writeFlushed, writeFolderAtomic } from '../../config/writeFile.ts';
import { countByCategory, type DatasetSummary, type Example, writeManifest } from '../manifest.ts';
import { clipsOf, examplesOf } from './questions.ts';
import { renderScene } from './scenes.ts';

const splitSchema = z.strictObject({
  rounds: z.int().min(1).max(1000),
  presencePerClass: z.int().min(0),
  describe: z.int().min(0),
});

export const soundWorldSettings = z.strictObject({
  name: z.literal('sound-world').default('sound-world'),
  seed: z.int().default(1),
  splits: z.strictObject({ train: splitSchema, validation: splitSchema, test: splitSchema }).default({
    train: { rounds: 6, presencePerClass: 50, describe: 320 },
    validation: { rounds: 1, presencePerClass: 5, describe: 20 },
    test: { rounds: 2, presencePerClass: 5, describe: 60 },
  }),
});

export type SoundWorldSettings = z.infer<typeof soundWorldSettings>;

/** Changes whenever the same settings would give other bytes. */
const version = 1;

/**
 * Writes the dataset: WAV files, one manifest a split, and `dataset.json`. It is built aside and renamed, so the
 * folder holds all of it or nothing. The same settings give the same bytes.
 * @param onProgress called with the fraction done
 * @throws OccupiedFolderError when the folder holds anything but an earlier build
 */
export async function buildSoundWorld(
  folder: string,
  settings: z.input<typeof soundWorldSettings> = {},
  onProgress: (fraction: number) => void = () => undefined,
): Promise<DatasetSummary> {
  const resolved = soundWorldSettings.parse(settings);
  const splits = Object.entries(resolved.splits).map(([split, own]) => ({
    split,
    clips: clipsOf(resolved.seed, split, own),
  }));
  const total = splits.reduce((count, { clips }) => count + clips.length, 0);
  const counts: Record<string, Record<string, number>> = {};
  let done = 0;
  await mustBeReplaceable(folder, 'dataset.json');
  await writeFolderAtomic(folder, async (aside) => {
    for (const { split, clips } of splits) {
      await mkdir(join(aside, 'audio', split), { recursive: true });
      const examples: Example[] = [];
      for (const clip of clips) {
        const audio = `audio/${split}/${clip.name}.wav`;
        await writeFile(join(aside, audio), encodeWav(renderScene(clip.scene)));
        examples.push(...examplesOf(clip, audio));
        onProgress(++done / total);
      }
      await writeManifest(join(aside, `${split}.jsonl`), examples);
      counts[split] = countByCategory(examples);
    }
    const description = {
      name: resolved.name,
      version,
      builder: 'sound-world',
      settings: resolved,
      counts,
      licence: 'CC0-1.0',
      audio: 'synthesised, 16 kHz mono, 3 s a clip',
    };
    await writeFlushed(join(aside, 'dataset.json'), `${JSON.stringify(description, null, 2)}\n`);
  });
  return { name: resolved.name, folder, counts };
}
