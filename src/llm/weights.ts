/** Loading and saving LLMs in Hugging Face's folder layout. */
import { createHash } from 'node:crypto';
import { mkdir, stat } from 'node:fs/promises';
import { basename, dirname, join } from 'node:path';
import { updateHash } from '../config/hash.ts';
import { writeFileAtomic } from '../config/writeFile.ts';
import { halfFromFloat32 } from '../tensor/halfPrecision.ts';
import { formatShape, type Shape, sameShape, type Tensor } from '../tensor/tensor.ts';
import { chatTemplateIn, readChatTemplate } from './chatTemplate.ts';
import {
  type DecoderConfig,
  decoderConfigJson,
  parameterShapes,
  parseDecoderConfig,
  withGenerationConfig,
} from './config.ts';
import { readGgufHeader } from './gguf.ts';
import { ggufConfig } from './ggufConfig.ts';
import { ggufParameterShapes, streamGgufParameters } from './ggufParameters.ts';
import { ggufTokenizerFiles } from './ggufTokenizer.ts';
import { downloadModel, type HubOptions, parseHubName } from './hub.ts';
import { ModelError } from './modelError.ts';
import { streamSafetensors, writeSafetensors } from './safetensors.ts';
import { readStrictJson } from './strictJson.ts';
import { loadTokenizer, type Tokenizer, tokenizerFromJson } from './tokenizer.ts';
import { weightFiles } from './weightFiles.ts';

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

export interface LoadOptions {
  /** Whether a parameter has no place in the model, whatever its config.json says; none when left out. */
  readonly isAbsent?: (name: string) => boolean;
}

/**
 * Loads an LLM.
 * @param from a folder, a .safetensors file in one, a .gguf file, or a name on the Hugging Face hub
 *   (`organisation/name[@revision][:file]`), which is downloaded once into the hub's cache
 * @throws ModelError naming the file and everything in it that does not fit
 */
export async function loadLlm(
  from: string,
  { isAbsent = () => false, ...options }: HubOptions & LoadOptions = {},
): Promise<LoadedLlm> {
  const { folder, files } = await locate(from, options);
  const { readParameters, ...llm } = await open(folder, files, isAbsent);
  const parameters = await readParameters();
  return { ...llm, parameters, folder, hash: parameterHash(parameters) };
}

/** What prompts are made for: an LLM without its weights. */
export type PromptedLlm = Pick<LoadedLlm, 'config' | 'tokenizer' | 'chatTemplate'>;

/** As `loadLlm`, but leaves the weights where they are. */
export async function loadPromptedLlm(from: string, options: HubOptions = {}): Promise<PromptedLlm> {
  const { folder, files } = await locate(from, options);
  const { readParameters: _, ...llm } = await open(folder, files, () => false);
  return llm;
}

interface OpenLlm extends PromptedLlm {
  readonly readParameters: () => Promise<Map<string, FloatTensor>>;
}

async function open(
  folder: string,
  files: readonly string[],
  isAbsent: (name: string) => boolean,
): Promise<OpenLlm> {
  const [first = ''] = files;
  const opened = first.endsWith('.gguf')
    ? await openGguf(join(folder, first))
    : await openFolder(folder, files, isAbsent);
  const { config, tokenizer } = opened;
  if (tokenizer.size > config.vocabularySize) {
    throw new ModelError(
      `${folder}: the tokenizer has ${tokenizer.size} tokens, the model's vocabulary ${config.vocabularySize}`,
    );
  }
  return opened;
}

/** Rotary frequencies, which Llama 2's files hold for every layer; they follow from the config. */
const storedFrequencies = /^model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq$/;

async function openFolder(
  folder: string,
  files: readonly string[],
  isAbsent: (name: string) => boolean,
): Promise<OpenLlm> {
  const config = await readConfig(folder);
  const tokenizer = await loadTokenizer(folder);
  const chatTemplate = await readChatTemplate(folder, tokenizer.files.tokenizerConfig);
  const readParameters = async () => {
    const parameters = new Map<string, FloatTensor>();
    for (const file of files) {
      const path = join(folder, file);
      for await (const [name, tensor] of streamWeights(path)) {
        if (storedFrequencies.test(name)) continue;
        if (parameters.has(name)) throw new ModelError(`${path}: "${name}" stands in another file already`);
        parameters.set(name, tensor);
      }
    }
    // Some files store the tied head a second time.
    if (config.tieWordEmbeddings) parameters.delete('lm_head.weight');
    const expected = [...parameterShapes(config)].filter(([name]) => !isAbsent(name));
    checkKeys(parameters, new Map(expected), folder);
    return parameters;
  };
  return { config, tokenizer, chatTemplate, readParameters };
}

