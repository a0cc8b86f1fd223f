import { describe, expect, test } from 'vitest';
import { decoderConfigJson, parameterShapes, parseDecoderConfig } from '../../src/llm/config.ts';
import { plainLlama } from '../../src/llm/families.ts';

/** The config.json of HuggingFaceTB/SmolLM2-135M. */
const smolLm2 = {
  architectures: ['LlamaForCausalLM'],
  attention_bias: false,
  attention_dropout: 0.0,
  bos_token_id: 0,
  eos_token_id: 0,
  hidden_act: 'silu',
  hidden_size: 576,
  initializer_range: 0.041666666666666664,
  intermediate_size: 1536,
  is_llama_config: true,
  max_position_embeddings: 8192,
  model_type: 'llama',
  num_attention_heads: 9,
  num_hidden_layers: 30,
  num_key_value_heads: 3,
  pretraining_tp: 1,
  rms_norm_eps: 1e-5,
  rope_interleaved: false,
  rope_scaling: null,
  rope_theta: 100000,
  tie_word_embeddings: true,
  torch_dtype: 'bfloat16',
  transformers_version: '4.40.1',
  use_cache: true,
  vocab_size: 49152,
};

const minimal = {
  architectures: ['LlamaForCausalLM'],
  model_type: 'llama',
  hidden_size: 8,
  intermediate_size: 12,
  num_hidden_layers: 1,
  num_attention_heads: 4,
  vocab_size: 10,
};

describe('parseDecoderConfig', () => {
  test('reads a published config', () => {
    expect(parseDecoderConfig(smolLm2, 'config.json')).toEqual({
      ...plainLlama,
      hiddenSize: 576,
      intermediateSize: 1536,
      layers: 30,
      heads: 9,
      keyValueHeads: 3,
      headWidth: 64,
      vocabularySize: 49152,
      rmsNormEpsilon: 1e-5,
      ropeTheta: 100000,
      tieWordEmbeddings: true,
      maxPositions: 8192,
      bosTokenId: 0,
      eosTokenIds: [0],
      padTokenId: null,
    });
  });

  test('fills in the defaults of transformers', () => {
    expect(parseDecoderConfig(minimal, 'config.json')).toMatchObject({
      keyValueHeads: 4,
      headWidth: 2,
      rmsNormEpsilon: 1e-6,
      ropeTheta: 10000,
      tieWordEmbeddings: false,
      maxPositions: 2048,
      bosTokenId: 1,
      eosTokenIds: [2],
      padTokenId: null,
    });
  });

  test('reads what transformers 5 writes', () => {
    const config = { ...minimal, rope_parameters: { rope_theta: 5000, rope_type: 'default' }, dtype: null };
    expect(parseDecoderConfig(config, 'config.json').ropeTheta).toBe(5000);
  });

  test('reads special tokens in all their forms', () => {
    const config = { ...minimal, bos_token_id: 0, eos_token_id: [3, 4], pad_token_id: -1 };
    expect(parseDecoderConfig(config, 'config.json')).toMatchObject({
      bosTokenId: 0,
      eosTokenIds: [3, 4],
      padTokenId: null,
    });
  });

  test('fills in the defaults of each family', () => {
    const of = (model_type: string, architecture: string, change: object = {}) =>
      parseDecoderConfig(
        {
          ...minimal,
          num_attention_heads: 32,
          hidden_size: 64,
          model_type,
          architectures: [architecture],
          ...change,
        },
        'c',
      );
    expect(of('mistral', 'MistralForCausalLM')).toMatchObject({
      keyValueHeads: 8,
      windows: [4096],
      maxPositions: 131072,
      bosTokenId: 1,
    });
    expect(of('qwen2', 'Qwen2ForCausalLM')).toMatchObject({
      keyValueHeads: 32,
      biases: { queryKeyValue: true, output: false, feedForward: false },
      windows: [],
      bosTokenId: null,
      eosTokenIds: [],
    });
    expect(of('qwen3', 'Qwen3ForCausalLM')).toMatchObject({
      headWidth: 128,
      queryKeyNorm: true,
      windows: [],
    });
    const windows = {
      use_sliding_window: true,
      sliding_window: 5,
      max_window_layers: 2,
      num_hidden_layers: 3,
    };
    expect(of('qwen2', 'Qwen2ForCausalLM', windows).windows).toEqual([null, null, 5]);
    const types = ['sliding_attention', 'full_attention', 'full_attention'];
    expect(of('qwen2', 'Qwen2ForCausalLM', { ...windows, layer_types: types }).windows).toEqual([
      5,
      null,
      null,
    ]);
    expect(() => of('qwen2', 'Qwen2ForCausalLM', { layer_types: types })).toThrow(
      /layer_types names 3 layers/,
    );
  });

  test.each<[string, object, RegExp]>([
    ['another architecture', { architectures: ['Qwen2ForCausalLM'] }, /architectures\.0: .*LlamaForCausalLM/],
    ['another family', { model_type: 'gemma' }, /model_type: .*llama.*qwen3/],
    ['another activation', { hidden_act: 'gelu' }, /hidden_act: .*silu/],
    ['a window, which Llama has not', { sliding_window: 4 }, /unknown fields "sliding_window"/],
    ['scaling without its factors', { rope_scaling: { rope_type: 'llama3', factor: 8 } }, /low_freq_factor/],
    ['scaling by length', { rope_scaling: { type: 'dynamic', factor: 2 } }, /rope_scaling\.rope_type/],
    [
      'scaling by length, in transformers 5',
      { rope_parameters: { rope_type: 'longrope' } },
      /rope_parameters\.rope_type/,
    ],
    [
      'a field of the scaling that is not computed',
      { rope_scaling: { type: 'yarn', factor: 2, mscale: 1 } },
      /unknown fields "rope_scaling\.mscale"/,
    ],
    [
      'half-rotated heads',
      { rope_parameters: { rope_type: 'default', partial_rotary_factor: 0.5 } },
      /partial_rotary_factor/,
    ],
    [
      'two scalings that are not the same',
      { rope_scaling: { type: 'linear', factor: 2 }, rope_parameters: { rope_type: 'linear', factor: 4 } },
      /rope_scaling and rope_parameters say different things/,
    ],
    [
      'a scaling without a way from slow to fast',
      {
        rope_scaling: {
          rope_type: 'llama3',
          factor: 8,
          low_freq_factor: 4,
          high_freq_factor: 4,
          original_max_position_embeddings: 8192,
        },
      },
      /high_freq_factor .* must be above/,
    ],
    ['an unknown field', { attention_sink: 4 }, /unknown fields "attention_sink"/],
    ['quantized weights', { quantization_config: {} }, /unknown fields "quantization_config"/],
    ['a missing size', { hidden_size: undefined }, /hidden_size/],
    ['a size of zero', { vocab_size: 0 }, /vocab_size/],
    ['a size that is text', { num_hidden_layers: '2' }, /num_hidden_layers/],
    ['a size beyond reason', { num_hidden_layers: 1e9 }, /num_hidden_layers/],
    [
      'heads that do not divide',
      { num_attention_heads: 3 },
      /hidden_size 8 is no multiple of num_attention_heads 3/,
    ],
    ['groups that do not divide', { num_key_value_heads: 3 }, /num_attention_heads 4 is no multiple/],
    ['an odd head', { head_dim: 3 }, /head width 3 is odd/],
    ['a token outside', { eos_token_id: [2, 10] }, /eos_token_id 10 is outside the vocabulary of 10/],
  ])('refuses %s', (_name, change, message) => {
    const config = { ...minimal, ...change };
    expect(() => parseDecoderConfig(config, 'm/config.json')).toThrow(message);
    expect(() => parseDecoderConfig(config, 'm/config.json')).toThrow(/^m\/config\.json: /);
  });

  test('lists every problem at once', () => {
    const config = { ...minimal, hidden_act: 'relu', mlp_bias: 1, sliding_window: 4 };
    expect(() => parseDecoderConfig(config, 'c')).toThrow(/hidden_act.*mlp_bias.*sliding_window/s);
  });

  test.each([[null], [[]], ['text'], [{}]])('refuses %j', (json) => {
    expect(() => parseDecoderConfig(json, 'c')).toThrow(/^c: /);
  });
});

