import { z } from 'zod';
import { ModelError } from './modelError.ts';

/** The sizes and constants of a Llama-family decoder, checked. Field names of config.json in brackets. */
export interface DecoderConfig {
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
  /** True when the output projection is the embedding table. */
  readonly tieWordEmbeddings: boolean;
  /** Longest sequence the model was made for (`max_position_embeddings`). */
  readonly maxPositions: number;
  readonly bosTokenId: number;
  readonly eosTokenIds: readonly number[];
  readonly padTokenId: number | null;
}

const size = z.int().positive().max(1_000_000_000);
const tokenId = z.int().nonnegative();
const positive = z.number().positive();
const plainRope = z.strictObject({
  rope_type: z.literal('default').optional(),
  type: z.literal('default').optional(),
  rope_theta: positive.optional(),
});

/** What palkit computes with. Where a field may be missing, the default is that of Hugging Face's DecoderConfig. */
const usedFields = {
  architectures: z.tuple([z.literal('LlamaForCausalLM')]),
  model_type: z.literal('llama'),
  hidden_size: size,
  intermediate_size: size,
  num_hidden_layers: z.int().positive().max(1000),
  num_attention_heads: size,
  num_key_value_heads: size.nullish(),
  head_dim: size.nullish(),
  vocab_size: size,
  rms_norm_eps: positive.default(1e-6),
  rope_theta: positive.optional(),
  // What newer files write in the place of rope_theta and rope_scaling.
  rope_parameters: plainRope.optional(),
  tie_word_embeddings: z.boolean().default(false),
  max_position_embeddings: size.default(2048),
  bos_token_id: tokenId.default(1),
  eos_token_id: z
    .union([tokenId, z.array(tokenId).min(1)])
    .nullable()
    .default(2),
  // -1 is how the first Llama files said "none".
  pad_token_id: z
    .union([tokenId, z.literal(-1)])
    .nullable()
    .default(null),
};

/** Fields that would change the computation unless they have these values. */
const fixedFields = {
  hidden_act: z.literal('silu').default('silu'),
  attention_bias: z.literal(false).default(false),
  mlp_bias: z.literal(false).default(false),
  rope_scaling: plainRope.nullish(),
  rope_interleaved: z.literal(false).optional(),
  pretraining_tp: z.literal(1).optional(),
  attention_dropout: z.literal(0).optional(),
  is_encoder_decoder: z.literal(false).optional(),
  is_llama_config: z.literal(true).optional(),
};

/** Fields that any value may stand in: they say how the file was made, or steer other programs. */
const harmlessFields = [
  '_attn_implementation_autoset',
  '_commit_hash',
  '_name_or_path',
  'auto_map',
  'chunk_size_feed_forward',
  'dtype',
  'id2label',
  'initializer_range',
  'label2id',
  'model_max_length',
  'output_attentions',
  'output_hidden_states',
  'problem_type',
  'return_dict',
  'tokenizer_class',
  'torch_dtype',
  'transformers_version',
  'transformers.js_config',
  'unsloth_fixed',
  'use_cache',
];

const configSchema = z.strictObject({
  ...usedFields,
  ...fixedFields,
  ...Object.fromEntries(harmlessFields.map((name) => [name, z.unknown().optional()])),
});

/**
 * Checks the content of a config.json.
 * @param where how error messages name the file
 * @throws ModelError that lists every field that is missing, malformed, not supported (another architecture or
 * activation, biases, scaled rotary positions) or unknown.
 */
export function parseDecoderConfig(json: unknown, where: string): DecoderConfig {
  const parsed = configSchema.safeParse(json);
  if (!parsed.success) fail(where, parsed.error.issues.map(describeIssue));
  const fields = parsed.data;
  const heads = fields.num_attention_heads;
  const eos = fields.eos_token_id;
  const config: DecoderConfig = {
    hiddenSize: fields.hidden_size,
    intermediateSize: fields.intermediate_size,
    layers: fields.num_hidden_layers,
    heads,
    keyValueHeads: fields.num_key_value_heads ?? heads,
    headWidth: fields.head_dim ?? fields.hidden_size / heads,
    vocabularySize: fields.vocab_size,
    rmsNormEpsilon: fields.rms_norm_eps,
    ropeTheta: fields.rope_parameters?.rope_theta ?? fields.rope_theta ?? 10_000,
    tieWordEmbeddings: fields.tie_word_embeddings,
    maxPositions: fields.max_position_embeddings,
    bosTokenId: fields.bos_token_id,
    eosTokenIds: eos === null ? [] : typeof eos === 'number' ? [eos] : eos,
    padTokenId: fields.pad_token_id === -1 ? null : fields.pad_token_id,
  };
  const problems = contradictions(config);
  if (problems.length > 0) fail(where, problems);
  return config;
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
    architectures: ['LlamaForCausalLM'],
    model_type: 'llama',
    hidden_size: config.hiddenSize,
    intermediate_size: config.intermediateSize,
    num_hidden_layers: config.layers,
    num_attention_heads: config.heads,
    num_key_value_heads: config.keyValueHeads,
    head_dim: config.headWidth,
    vocab_size: config.vocabularySize,
    rms_norm_eps: config.rmsNormEpsilon,
    rope_theta: config.ropeTheta,
    rope_scaling: null,
    tie_word_embeddings: config.tieWordEmbeddings,
    max_position_embeddings: config.maxPositions,
    hidden_act: 'silu',
    attention_bias: false,
    mlp_bias: false,
    bos_token_id: config.bosTokenId,
    eos_token_id: config.eosTokenIds.length > 1 ? [...config.eosTokenIds] : eos,
    pad_token_id: config.padTokenId,
    torch_dtype: storedAs,
  };
}

/** Names (Hugging Face's) and shapes of all parameters; matrices are [outputs, inputs]. */
export function parameterShapes(config: DecoderConfig): Map<string, number[]> {
  const { hiddenSize, intermediateSize, vocabularySize } = config;
  const queryWidth = config.heads * config.headWidth;
  const keyValueWidth = config.keyValueHeads * config.headWidth;
  const shapes = new Map<string, number[]>([['model.embed_tokens.weight', [vocabularySize, hiddenSize]]]);
  for (let layer = 0; layer < config.layers; layer++) {
    const prefix = `model.layers.${layer}`;
    shapes
      .set(`${prefix}.input_layernorm.weight`, [hiddenSize])
      .set(`${prefix}.self_attn.q_proj.weight`, [queryWidth, hiddenSize])
      .set(`${prefix}.self_attn.k_proj.weight`, [keyValueWidth, hiddenSize])
      .set(`${prefix}.self_attn.v_proj.weight`, [keyValueWidth, hiddenSize])
      .set(`${prefix}.self_attn.o_proj.weight`, [hiddenSize, queryWidth])
      .set(`${prefix}.post_attention_layernorm.weight`, [hiddenSize])
      .set(`${prefix}.mlp.gate_proj.weight`, [intermediateSize, hiddenSize])
      .set(`${prefix}.mlp.up_proj.weight`, [intermediateSize, hiddenSize])
      .set(`${prefix}.mlp.down_proj.weight`, [hiddenSize, intermediateSize]);
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