/** Reads one weight at a time, as float32. @throws ModelError for one that is no float of 16 or 32 bits */
export async function* streamWeights(path: string): AsyncGenerator<readonly [string, FloatTensor]> {
  for await (const [name, tensor] of streamSafetensors(path, { widen: true })) {
    if (tensor.dtype !== 'float32') {
      throw new ModelError(`${path}: "${name}" is ${tensor.dtype}, weights are float32, float16 or bfloat16`);
    }
    yield [name, tensor];
  }
}

/** A GGUF file holds all of a model; its shapes are checked before the first tensor is read. */
async function openGguf(path: string): Promise<OpenLlm> {
  const header = await readGgufHeader(path);
  const config = parseDecoderConfig(await ggufConfig(path, header), path);
  const shapes = ggufParameterShapes(path, header);
  checkKeys(new Map([...shapes].map(([name, shape]) => [name, { shape }])), parameterShapes(config), path);
  const files = ggufTokenizerFiles(header.metadata, path);
  const tokenizer = tokenizerFromJson(files.tokenizer, files.tokenizerConfig, path);
  const readParameters = async () => {
    const parameters = new Map<string, FloatTensor>();
    for await (const [name, shape, data] of streamGgufParameters(path, header, config)) {
      parameters.set(name, { dtype: 'float32', shape, data });
    }
    return parameters;
  };
  return { config, tokenizer, chatTemplate: chatTemplateIn(files.tokenizerConfig, path), readParameters };
}

/** The folder of a model and its weight files there. */
async function locate(from: string, options: HubOptions): Promise<{ folder: string; files: string[] }> {
  const found = await stat(from).catch(() => undefined);
  if (found?.isDirectory()) return { folder: from, files: await weightFiles(from) };
  if (found?.isFile()) {
    if (!/\.(safetensors|gguf)$/.test(from))
      throw new ModelError(`${from}: only .safetensors and .gguf files hold weights here`);
    return { folder: dirname(from), files: [basename(from)] };
  }
  const wanted = parseHubName(from);
  if (wanted === undefined) {
    throw new ModelError(
      `${from}: no folder, no .safetensors or .gguf file, and no name on the hub (organisation/name[@revision][:file])`,
    );
  }
  const folder = await downloadModel(wanted, options);
  return { folder, files: wanted.file === undefined ? await weightFiles(folder) : [wanted.file] };
}

const limits = { bytes: 2 ** 20, depth: 32 };

async function readConfig(folder: string): Promise<DecoderConfig> {
  const path = join(folder, 'config.json');
  const json = await readStrictJson(path, limits);
  if (json === undefined) throw new ModelError(`${path}: no such file. A model folder needs a config.json.`);
  const config = parseDecoderConfig(json, path);
  const generation = join(folder, 'generation_config.json');
  return withGenerationConfig(config, (await readStrictJson(generation, limits)) ?? {}, generation);
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

const json = (value: unknown) => `${JSON.stringify(value, null, 2)}\n`;

/** Writes a tokenizer as transformers loads it. */
export async function saveTokenizer(folder: string, { files }: Tokenizer): Promise<void> {
  await writeFileAtomic(join(folder, 'tokenizer.json'), json(files.tokenizer));
  // Without a class transformers takes that of Llama, which would cut words in its own way.
  const classed = { tokenizer_class: 'PreTrainedTokenizerFast', ...(files.tokenizerConfig as object) };
  await writeFileAtomic(join(folder, 'tokenizer_config.json'), json(classed));
}

export interface SaveOptions {
  /** Store the weights as float16, half the size. */
  readonly half?: boolean;
}

const largestHalf = 65_504;

function halves(values: Float32Array, name: string): Uint16Array {
  const beyond = values.find((value) => !(Math.abs(value) <= largestHalf));
  if (beyond === undefined) return halfFromFloat32(values);
  throw new ModelError(`"${name}" has the value ${beyond}, which float16 cannot hold; store it as float32`);
}

/** Writes a folder that transformers loads. @throws ModelError for a weight that float16 cannot hold */
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
      half ? { dtype: 'float16', shape, data: halves(data, name) } : { dtype: 'float32', shape, data },
    ]),
  );
  const llamaJson = decoderConfigJson(config, half ? 'float16' : 'float32');
  const { bos_token_id, eos_token_id, pad_token_id } = llamaJson;
  await writeSafetensors(join(folder, 'model.safetensors'), stored, { format: 'pt' });
  await saveTokenizer(folder, tokenizer);
  if (chatTemplate !== null) await writeFileAtomic(join(folder, 'chat_template.jinja'), chatTemplate);
  await writeFileAtomic(
    join(folder, 'generation_config.json'),
    json({ bos_token_id, eos_token_id, pad_token_id }),
  );
  await writeFileAtomic(join(folder, 'config.json'), json(llamaJson));
}
