/** Datasets: a folder of clips with one manifest a split, built when it is an embedded one. */
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { z } from 'zod';
import { loadYaml } from '../config/load.ts';
import { locate } from '../config/locate.ts';
import { type Example, ManifestError, readManifest } from './manifest.ts';
import { buildSoundWorld } from './soundWorld/build.ts';

export const splits = ['train', 'validation', 'test'] as const;
export type Split = (typeof splits)[number];

const datasetSchema = z.strictObject({
  builder: z.enum(['sound-world', 'spoken-prompts']),
  description: z.string(),
  licence: z.string(),
  settings: z.record(z.string(), z.unknown()).default({}),
});

export type DatasetManifest = z.infer<typeof datasetSchema>;

/**
 * Reads datasets/<name>.yaml.
 * @throws ManifestError when there is none; ConfigError when it is not one
 */
export async function readDatasetManifest(name: string): Promise<DatasetManifest> {
  const path = locate(`datasets/${name}.yaml`);
  if (!existsSync(path))
    throw new ManifestError(
      `data.dataset: "${name}": there is no ${path}; \`palkit data list\` shows what there is`,
    );
  return loadYaml(path, datasetSchema);
}

/**
 * Makes sure that a dataset is there; the embedded one is built where it is missing.
 * @throws ManifestError saying how to get a dataset that cannot be built on the spot
 */
export async function ensureDataset(
  name: string,
  folder: string,
  onProgress: (fraction: number) => void,
): Promise<void> {
  if (existsSync(join(folder, 'dataset.json'))) return;
  const { builder, settings } = await readDatasetManifest(name);
  if (builder !== 'sound-world') {
    throw new ManifestError(
      `data.dir: ${folder} holds no dataset; build it: palkit data build ${name} --dir ${folder}`,
    );
  }
  await buildSoundWorld(folder, settings as Parameters<typeof buildSoundWorld>[1], onProgress);
}

/** The examples of a split. */
export function readSplit(folder: string, split: Split): Promise<Example[]> {
  return readManifest(join(folder, `${split}.jsonl`));
}
