/** Loading and saving LLMs in Hugging Face's folder layout. */
import { createHash } from 'node:crypto';
import { mkdir, readFile, stat } from 'node:fs/promises';
import { basename, dirname, join } from 'node:path';
import { snapshotDownload } from '@huggingface/hub';
import { z } from 'zod';
import { writeFileAtomic } from '../config/writeFile.ts';
import { formatShape, type Shape, sameShape, type Tensor } from '../tensor/tensor.ts';
import { type LlamaConfig, llamaConfigJson, parameterShapes, parseLlamaConfig } from './config.ts';
import { float32FromBfloat16, float32FromHalf, halfFromFloat32 } from './halfPrecision.ts';
import { ModelError } from './modelError.ts';
import { readSafetensors, writeSafetensors } from './safetensors.ts';
import { parseStrictJson } from './strictJson.ts';
import { loadTokenizer, type Tokenizer } from './tokenizer.ts';

export type FloatTensor = Tensor & { dtype: 'float32' };

export interface LoadedLlm {
  readonly config: LlamaConfig;
  /** By Hugging Face's names, widened to float32. */
  readonly parameters: Map<string, FloatTensor>;
  readonly tokenizer: Tokenizer;
  readonly folder: string;
  /** sha256 over names, shapes and bytes of the parameters. */
  readonly hash: string;
}

export interface LoadOptions {
  /** Where a hub name is looked up; HF_ENDPOINT or the public hub when left out. */
  readonly hubUrl?: string;
}

/**
 * Loads an LLM.
 * @param from a folder, a .safetensors file in one, or a name on the Hugging Face hub (`org/name`), which is
 *   downloaded once into the hub's cache
 * @throws ModelError naming the file and everything in it that does not fit
 */
export async function loadLlm(from: string, options: LoadOptions = {}): Promise<LoadedLlm> {
  const { folder, files } = await locate(from, options);
  const config = parseLlamaConfig(await readJson(join(folder, 'config.json')), join(folder, 'config.json'));
  const parameters = new Map<string, FloatTensor>();
  for (const file of files ?? (await weightFiles(folder))) {
    for (const [name, tensor] of await readSafetensors(join(folder, file))) {
      if (parameters.has(name))
        throw new ModelError(`${join(folder, file)}: "${name}" stands in another file already`);
      parameters.set(name, widen(name, tensor, join(folder, file)));
    }
  }
  const shapes = parameterShapes(config);
  // Some files store the tied head a second time.
  if (config.tieWordEmbeddings) parameters.delete('lm_head.weight');
  checkKeys(parameters, shapes, folder);
  const tokenizer = await loadTokenizer(folder);
  if (tokenizer.size > config.vocabularySize) {
    throw new ModelError(
      `${folder}: the tokenizer has ${tokenizer.size} tokens, the model's vocabulary ${config.vocabularySize}`,
    );
  }
  return { config, parameters, tokenizer, folder, hash: parameterHash(parameters) };
}

async function locate(from: string, { hubUrl }: LoadOptions): Promise<{ folder: string; files?: string[] }> {
  const found = await stat(from).catch(() => undefined);
  if (found?.isDirectory()) return { folder: from };
  if (found?.isFile()) {
    if (!from.endsWith('.safetensors'))
      throw new ModelError(`${from}: only .safetensors files hold weights here`);
    return { folder: dirname(from), files: [basename(from)] };
  }
  if (!/^[\w.-]+\/[\w.-]+$/.test(from) || from.includes('..')) {
    throw new ModelError(`llm.from: "${from}" is no folder, no file, and no hub name (org/name)`);
  }
  const endpoint = hubUrl ?? process.env.HF_ENDPOINT;
  const token = process.env.HF_TOKEN;
  try {
    const folder = await snapshotDownload({
      repo: from,
      ...(endpoint !== undefined && { hubUrl: endpoint }),
      ...(token !== undefined && { accessToken: token }),
    });
    return { folder };
  } catch (error) {
    const reason = error instanceof Error ? error.message : String(error);
    throw new ModelError(
      `llm.from: "${from}" is neither a folder here nor could it be fetched from the hub (${reason}).\n` +
        'A private or gated model needs HF_TOKEN; a mirror is set by HF_ENDPOINT.',
    );
  }
}

const indexSchema = z.looseObject({ weight_map: z.record(z.string(), z.string()) });

