/**
 * The families of decoders that palkit computes: what their config.json may say, and what a missing field means
 * (the defaults of Hugging Face's config classes). A field that is named nowhere here is an error: it may change
 * what the model computes.
 */
import { z } from 'zod';
import { ropeFields } from './ropeScaling.ts';

export type Family = 'llama' | 'mistral' | 'qwen2' | 'qwen3';

const size = z.int().positive().max(1_000_000_000);
export const tokenId = z.int().nonnegative();
const positive = z.number().positive();

/** Fields that every family has, or that would change the computation unless they have the value given here. */
const commonFields = {
  hidden_size: size,
  intermediate_size: size,
  num_hidden_layers: z.int().positive().max(1000),
  num_attention_heads: size,
  num_key_value_heads: size.nullish(),
  head_dim: size.nullish(),
  vocab_size: size,
  rms_norm_eps: positive.default(1e-6),
  ...ropeFields,
  tie_word_embeddings: z.boolean().default(false),
  eos_token_id: z.union([tokenId, z.array(tokenId).min(1)]).nullish(),
  bos_token_id: tokenId.nullish(),
  // -1 is how the first Llama files said "none".
  pad_token_id: z
    .union([tokenId, z.literal(-1)])
    .nullable()
    .default(null),
  hidden_act: z.literal('silu').default('silu'),
  attention_dropout: z.literal(0).optional(),
  is_encoder_decoder: z.literal(false).optional(),
};

/** Fields that any value may stand in: they say how the file was made, or steer other programs. */
const harmlessFields = Object.fromEntries(
  [
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
  ].map((name) => [name, z.unknown().optional()]),
);

/** Some layers of Qwen models see a window only: those from `max_window_layers` on, unless `layer_types` says which. */
const qwenWindowFields = {
  use_sliding_window: z.boolean().default(false),
  sliding_window: size.nullable().default(4096),
  max_window_layers: z.int().nonnegative().default(28),
  layer_types: z.array(z.enum(['full_attention', 'sliding_attention'])).optional(),
  max_position_embeddings: size.default(32_768),
};

const llama = z.strictObject({
  ...commonFields,
  ...harmlessFields,
  architectures: z.tuple([z.literal('LlamaForCausalLM')]),
  model_type: z.literal('llama'),
  max_position_embeddings: size.default(2048),
  attention_bias: z.boolean().default(false),
  mlp_bias: z.boolean().default(false),
  rope_interleaved: z.literal(false).optional(),
  pretraining_tp: z.literal(1).optional(),
  is_llama_config: z.literal(true).optional(),
});

const mistral = z.strictObject({
  ...commonFields,
  ...harmlessFields,
  architectures: z.tuple([z.literal('MistralForCausalLM')]),
  model_type: z.literal('mistral'),
  max_position_embeddings: size.default(131_072),
  sliding_window: size.nullable().default(4096),
});

const qwen2 = z.strictObject({
  ...commonFields,
  ...harmlessFields,
  ...qwenWindowFields,
  architectures: z.tuple([z.literal('Qwen2ForCausalLM')]),
  model_type: z.literal('qwen2'),
  use_mrope: z.literal(false).optional(),
});

const qwen3 = z.strictObject({
  ...commonFields,
  ...harmlessFields,
  ...qwenWindowFields,
  architectures: z.tuple([z.literal('Qwen3ForCausalLM')]),
  model_type: z.literal('qwen3'),
  attention_bias: z.boolean().default(false),
});

export const configJsonSchema = z.discriminatedUnion('model_type', [llama, mistral, qwen2, qwen3]);
export type ConfigJson = z.infer<typeof configJsonSchema>;

/** What only the family knows. */
interface FamilyTraits {
  readonly architecture: string;
  /** Number of key-value heads where the file does not say; undefined: as many as heads. */
  readonly keyValueHeads: number | undefined;
  /** Head width where the file does not say; undefined: the hidden width shared among the heads. */
  readonly headWidth: number | undefined;
  readonly bosTokenId: number | null;
  readonly eosTokenId: number | null;
  readonly queryKeyNorm: boolean;
}

export const families: Readonly<Record<Family, FamilyTraits>> = {
  llama: {
    architecture: 'LlamaForCausalLM',
    keyValueHeads: undefined,
    headWidth: undefined,
    bosTokenId: 1,
    eosTokenId: 2,
    queryKeyNorm: false,
  },
  mistral: {
    architecture: 'MistralForCausalLM',
    keyValueHeads: 8,
    headWidth: undefined,
    bosTokenId: 1,
    eosTokenId: 2,
    queryKeyNorm: false,
  },
  qwen2: {
    architecture: 'Qwen2ForCausalLM',
    keyValueHeads: 32,
    headWidth: undefined,
    bosTokenId: null,
    eosTokenId: null,
    queryKeyNorm: false,
  },
  qwen3: {
    architecture: 'Qwen3ForCausalLM',
    keyValueHeads: 32,
    headWidth: 128,
    bosTokenId: null,
    eosTokenId: null,
    queryKeyNorm: true,
  },
};

/** The traits of a plain Llama, for configs written by hand. */
export const plainLlama = {
  family: 'llama',
  rmsNormEpsilon: 1e-5,
  ropeTheta: 10_000,
  ropeScaling: null,
  biases: { queryKeyValue: false, output: false, feedForward: false },
  queryKeyNorm: false,
  windows: [],
} as const;

/** Which linear layers of a block have a bias. */
export interface Biases {
  readonly queryKeyValue: boolean;
  readonly output: boolean;
  readonly feedForward: boolean;
}

export function biasesOf(fields: ConfigJson): Biases {
  switch (fields.model_type) {
    case 'llama':
      return {
        queryKeyValue: fields.attention_bias,
        output: fields.attention_bias,
        feedForward: fields.mlp_bias,
      };
    case 'mistral':
      return { queryKeyValue: false, output: false, feedForward: false };
    case 'qwen2':
      return { queryKeyValue: true, output: false, feedForward: false };
    case 'qwen3':
      return { queryKeyValue: fields.attention_bias, output: fields.attention_bias, feedForward: false };
  }
}

/** How many of the newest positions each layer sees, its own included; null: all. Empty: no layer has a window. */
export function windowsOf(fields: ConfigJson): (number | null)[] {
  const layers = [...Array(fields.num_hidden_layers).keys()];
  const windows = layers.map((layer) => windowAt(fields, layer));
  return windows.every((window) => window === null) ? [] : windows;
}

function windowAt(fields: ConfigJson, layer: number): number | null {
  switch (fields.model_type) {
    case 'llama':
      return null;
    case 'mistral':
      return fields.sliding_window;
    case 'qwen2':
    case 'qwen3': {
      const { layer_types: types, max_window_layers: first } = fields;
      const slides = types === undefined ? layer >= first : types[layer] === 'sliding_attention';
      return fields.use_sliding_window && slides ? fields.sliding_window : null;
    }
  }
}
