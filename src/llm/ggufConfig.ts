/** What a GGUF file says about its model, in the words of Hugging Face: the content of a config.json. */
import { formatShape } from '../tensor/tensor.ts';
import type { GgufHeader } from './gguf.ts';
import { ropeFactorsName } from './ggufParameters.ts';
import { streamGgufTensors } from './ggufTensors.ts';
import type { GgufValue } from './ggufValues.ts';
import { ModelError } from './modelError.ts';
import { ropeScalingJson, rotaryFrequencies } from './ropeScaling.ts';

/** By llama.cpp's name of an architecture; Mistral's models are "llama" there. */
const architectures: ReadonlyMap<string, { readonly name: string; readonly modelType: string }> = new Map([
  ['llama', { name: 'LlamaForCausalLM', modelType: 'llama' }],
  ['qwen2', { name: 'Qwen2ForCausalLM', modelType: 'qwen2' }],
  ['qwen3', { name: 'Qwen3ForCausalLM', modelType: 'qwen3' }],
]);

/** Keys of an architecture that say nothing about what is computed, or the same as the shapes of the tensors. */
const harmlessKeys = ['vocab_size', 'tensor_data_layout', 'rope.scaling.finetuned', 'expert_used_count'];

/**
 * The content of a config.json.
 * @throws ModelError for another architecture, and for a key that would change what the model computes in a way that
 * is not known here
 */
export async function ggufConfig(path: string, header: GgufHeader): Promise<Record<string, unknown>> {
  const { metadata, tensors } = header;
  const fields = architectureFields(metadata, path);
  const { architecture, number, constant, rest } = fields;
  const shapeOf = (name: string) => tensors.find((tensor) => tensor.name === name)?.shape;
  const hiddenSize = number('embedding_length');
  const heads = number('attention.head_count');
  const headWidth = number('attention.key_length', hiddenSize / heads);
  constant('attention.value_length', headWidth);
  constant('rope.dimension_count', headWidth);
  constant('expert_count', 0);
  constant('attention.causal', true);
  const sizes = {
    hidden_size: hiddenSize,
    intermediate_size: number('feed_forward_length'),
    num_hidden_layers: number('block_count'),
    num_attention_heads: heads,
    num_key_value_heads: number('attention.head_count_kv', heads),
    head_dim: headWidth,
    vocab_size: shapeOf('token_embd.weight')?.[0] ?? 0,
    max_position_embeddings: number('context_length'),
    rms_norm_eps: shortest(number('attention.layer_norm_rms_epsilon')),
  };
  const ropeParameters = {
    rope_theta: shortest(number('rope.freq_base', 10_000)),
    ...(await ropeScaling(path, header, fields, headWidth)),
  };
  // Only Mistral's window is in all layers; in which layers one of Qwen's is, no key says.
  if (architecture.modelType !== 'llama') constant('attention.sliding_window', 0);
  const window = number('attention.sliding_window', 0);
  const unknown = rest(harmlessKeys);
  if (unknown.length > 0) {
    throw new ModelError(
      `${path}: ${unknown.map((key) => JSON.stringify(key)).join(', ')}: may change what the model computes, and is not known here`,
    );
  }
  const mistral = window > 0;
  const bias = (part: string) => shapeOf(`blk.0.${part}.bias`) !== undefined;
  return {
    architectures: [mistral ? 'MistralForCausalLM' : architecture.name],
    model_type: mistral ? 'mistral' : architecture.modelType,
    ...sizes,
    rope_parameters: ropeParameters,
    tie_word_embeddings: shapeOf('output.weight') === undefined,
    hidden_act: 'silu',
    ...(mistral && { sliding_window: window }),
    ...(!mistral && architecture.modelType !== 'qwen2' && { attention_bias: bias('attn_q') }),
    ...(!mistral && architecture.modelType === 'llama' && { mlp_bias: bias('ffn_up') }),
    ...(architecture.modelType.startsWith('qwen') && { use_sliding_window: false }),
    ...specialIds(metadata, path),
  };
}

