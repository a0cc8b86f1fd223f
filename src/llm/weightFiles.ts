import { stat } from 'node:fs/promises';
import { join } from 'node:path';
import { z } from 'zod';
import { ModelError } from './modelError.ts';
import { readStrictJson } from './strictJson.ts';

const limits = { bytes: 64 * 2 ** 20, depth: 32 };
const indexSchema = z.looseObject({ weight_map: z.record(z.string(), z.string()) });

/**
 * Names of the weight files of a model folder: one, or the shards of an index. Shards must be plain names: an index
 * cannot point out of its folder.
 * @throws ModelError naming what is missing or wrong
 */
export async function weightFiles(folder: string): Promise<string[]> {
  const exists = async (path: string) => (await stat(path).catch(() => undefined)) !== undefined;
  if (await exists(join(folder, 'model.safetensors'))) return ['model.safetensors'];
  const path = join(folder, 'model.safetensors.index.json');
  const index = await readStrictJson(path, limits);
  if (index === undefined) {
    throw new ModelError(`${folder}: neither model.safetensors nor model.safetensors.index.json is there`);
  }
  const parsed = indexSchema.safeParse(index);
  if (!parsed.success) throw new ModelError(`${path}: weight_map must map parameters to file names`);
  const files = [...new Set(Object.values(parsed.data.weight_map))].sort();
  const odd = files.find((file) => !/^[A-Za-z0-9][\w.-]*\.safetensors$/.test(file));
  if (odd !== undefined) {
    throw new ModelError(`${path}: ${JSON.stringify(odd)} is not the plain name of a .safetensors file`);
  }
  for (const file of files) {
    if (!(await exists(join(folder, file)))) throw new ModelError(`${path}: the shard ${file} is not there`);
  }
  return files;
}
