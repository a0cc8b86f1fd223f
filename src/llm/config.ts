/** The architecture of a Llama-family model, as Hugging Face's config.json states it. */
import { z } from 'zod';

export interface LlamaConfig {
  readonly hiddenSize: number;
  readonly intermediateSize: number;
  readonly layers: number;
  readonly heads: number;
  readonly keyValueHeads: number;
  readonly headWidth: number;
  readonly vocabularySize: number;
  readonly rmsNormEpsilon: number;
  readonly ropeTheta: number;
  readonly tieWordEmbeddings: boolean;
  readonly maxPositions: number;
  readonly bosTokenId: number;
  readonly eosTokenIds: readonly number[];
  readonly padTokenId: number | null;
}

export class ModelError extends Error {
  override readonly name = 'ModelError';
}

const size = z.int().min(1).max(1_000_000);
const tokenId = z.int().min(0);

/** Fields that do not touch the mathematics, or only in values that do nothing. */
const harmless = {
  _name_or_path: z.unknown(),
  attention_bias: z.literal(false),
  attention_dropout: z.literal(0),
  dtype: z.unknown(),
  initializer_range: z.unknown(),
  is_llama_config: z.unknown(),
  mlp_bias: z.literal(false),
  pretraining_tp: z.literal(1),
  rope_interleaved: z.literal(false),
  rope_scaling: z.null(),
  torch_dtype: z.unknown(),
  'transformers.js_config': z.unknown(),
  transformers_version: z.unknown(),
  use_cache: z.unknown(),
};

const schema = z.strictObject({
  architectures: z.tuple([z.literal('LlamaForCausalLM')]),
  model_type: z.literal('llama'),
  hidden_act: z.literal('silu').default('silu'),
  hidden_size: size,
  intermediate_size: size,
  num_hidden_layers: z.int().min(1).max(1000),
  num_attention_heads: z.int().min(1).max(1024),
  num_key_value_heads: z.int().min(1).max(1024).optional(),
  head_dim: z.int().min(2).max(4096).nullish(),
  vocab_size: size,
  rms_norm_eps: z.number().positive().default(1e-6),
  rope_theta: z.number().positive().default(10_000),
  tie_word_embeddings: z.boolean().default(false),
  max_position_embeddings: size.default(2048),
  bos_token_id: tokenId,
  eos_token_id: z.union([tokenId, z.array(tokenId).min(1)]),
  pad_token_id: tokenId.nullish(),
  ...(Object.fromEntries(Object.entries(harmless).map(([name, kind]) => [name, kind.optional()])) as {
    [K in keyof typeof harmless]: z.ZodOptional<(typeof harmless)[K]>;
  }),
});

/**
 * Reads a config.json.
 * @param where names the file in errors
 * @throws ModelError listing every field that is missing, mistyped, or would change the mathematics
 */
export function parseLlamaConfig(json: unknown, where: string): LlamaConfig {
  const parsed = schema.safeParse(json);
  if (!parsed.success) {
    const issues = parsed.error.issues.map(
      (issue) => `  ${issue.path.join('.') || 'config'}: ${issue.message}`,
    );
    throw new ModelError(`${where}: not a Llama configuration that is supported\n${issues.join('\n')}`);
  }
  const config = parsed.data;
  const heads = config.num_attention_heads;
  const keyValueHeads = config.num_key_value_heads ?? heads;
  const headWidth = config.head_dim ?? config.hidden_size / heads;
  if (!Number.isInteger(headWidth) || headWidth % 2 !== 0) {
    throw new ModelError(
      `${where}: hidden_size ${config.hidden_size} over ${heads} heads gives no even head width`,
    );
  }
  if (heads % keyValueHeads !== 0) {
    throw new ModelError(
      `${where}: ${heads} attention heads do not divide among ${keyValueHeads} key-value heads`,
    );
  }
  return {
    hiddenSize: config.hidden_size,
    intermediateSize: config.intermediate_size,
    layers: config.num_hidden_layers,
    heads,
    keyValueHeads,
    headWidth,
    vocabularySize: config.vocab_size,
    rmsNormEpsilon: config.rms_norm_eps,
    ropeTheta: config.rope_theta,
    tieWordEmbeddings: config.tie_word_embeddings,
    maxPositions: config.max_position_embeddings,
    bosTokenId: config.bos_token_id,
    eosTokenIds: [config.eos_token_id].flat(),
    padTokenId: config.pad_token_id ?? null,
  };
}

/** A config.json that transformers reads. */
export function llamaConfigJson(config: LlamaConfig): Record<string, unknown> {
  return {
    architectures: ['LlamaForCausalLM'],
    model_type: 'llama',
    hidden_act: 'silu',
    hidden_size: config.hiddenSize,
    intermediate_size: config.intermediateSize,
    num_hidden_layers: config.layers,
    num_attention_heads: config.heads,
    num_key_value_heads: config.keyValueHeads,
    head_dim: config.headWidth,
    vocab_size: config.vocabularySize,
    rms_norm_eps: config.rmsNormEpsilon,
    rope_theta: config.ropeTheta,
    tie_word_embeddings: config.tieWordEmbeddings,
    max_position_embeddings: config.maxPositions,
    bos_token_id: config.bosTokenId,
    eos_token_id: config.eosTokenIds.length === 1 ? config.eosTokenIds[0] : config.eosTokenIds,
    ...(config.padTokenId !== null && { pad_token_id: config.padTokenId }),
  };
}

/** Every parameter of the model by Hugging Face's name, with its shape. */
export function parameterShapes(config: LlamaConfig): Map<string, number[]> {
  const { hiddenSize, intermediateSize, heads, keyValueHeads, headWidth, vocabularySize } = config;
  const shapes = new Map([['model.embed_tokens.weight', [vocabularySize, hiddenSize]]]);
  for (let layer = 0; layer < config.layers; layer++) {
    const prefix = `model.layers.${layer}`;
    shapes.set(`${prefix}.self_attn.q_proj.weight`, [heads * headWidth, hiddenSize]);
    shapes.set(`${prefix}.self_attn.k_proj.weight`, [keyValueHeads * headWidth, hiddenSize]);
    shapes.set(`${prefix}.self_attn.v_proj.weight`, [keyValueHeads * headWidth, hiddenSize]);
    shapes.set(`${prefix}.self_attn.o_proj.weight`, [hiddenSize, heads * headWidth]);
    shapes.set(`${prefix}.mlp.gate_proj.weight`, [intermediateSize, hiddenSize]);
    shapes.set(`${prefix}.mlp.up_proj.weight`, [intermediateSize, hiddenSize]);
    shapes.set(`${prefix}.mlp.down_proj.weight`, [hiddenSize, intermediateSize]);
    shapes.set(`${prefix}.input_layernorm.weight`, [hiddenSize]);
    shapes.set(`${prefix}.post_attention_layernorm.weight`, [hiddenSize]);
  }
  shapes.set('model.norm.weight', [hiddenSize]);
  if (!config.tieWordEmbeddings) shapes.set('lm_head.weight', [vocabularySize, hiddenSize]);
  return shapes;
}