/** How a file's keys of its architecture are asked for; what nobody asked for is the rest. */
function architectureFields(metadata: ReadonlyMap<string, GgufValue>, path: string) {
  const given = metadata.get('general.architecture');
  const architecture = architectures.get(String(given));
  if (architecture === undefined) {
    throw new ModelError(
      `${path}: general.architecture is ${JSON.stringify(String(given))}; palkit runs ${[...architectures.keys()].join(', ')}`,
    );
  }
  if (Number(metadata.get('split.count') ?? 1) > 1) {
    throw new ModelError(`${path}: one of several parts of a model; join them with llama-gguf-split --merge`);
  }
  const asked = new Set<string>();
  const prefix = `${given}.`;
  const value = (key: string) => {
    asked.add(`${prefix}${key}`);
    return metadata.get(`${prefix}${key}`);
  };
  function number(key: string, missing?: number): number {
    const found = value(key) ?? missing;
    if (typeof found === 'number') return found;
    const what = found === undefined ? 'is missing' : 'is not a number';
    throw new ModelError(`${path}: ${JSON.stringify(prefix + key)} ${what}`);
  }
  function constant(key: string, expected: GgufValue): void {
    const found = value(key);
    if (found === undefined || found === expected) return;
    throw new ModelError(
      `${path}: ${JSON.stringify(prefix + key)} is ${found}; models with another value than ${expected} do not run here`,
    );
  }
  const rest = (harmless: readonly string[]) =>
    [...metadata.keys()].filter(
      (key) => key.startsWith(prefix) && !asked.has(key) && !harmless.includes(key.slice(prefix.length)),
    );
  return { architecture, value, number, constant, rest };
}

/** The decimal that a float32 was written from: 1e-5, not 0.00000999999974. */
function shortest(value: number): number {
  for (let digits = 1; digits < 9; digits++) {
    const decimal = Number(value.toPrecision(digits));
    if (Math.fround(decimal) === Math.fround(value)) return decimal;
  }
  return value;
}

/** Scaled rotary positions: linear, YaRN, or Llama 3's, which a file holds as a factor for each frequency. */
async function ropeScaling(
  path: string,
  { tensors }: GgufHeader,
  { value, number, constant }: ReturnType<typeof architectureFields>,
  headWidth: number,
): Promise<Record<string, unknown>> {
  const kind = value('rope.scaling.type') ?? 'none';
  const factor = shortest(number('rope.scaling.factor', number('rope.scale_linear', 1)));
  constant('rope.scaling.attn_factor', 1);
  const factors = tensors.find(({ name }) => name === ropeFactorsName);
  if (kind === 'linear' && factor !== 1 && factors === undefined) return { rope_type: 'linear', factor };
  if (kind === 'yarn' && factors === undefined) {
    const original = number('rope.scaling.original_context_length');
    return { rope_type: 'yarn', factor, original_max_position_embeddings: original };
  }
  if ((kind !== 'none' && kind !== 'linear') || factor !== 1) {
    throw new ModelError(
      `${path}: rotary positions scaled by ${JSON.stringify(kind)} with a factor of ${factor} do not run here`,
    );
  }
  value('rope.scaling.original_context_length');
  if (factors === undefined) return { rope_type: 'default' };
  if (factors.shape.length !== 1 || factors.shape[0] !== headWidth / 2) {
    throw new ModelError(
      `${path}: "${ropeFactorsName}" is ${formatShape(factors.shape)}: not one a frequency`,
    );
  }
  const ropeTheta = number('rope.freq_base', 10_000);
  for await (const [, found] of streamGgufTensors(path, [factors])) {
    const scaling = {
      kind: 'llama3',
      factor: found.at(-1) as number,
      lowFrequencyFactor: 1,
      highFrequencyFactor: 4,
      originalMaxPositions: 8192,
    } as const;
    const plain = rotaryFrequencies({ headWidth, ropeTheta, ropeScaling: null }).frequencies;
    const scaled = rotaryFrequencies({ headWidth, ropeTheta, ropeScaling: scaling }).frequencies;
    const isClose = (own: number, at: number) =>
      Math.abs((own * (scaled[at] as number)) / (plain[at] as number) - 1) < 1e-4;
    if (found.every(isClose)) return ropeScalingJson(scaling) as Record<string, unknown>;
  }
  throw new ModelError(
    `${path}: "${ropeFactorsName}" is not the scaling of Llama 3.x (from 1 to 4 periods in 8192 positions)`,
  );
}

/** Ids of special tokens as a config.json has them; the end of a turn ends an answer too. */
function specialIds(metadata: ReadonlyMap<string, GgufValue>, path: string): Record<string, unknown> {
  const id = (token: string) => {
    const found = metadata.get(`tokenizer.ggml.${token}_token_id`);
    if (found === undefined || typeof found === 'number') return found;
    throw new ModelError(`${path}: "tokenizer.ggml.${token}_token_id" is not a number`);
  };
  const ends = [...new Set([id('eos'), id('eot')].filter((end) => end !== undefined))];
  return {
    bos_token_id: id('bos') ?? null,
    eos_token_id: ends.length > 1 ? ends : (ends[0] ?? null),
    pad_token_id: id('padding') ?? null,
  };
}