test.each([[smolLm2], [minimal], [{ ...minimal, head_dim: 6, eos_token_id: [3, 4] }]])(
  'decoderConfigJson gives what parses to the same config',
  (json) => {
    const config = parseDecoderConfig(json, 'c');
    const written = JSON.parse(JSON.stringify(decoderConfigJson(config, 'float16')));
    expect(parseDecoderConfig(written, 'c')).toEqual(config);
  },
);

describe('parameterShapes', () => {
  test('counts the parameters of published models', () => {
    const count = (json: object) =>
      [...parameterShapes(parseDecoderConfig(json, 'c')).values()]
        .map((shape) => shape.reduce((a, b) => a * b, 1))
        .reduce((a, b) => a + b, 0);
    expect(count(smolLm2)).toBe(134_515_008);
    // TinyLlama 1.1B: an output projection of its own.
    const tinyLlama = {
      ...minimal,
      hidden_size: 2048,
      intermediate_size: 5632,
      num_hidden_layers: 22,
      num_attention_heads: 32,
      num_key_value_heads: 4,
      vocab_size: 32000,
    };
    expect(count(tinyLlama)).toBe(1_100_048_384);
  });

  test('uses the names of Hugging Face', () => {
    const config = parseDecoderConfig({ ...minimal, num_key_value_heads: 2, head_dim: 6 }, 'c');
    expect(Object.fromEntries(parameterShapes(config))).toEqual({
      'model.embed_tokens.weight': [10, 8],
      'model.layers.0.input_layernorm.weight': [8],
      'model.layers.0.self_attn.q_proj.weight': [24, 8],
      'model.layers.0.self_attn.k_proj.weight': [12, 8],
      'model.layers.0.self_attn.v_proj.weight': [12, 8],
      'model.layers.0.self_attn.o_proj.weight': [8, 24],
      'model.layers.0.post_attention_layernorm.weight': [8],
      'model.layers.0.mlp.gate_proj.weight': [12, 8],
      'model.layers.0.mlp.up_proj.weight': [12, 8],
      'model.layers.0.mlp.down_proj.weight': [8, 12],
      'model.norm.weight': [8],
      'lm_head.weight': [10, 8],
    });
  });
});