/** Names of the weight files: one, or the shards of an index, which must stand in the same folder. */
async function weightFiles(folder: string): Promise<string[]> {
  const index = join(folder, 'model.safetensors.index.json');
  if ((await stat(index).catch(() => undefined)) === undefined) return ['model.safetensors'];
  const parsed = indexSchema.safeParse(await readJson(index));
  if (!parsed.success) throw new ModelError(`${index}: not an index of shards`);
  const files = [...new Set(Object.values(parsed.data.weight_map))].sort();
  const odd = files.find((file) => !/^[\w.-]+\.safetensors$/.test(file));
  if (odd !== undefined) throw new ModelError(`${index}: "${odd}" is not the plain name of a shard`);
  return files;
}

async function readJson(path: string): Promise<unknown> {
  const text = await readFile(path, 'utf8').catch((error: NodeJS.ErrnoException) => {
    throw new ModelError(
      `${path}: ${error.code === 'ENOENT' ? 'there is no such file' : `cannot be read (${error.code})`}`,
    );
  });
  return parseStrictJson(text, path, { depth: 32 });
}

function widen(name: string, tensor: Tensor, where: string): FloatTensor {
  const { dtype, shape } = tensor;
  if (dtype === 'float32') return tensor;
  if (dtype === 'float16') return { dtype: 'float32', shape, data: float32FromHalf(tensor.data) };
  if (dtype === 'bfloat16') return { dtype: 'float32', shape, data: float32FromBfloat16(tensor.data) };
  throw new ModelError(`${where}: "${name}" is ${dtype}, weights are float32, float16 or bfloat16`);
}

/**
 * Compares parameters with what a model expects.
 * @throws ModelError listing all missing, unexpected and mis-shaped ones at once
 */
export function checkKeys(
  parameters: ReadonlyMap<string, { readonly shape: Shape }>,
  expected: ReadonlyMap<string, Shape>,
  where: string,
): void {
  const missing = [...expected.keys()].filter((name) => !parameters.has(name));
  const unexpected = [...parameters.keys()].filter((name) => !expected.has(name));
  const misshaped = [...expected].flatMap(([name, shape]) => {
    const found = parameters.get(name)?.shape;
    return found === undefined || sameShape(found, shape)
      ? []
      : [`${name}: ${formatShape(found)} instead of ${formatShape(shape)}`];
  });
  const sections = [
    ['missing', missing],
    ['unexpected', unexpected],
    ['of another shape', misshaped],
  ] as const;
  const lines = sections.flatMap(([title, names]) =>
    names.length === 0 ? [] : [`  ${names.length} ${title}:`, ...names.map((name) => `    ${name}`)],
  );
  if (lines.length > 0)
    throw new ModelError([`${where}: the parameters are those of another model`, ...lines].join('\n'));
}

/** sha256 over names, shapes and bytes. */
export function parameterHash(parameters: ReadonlyMap<string, Tensor>): string {
  const hash = createHash('sha256');
  for (const name of [...parameters.keys()].sort()) {
    const { shape, data } = parameters.get(name) as Tensor;
    hash.update(`${name}${formatShape(shape)}`);
    hash.update(new Uint8Array(data.buffer, data.byteOffset, data.byteLength));
  }
  return hash.digest('hex');
}

export interface SaveOptions {
  /** Store the weights as float16, half the size. */
  readonly half?: boolean;
}

/** Writes a folder that transformers loads. */
export async function saveLlm(
  folder: string,
  { config, parameters, tokenizer }: Pick<LoadedLlm, 'config' | 'parameters' | 'tokenizer'>,
  { half = false }: SaveOptions = {},
): Promise<void> {
  await mkdir(folder, { recursive: true });
  const stored = new Map<string, Tensor>(
    [...parameters].map(([name, { shape, data }]) => [
      name,
      half ? { dtype: 'float16', shape, data: halfFromFloat32(data) } : { dtype: 'float32', shape, data },
    ]),
  );
  const json = (value: unknown) => `${JSON.stringify(value, null, 2)}\n`;
  await writeSafetensors(join(folder, 'model.safetensors'), stored, { format: 'pt' });
  await writeFileAtomic(join(folder, 'tokenizer.json'), json(tokenizer.files.tokenizer));
  await writeFileAtomic(join(folder, 'tokenizer_config.json'), json(tokenizer.files.tokenizerConfig));
  const generation = { bos_token_id: config.bosTokenId, eos_token_id: config.eosTokenIds };
  await writeFileAtomic(join(folder, 'generation_config.json'), json(generation));
  const dtype = half ? 'float16' : 'float32';
  await writeFileAtomic(
    join(folder, 'config.json'),
    json({ ...llamaConfigJson(config), torch_dtype: dtype }),
  );
}
