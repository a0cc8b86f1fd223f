/** Loading and saving LLMs in Hugging Face's folder layout. */
import { createHash } from 'node:crypto';
import { mkdir, stat } from 'node:fs/promises';
import { basename, dirname, join } from 'node:path';
import { z } from 'zod';
import { updateHash } from '../config/hash.ts';
import { writeFileAtomic } from '../config/writeFile.ts';
import { float32FromBfloat16, float32FromHalf, halfFromFloat32 } from '../tensor/halfPrecision.ts';
import { formatShape, type Shape, sameShape, type Tensor } from '../tensor/tensor.ts';
import { readChatTemplate } from './chatTemplate.ts';
import { type DecoderConfig, decoderConfigJson, parameterShapes, parseDecoderConfig } from './config.ts';
import { downloadModel, type HubOptions, isHubName } from './hub.ts';
import { ModelError } from './modelError.ts';
import { streamSafetensors, writeSafetensors } from './safetensors.ts';
import { readStrictJson } from './strictJson.ts';
import { loadTokenizer, type Tokenizer } from './tokenizer.ts';

export type FloatTensor = Tensor & { dtype: 'float32' };

export interface LoadedLlm {
  readonly config: DecoderConfig;
  /** By Hugging Face's names, widened to float32. */
  readonly parameters: Map<string, FloatTensor>;
  readonly tokenizer: Tokenizer;
  /** The model's own, in Jinja; null for one that was not made for chats. */
  readonly chatTemplate: string | null;
  readonly folder: string;
  /** sha256 over names, shapes and bytes of the parameters. */
  readonly hash: string;
}

/** An LLM without its parameters. */
export type LlmFrame = Omit<LoadedLlm, 'parameters'>;

/**
 * Loads an LLM.
 * @param from a folder, a .safetensors file in one, or a name on the Hugging Face hub (`org/name`), which is
 *   downloaded once into the hub's cache
 * @throws ModelError naming the file and everything in it that does not fit
 */
export async function loadLlm(from: string, options: HubOptions = {}): Promise<LoadedLlm> {
  const { folder, files } = await locate(from, options);
  const config = await readConfig(folder);
  const parameters = new Map<string, FloatTensor>();
  for (const file of files ?? (await weightFiles(folder))) {
    const path = join(folder, file);
    for await (const [name, tensor] of streamSafetensors(path)) {
      if (parameters.has(name)) throw new ModelError(`${path}: "${name}" stands in another file already`);
      parameters.set(name, widen(name, tensor, path));
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
  const chatTemplate = await readChatTemplate(folder, tokenizer.files.tokenizerConfig);
  return { config, parameters, tokenizer, chatTemplate, folder, hash: parameterHash(parameters) };
}

async function locate(from: string, options: HubOptions): Promise<{ folder: string; files?: string[] }> {
  const found = await stat(from).catch(() => undefined);
  if (found?.isDirectory()) return { folder: from };
  if (found?.isFile()) {
    if (!from.endsWith('.safetensors'))
      throw new ModelError(`${from}: only .safetensors files hold weights here`);
    return { folder: dirname(from), files: [basename(from)] };
  }
  if (!isHubName(from)) {
    throw new ModelError(
      `${from}: no folder, no .safetensors file, and no name on the hub (organisation/name)`,
    );
  }
  return { folder: await downloadModel(from, options) };
}

const limits = { bytes: 64 * 2 ** 20, depth: 32 };
const indexSchema = z.looseObject({ weight_map: z.record(z.string(), z.string()) });

/**
 * Names of the weight files: one, or the shards of an index. Shards must be plain names: an index cannot point
 * out of its folder.
 */
async function weightFiles(folder: string): Promise<string[]> {
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

async function readConfig(folder: string): Promise<DecoderConfig> {
  const path = join(folder, 'config.json');
  const json = await readStrictJson(path, limits);
  if (json === undefined) throw new ModelError(`${path}: no such file. A model folder needs a config.json.`);
  return parseDecoderConfig(json, path);
}

/** A weight as float32. @throws ModelError for one that is no float of 16 or 32 bits */
export function widen(name: string, tensor: Tensor, where: string): FloatTensor {
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
    updateHash(hash, new Uint8Array(data.buffer, data.byteOffset, data.byteLength));
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
  {
    config,
    parameters,
    tokenizer,
    chatTemplate = null,
  }: Pick<LoadedLlm, 'config' | 'parameters' | 'tokenizer'> & Partial<Pick<LoadedLlm, 'chatTemplate'>>,
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
  const llamaJson = decoderConfigJson(config, half ? 'float16' : 'float32');
  const { bos_token_id, eos_token_id, pad_token_id } = llamaJson;
  const { tokenizer: tokenizerJson, tokenizerConfig } = tokenizer.files;
  await writeSafetensors(join(folder, 'model.safetensors'), stored, { format: 'pt' });
  await writeFileAtomic(join(folder, 'tokenizer.json'), json(tokenizerJson));
  // Without a class transformers takes that of Llama, which would cut words in its own way.
  const classed = { tokenizer_class: 'PreTrainedTokenizerFast', ...(tokenizerConfig as object) };
  await writeFileAtomic(join(folder, 'tokenizer_config.json'), json(classed));
  if (chatTemplate !== null) await writeFileAtomic(join(folder, 'chat_template.jinja'), chatTemplate);
  await writeFileAtomic(
    join(folder, 'generation_config.json'),
    json({ bos_token_id, eos_token_id, pad_token_id }),
  );
  await writeFileAtomic(join(folder, 'config.json'), json(llamaJson));
}
