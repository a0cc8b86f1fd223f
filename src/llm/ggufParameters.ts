/** The tensors of a GGUF file as parameters under the names of transformers, their rows in its order. */
import type { GgufHeader, GgufTensor } from './gguf.ts';
import { streamGgufTensors } from './ggufTensors.ts';
import { ModelError } from './modelError.ts';

const outerNames: ReadonlyMap<string, string> = new Map([
  ['token_embd.weight', 'model.embed_tokens.weight'],
  ['output_norm.weight', 'model.norm.weight'],
  ['output.weight', 'lm_head.weight'],
]);
const innerNames: ReadonlyMap<string, string> = new Map([
  ['attn_norm', 'input_layernorm'],
  ['attn_q', 'self_attn.q_proj'],
  ['attn_k', 'self_attn.k_proj'],
  ['attn_v', 'self_attn.v_proj'],
  ['attn_output', 'self_attn.o_proj'],
  ['attn_q_norm', 'self_attn.q_norm'],
  ['attn_k_norm', 'self_attn.k_norm'],
  ['ffn_norm', 'post_attention_layernorm'],
  ['ffn_gate', 'mlp.gate_proj'],
  ['ffn_up', 'mlp.up_proj'],
  ['ffn_down', 'mlp.down_proj'],
]);
/** Factors of the rotary frequencies; they are part of the configuration. */
export const ropeFactorsName = 'rope_freqs.weight';

/** transformers' name of a tensor; undefined for one that it does not have. */
function parameterName(name: string): string | undefined {
  const [, layer, part = '', ending] = /^blk\.(\d{1,4})\.(\w+)\.(weight|bias)$/.exec(name) ?? [];
  if (layer === undefined) return outerNames.get(name);
  const inner = innerNames.get(part);
  return inner === undefined ? undefined : `model.layers.${Number(layer)}.${inner}.${ending}`;
}

/** Names and shapes of the parameters. @throws ModelError listing tensors that no model here has. */
export function ggufParameterShapes(path: string, { tensors }: GgufHeader): Map<string, readonly number[]> {
  const shapes = new Map<string, readonly number[]>();
  const unknown: string[] = [];
  for (const { name, shape } of tensors) {
    if (name === ropeFactorsName) continue;
    const parameter = parameterName(name);
    if (parameter === undefined) unknown.push(name);
    else if (shapes.has(parameter)) throw new ModelError(`${path}: "${parameter}" is there twice`);
    else shapes.set(parameter, shape);
  }
  if (unknown.length === 0) return shapes;
  throw new ModelError(
    `${path}: ${unknown.length} tensors of another model:\n${unknown.map((name) => `  ${name}`).join('\n')}`,
  );
}

/**
 * Reads the parameters one by one, as float32.
 * @param config what the file's `ggufConfig` describes, checked against its shapes
 */
export async function* streamGgufParameters(
  path: string,
  { metadata, tensors }: GgufHeader,
  config: { readonly heads: number; readonly keyValueHeads: number },
): AsyncGenerator<readonly [string, GgufTensor['shape'], Float32Array<ArrayBuffer>]> {
  const permuted = metadata.get('general.architecture') === 'llama';
  const wanted = tensors.filter(({ name }) => name !== ropeFactorsName);
  for await (const [{ name, shape }, values] of streamGgufTensors(path, wanted)) {
    const heads = /\.attn_q\.\w+$/.test(name) ? config.heads : config.keyValueHeads;
    const ordered = permuted && /\.attn_[qk]\.\w+$/.test(name) ? halvesOfHeads(values, heads, shape) : values;
    yield [parameterName(name) as string, shape, ordered];
  }
}

/**
 * llama.cpp turns neighbouring rows of a head by the same angle, transformers rows half a head apart; the files of the
 * "llama" architecture have their query and key rows in llama.cpp's order. This puts them back.
 */
function halvesOfHeads(
  values: Float32Array,
  heads: number,
  shape: readonly number[],
): Float32Array<ArrayBuffer> {
  const rows = shape[0] as number;
  const rowSize = values.length / rows;
  const half = rows / heads / 2;
  const ordered = new Float32Array(values.length);
  for (let row = 0; row < rows; row++) {
    const [head, inHead] = [Math.floor(row / (2 * half)), row % (2 * half)];
    const to = head * 2 * half + (inHead % 2) * half + (inHead >> 1);
    ordered.set(values.subarray(row * rowSize, (row + 1) * rowSize), to * rowSize);
  }
  return ordered;
}
