import { z } from 'zod';
import {
  type Biases,
  biasesOf,
  type ConfigJson,
  configJsonSchema,
  type Family,
  families,
  tokenId,
  windowsOf,
} from './families.ts';
import { ModelError } from './modelError.ts';
import { type RopeScaling, ropeContradictions, ropeOf, ropeScalingJson } from './ropeScaling.ts';

/** The sizes and constants of a decoder, checked. Field names of config.json in brackets. */
export interface DecoderConfig {
  readonly family: Family;
  readonly hiddenSize: number;
  readonly intermediateSize: number;
  /** Number of layers (`num_hidden_layers`). */
  readonly layers: number;
  /** Number of query heads (`num_attention_heads`). */
  readonly heads: number;
  /** Number of key and value heads (`num_key_value_heads`); divides `heads`. */
  readonly keyValueHeads: number;
  /** Width of one head (`head_dim`, or hidden_size / num_attention_heads); even. */
  readonly headWidth: number;
  readonly vocabularySize: number;
  readonly rmsNormEpsilon: number;
  readonly ropeTheta: number;
  readonly ropeScaling: RopeScaling | null;
  readonly biases: Biases;
  /** True when each head's queries and keys are normalised before they are rotated (Qwen3). */
  readonly queryKeyNorm: boolean;
  /** Per layer, how many of the newest positions a row sees, its own included; null: all. Empty: no layer has one. */
  readonly windows: readonly (number | null)[];
  /** True when the output projection is the embedding table. */
  readonly tieWordEmbeddings: boolean;
  /** Longest sequence the model was made for (`max_position_embeddings`). */
  readonly maxPositions: number;
  readonly bosTokenId: number | null;
  readonly eosTokenIds: readonly number[];
  readonly padTokenId: number | null;
}

/**
 * Checks the content of a config.json.
 * @param where how error messages name the file
 * @throws ModelError that lists every field that is missing, malformed, not supported (another architecture or
 * activation, rotary positions scaled in another way) or unknown.
 */
export function parseDecoderConfig(json: unknown, where: string): DecoderConfig {
  const parsed = configJsonSchema.safeParse(json);
  if (!parsed.success) fail(where, parsed.error.issues.map(describeIssue));
  const fields = parsed.data;
  const family = families[fields.model_type];
  const heads = fields.num_attention_heads;
  const config: DecoderConfig = {
    family: fields.model_type,
    hiddenSize: fields.hidden_size,
    intermediateSize: fields.intermediate_size,
    layers: fields.num_hidden_layers,
    heads,
    keyValueHeads: keyValueHeadsOf(fields),
    headWidth: fields.head_dim ?? family.headWidth ?? fields.hidden_size / heads,
    vocabularySize: fields.vocab_size,
    rmsNormEpsilon: fields.rms_norm_eps,
    ...ropeOf(fields),
    biases: biasesOf(fields),
    queryKeyNorm: family.queryKeyNorm,
    windows: windowsOf(fields),
    tieWordEmbeddings: fields.tie_word_embeddings,
    maxPositions: fields.max_position_embeddings,
    bosTokenId: fields.bos_token_id === undefined ? family.bosTokenId : fields.bos_token_id,
    eosTokenIds: [fields.eos_token_id === undefined ? family.eosTokenId : fields.eos_token_id]
      .flat()
      .filter((id) => id !== null),
    padTokenId: fields.pad_token_id === -1 ? null : fields.pad_token_id,
  };
  const problems = [...contradictions(config), ...layerTypeProblems(fields), ...ropeContradictions(fields)];
  if (problems.length > 0) fail(where, problems);
  return config;
}

const generationSchema = z.looseObject({ eos_token_id: z.union([tokenId, z.array(tokenId)]).nullish() });

/**
 * The config with the tokens that end an answer by a generation_config.json too, behind its own.
 * @param where how error messages name the file
 * @throws ModelError naming what is malformed
 */
export function withGenerationConfig(config: DecoderConfig, json: unknown, where: string): DecoderConfig {
  const parsed = generationSchema.safeParse(json);
  if (!parsed.success) fail(where, parsed.error.issues.map(describeIssue));
  const ends = [parsed.data.eos_token_id ?? []].flat();
  const outside = ends.find((id) => id >= config.vocabularySize);
  if (outside !== undefined)
    fail(where, [`eos_token_id ${outside} is outside the vocabulary of ${config.vocabularySize}`]);
  return { ...config, eosTokenIds: [...new Set([...config.eosTokenIds, ...ends])] };
}

/** A missing number is the family's; null says that every head has its own. */
function keyValueHeadsOf(fields: ConfigJson): number {
  const heads = fields.num_key_value_heads;
  if (heads === null) return fields.num_attention_heads;
  return heads ?? families[fields.model_type].keyValueHeads ?? fields.num_attention_heads;
}

function layerTypeProblems(fields: ConfigJson): string[] {
  if (!('layer_types' in fields) || fields.layer_types === undefined) return [];
  const { length } = fields.layer_types;
  if (length === fields.num_hidden_layers) return [];
  return [`layer_types names ${length} layers, num_hidden_layers says ${fields.num_hidden_layers}`];
}

/**
 * The config.json of a model: what `parseDecoderConfig` reads back, and what transformers loads.
 * @param storedAs the dtype of the weights in the file
 */
