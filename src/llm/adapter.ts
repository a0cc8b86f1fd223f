/** Adapters as PEFT keeps them: a folder with adapter_config.json and adapter_model.safetensors. */
import { mkdir } from 'node:fs/promises';
import { join } from 'node:path';
import { z } from 'zod';
import { writeFileAtomic } from '../config/writeFile.ts';
import type { ParameterTensors } from '../tensor/parameters.ts';
import { adapterNames, adapterScale } from '../tensor/projection.ts';
import type { Shape } from '../tensor/tensor.ts';
import type { DecoderConfig } from './config.ts';
import { type Lora, loraParameters, loraScale, projectionShapes } from './lora.ts';
import { ModelError } from './modelError.ts';
import { writeSafetensors } from './safetensors.ts';
import { readStrictJson } from './strictJson.ts';
import { checkKeys, type FloatTensor, streamWeights } from './weights.ts';

const configFile = 'adapter_config.json';
const weightsFile = 'adapter_model.safetensors';
const prefix = 'base_model.model.';

/** Fields whose value the tensors show too, or that say how the adapter was made. */
const harmlessFields = [
  'auto_mapping',
  'base_model_name_or_path',
  'exclude_modules',
  'inference_mode',
  'layers_pattern',
  'layers_to_transform',
  'megatron_core',
  'peft_version',
  'qalora_group_size',
  'revision',
  'runtime_config',
  'target_modules',
  'task_type',
];

const configSchema = z.looseObject({
  peft_type: z.literal('LORA'),
  r: z.int().min(1).max(65_536),
  lora_alpha: z.number().positive(),
  lora_dropout: z.number().min(0).lt(1).default(0),
  use_rslora: z.boolean().default(false),
  bias: z.literal('none').default('none'),
  // Other ways of beginning change the base model's weights too.
  init_lora_weights: z.union([z.boolean(), z.enum(['gaussian', 'orthogonal'])]).default(true),
});

/** Whether a field says that something is not used. */
const isUnused = (value: unknown) =>
  value === null ||
  value === false ||
  (typeof value === 'object' && Object.keys(value as object).length === 0);

/**
 * Writes adapters so that PEFT loads them.
 * @param parameters the adapters' are taken, others left out
 * @param base the model that they belong to, as PEFT is to look for it
 */
export async function writeAdapter(
  folder: string,
  { modules, rank, alpha, dropout }: Lora,
  parameters: ParameterTensors,
  base: string | null = null,
): Promise<void> {
  await mkdir(folder, { recursive: true });
  const tensors = new Map(
    modules.flatMap((module): [string, FloatTensor][] => {
      const { a, b } = adapterNames(module);
      return [
        [`${prefix}${module}.lora_A.weight`, parameters.get(a) as FloatTensor],
        [`${prefix}${module}.lora_B.weight`, parameters.get(b) as FloatTensor],
      ];
    }),
  );
  const config = {
    peft_type: 'LORA',
    task_type: 'CAUSAL_LM',
    base_model_name_or_path: base,
    r: rank,
    lora_alpha: alpha,
    lora_dropout: dropout,
    target_modules: modules,
    bias: 'none',
    fan_in_fan_out: false,
    inference_mode: true,
    use_dora: false,
    use_rslora: false,
  };
  await writeSafetensors(join(folder, weightsFile), tensors, { format: 'pt' });
  await writeFileAtomic(join(folder, configFile), `${JSON.stringify(config, null, 2)}\n`);
}

/**
 * Reads adapters of an LLM.
 * @returns what they are, and their parameters with the constant beside them
 * @throws ModelError naming the file, and every field or tensor that palkit cannot compute with
 */
export async function readAdapter(
  folder: string,
  llm: DecoderConfig,
): Promise<{ lora: Lora; parameters: Map<string, FloatTensor> }> {
  const path = join(folder, configFile);
  const json = await readStrictJson(path, { bytes: 2 ** 20, depth: 8 });
  if (json === undefined) throw new ModelError(`${path}: no such file. An adapter's folder needs one.`);
  const parsed = configSchema.safeParse(json);
  if (!parsed.success) {
    const problems = parsed.error.issues.map(({ path: at, message }) => `  ${at.join('.')}: ${message}`);
    throw new ModelError(`${path}: not an adapter that palkit can run\n${problems.join('\n')}`);
  }
  const fields = parsed.data;
  const unknown = Object.keys(fields).filter(
    (name) => !(name in configSchema.shape) && !harmlessFields.includes(name) && !isUnused(fields[name]),
  );
  if (unknown.length > 0) {
    throw new ModelError(
      `${path}: ${unknown.join(', ')}: palkit does not know what that changes, and computes plain adapters alone`,
    );
  }
  const { r: rank, lora_alpha, lora_dropout: dropout, use_rslora } = fields;
  const alpha = use_rslora ? lora_alpha * Math.sqrt(rank) : lora_alpha;
  const weightsPath = join(folder, weightsFile);
  const parameters = new Map<string, FloatTensor>();
  const modules = new Set<string>();
  const strange: string[] = [];
  for await (const [name, tensor] of streamWeights(weightsPath)) {
    const [, module, kind] = /^base_model\.model\.(.+)\.lora_(A|B)\.weight$/.exec(name) ?? [];
    if (module === undefined) strange.push(name);
    else {
      modules.add(module);
      const { a, b } = adapterNames(module);
      parameters.set(kind === 'A' ? a : b, tensor);
    }
  }
  const projections = projectionShapes(llm);
  strange.push(...[...modules].filter((module) => !projections.has(module)));
  if (strange.length > 0)
    throw new ModelError(`${weightsPath}: no adapters of this LLM's projections: ${strange.join(', ')}`);
  const lora: Lora = {
    modules: [...projections.keys()].filter((name) => modules.has(name)),
    rank,
    alpha,
    dropout,
  };
  checkKeys(parameters, adapterShapes(llm, lora), weightsPath);
  return { lora, parameters: parameters.set(adapterScale, loraScale(lora)) };
}

/** Names and shapes of adapters, without the constant beside them. */
export function adapterShapes(llm: DecoderConfig, lora: Lora): Map<string, Shape> {
  return new Map([...loraParameters(llm, lora)].map(([name, { shape }]) => [name, shape]));
}