export function decoderConfigJson(
  config: DecoderConfig,
  storedAs: 'float32' | 'float16' = 'float32',
): Record<string, unknown> {
  const [eos = null] = config.eosTokenIds;
  return {
    architectures: [families[config.family].architecture],
    model_type: config.family,
    hidden_size: config.hiddenSize,
    intermediate_size: config.intermediateSize,
    num_hidden_layers: config.layers,
    num_attention_heads: config.heads,
    num_key_value_heads: config.keyValueHeads,
    head_dim: config.headWidth,
    vocab_size: config.vocabularySize,
    rms_norm_eps: config.rmsNormEpsilon,
    rope_theta: config.ropeTheta,
    rope_scaling: ropeScalingJson(config.ropeScaling),
    tie_word_embeddings: config.tieWordEmbeddings,
    max_position_embeddings: config.maxPositions,
    hidden_act: 'silu',
    ...familyJson(config),
    bos_token_id: config.bosTokenId,
    eos_token_id: config.eosTokenIds.length > 1 ? [...config.eosTokenIds] : eos,
    pad_token_id: config.padTokenId,
    torch_dtype: storedAs,
  };
}

/** The fields that only the family's files have. */
function familyJson({ family, biases, windows, layers }: DecoderConfig): Record<string, unknown> {
  const window = windows.find((width) => width !== null) ?? null;
  const qwenWindows = {
    use_sliding_window: window !== null,
    sliding_window: window,
    layer_types: Array.from({ length: layers }, (_, layer) =>
      (windows[layer] ?? null) === null ? 'full_attention' : 'sliding_attention',
    ),
  };
  switch (family) {
    case 'llama':
      return { attention_bias: biases.queryKeyValue, mlp_bias: biases.feedForward };
    case 'mistral':
      return { sliding_window: window };
    case 'qwen2':
      return qwenWindows;
    case 'qwen3':
      return { attention_bias: biases.queryKeyValue, ...qwenWindows };
  }
}

/** Names (Hugging Face's) and shapes of all parameters; matrices are [outputs, inputs]. */
export function parameterShapes(config: DecoderConfig): Map<string, number[]> {
  const { hiddenSize, intermediateSize, vocabularySize, headWidth, biases } = config;
  const queryWidth = config.heads * headWidth;
  const keyValueWidth = config.keyValueHeads * headWidth;
  const shapes = new Map<string, number[]>([['model.embed_tokens.weight', [vocabularySize, hiddenSize]]]);
  const linear = (name: string, outputs: number, inputs: number, bias: boolean) => {
    shapes.set(`${name}.weight`, [outputs, inputs]);
    if (bias) shapes.set(`${name}.bias`, [outputs]);
  };
  for (let layer = 0; layer < config.layers; layer++) {
    const prefix = `model.layers.${layer}`;
    shapes.set(`${prefix}.input_layernorm.weight`, [hiddenSize]);
    linear(`${prefix}.self_attn.q_proj`, queryWidth, hiddenSize, biases.queryKeyValue);
    linear(`${prefix}.self_attn.k_proj`, keyValueWidth, hiddenSize, biases.queryKeyValue);
    linear(`${prefix}.self_attn.v_proj`, keyValueWidth, hiddenSize, biases.queryKeyValue);
    if (config.queryKeyNorm) {
      shapes.set(`${prefix}.self_attn.q_norm.weight`, [headWidth]);
      shapes.set(`${prefix}.self_attn.k_norm.weight`, [headWidth]);
    }
    linear(`${prefix}.self_attn.o_proj`, hiddenSize, queryWidth, biases.output);
    shapes.set(`${prefix}.post_attention_layernorm.weight`, [hiddenSize]);
    linear(`${prefix}.mlp.gate_proj`, intermediateSize, hiddenSize, biases.feedForward);
    linear(`${prefix}.mlp.up_proj`, intermediateSize, hiddenSize, biases.feedForward);
    linear(`${prefix}.mlp.down_proj`, hiddenSize, intermediateSize, biases.feedForward);
  }
  shapes.set('model.norm.weight', [hiddenSize]);
  if (!config.tieWordEmbeddings) shapes.set('lm_head.weight', [vocabularySize, hiddenSize]);
  return shapes;
}

/** What no single field can show. */
function contradictions(config: DecoderConfig): string[] {
  const { heads, keyValueHeads, headWidth, vocabularySize } = config;
  const problems: string[] = [];
  if (!Number.isInteger(headWidth)) {
    problems.push(
      `hidden_size ${config.hiddenSize} is no multiple of num_attention_heads ${heads}, and there is no head_dim`,
    );
  } else if (headWidth % 2 !== 0) {
    problems.push(`the head width ${headWidth} is odd, but rotary positions turn pairs of elements`);
  }
  if (heads % keyValueHeads !== 0) {
    problems.push(`num_attention_heads ${heads} is no multiple of num_key_value_heads ${keyValueHeads}`);
  }
  const ids = {
    bos_token_id: [config.bosTokenId],
    eos_token_id: config.eosTokenIds,
    pad_token_id: [config.padTokenId],
  };
  for (const [field, values] of Object.entries(ids)) {
    const outside = values.find((id) => id !== null && id >= vocabularySize);
    if (outside !== undefined)
      problems.push(`${field} ${outside} is outside the vocabulary of ${vocabularySize}`);
  }
  return problems;
}

function describeIssue(issue: z.core.$ZodIssue): string {
  if (issue.code === 'unrecognized_keys') {
    const fields = issue.keys.map((key) => JSON.stringify([...issue.path, key].join('.'))).join(', ');
    return `unknown fields ${fields}: they may change what the model computes`;
  }
  return `${issue.path.join('.') || 'config'}: ${issue.message}`;
}

function fail(where: string, problems: readonly string[]): never {
  throw new ModelError(
    `${where}: not a model palkit can run\n${problems.map((problem) => `  ${problem}`).join('\n')}`,
  );
}
