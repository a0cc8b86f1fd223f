/**
 * Low-rank adapters (LoRA, Hu et al. 2021, arXiv 2106.09685): beside a projection W a product scale * B A of two
 * narrow matrices that learns in its place. `project` of src/tensor/projection.ts computes them.
 */
import { ConfigError } from '../config/configError.ts';
import { didYouMean } from '../config/nearest.ts';
import { patternTest } from '../config/patterns.ts';
import type { ParameterSpec, ParameterTensors } from '../tensor/parameters.ts';
import { adapterNames, adapterScale } from '../tensor/projection.ts';
import { float32, type Tensor } from '../tensor/tensor.ts';
import { type DecoderConfig, parameterShapes } from './config.ts';
import { ModelError } from './modelError.ts';

export interface LoraConfig {
  readonly rank: number;
  /** What the adapters' products are multiplied by is alpha / rank. */
  readonly alpha: number;
  /** Probability with which an element of an adapter's input is dropped in training. */
  readonly dropout: number;
  /** Patterns on the names of projections, or on how these end: `q_proj`. */
  readonly targets: readonly string[];
  /** `2..5`: in these layers alone; null: in all. */
  readonly layers: string | null;
}

/** Which projections have adapters, and of what kind. */
export interface Lora extends Pick<LoraConfig, 'rank' | 'alpha' | 'dropout'> {
  /** `model.layers.0.self_attn.q_proj` */
  readonly modules: readonly string[];
}

type FloatTensor = Tensor & { dtype: 'float32' };

/** The projections of an LLM's layers with their shapes, [outputs, inputs]. */
export function projectionShapes(llm: DecoderConfig): Map<string, readonly number[]> {
  const weight = '.weight';
  return new Map(
    [...parameterShapes(llm)]
      .filter(
        ([name, shape]) => /^model\.layers\.\d+\./.test(name) && name.endsWith(weight) && shape.length === 2,
      )
      .map(([name, shape]) => [name.slice(0, -weight.length), shape]),
  );
}

/**
 * The adapters that a configuration asks for.
 * @throws ConfigError for a target that no projection has, and layers that the LLM does not have
 */
export function loraOf(llm: DecoderConfig, { rank, alpha, dropout, targets, layers }: LoraConfig): Lora {
  const range = layers?.split('..').map(Number);
  if (range?.some((layer) => layer >= llm.layers))
    throw new ConfigError(`llm.lora.layers: ${layers}: the LLM has layers 0 to ${llm.layers - 1}`);
  const inRange = patternTest(layers === null ? '*' : `model.layers.{${layers}}.*`, 'llm.lora.layers');
  const within = [...projectionShapes(llm).keys()].filter(inRange);
  const chosen = new Set(
    targets.flatMap((target) => {
      const fits = patternTest(target, 'llm.lora.targets');
      const matches = within.filter((module) => endingsOf(module).some(fits));
      if (matches.length > 0) return matches;
      const known = [...new Set(within.map((module) => module.split('.').at(-1) as string))];
      throw new ConfigError(
        `llm.lora.targets: "${target}" matches no projection${didYouMean(target, known)}; there are ${known.join(', ')}`,
      );
    }),
  );
  return { modules: within.filter((module) => chosen.has(module)), rank, alpha, dropout };
}

/** `a.b.c`, `b.c`, `c` */
function endingsOf(name: string): string[] {
  const steps = name.split('.');
  return steps.map((_, at) => steps.slice(at).join('.'));
}

/** Names, shapes and initial values of the adapters: they begin as PEFT's, and change nothing at first. */
export function loraParameters(llm: DecoderConfig, { modules, rank }: Lora): Map<string, ParameterSpec> {
  const shapes = projectionShapes(llm);
  return new Map(
    modules.flatMap((module): [string, ParameterSpec][] => {
      const [outputs, inputs] = shapes.get(module) as [number, number];
      const names = adapterNames(module);
      // Kaiming-uniform with a = sqrt(5).
      return [
        [names.a, { shape: [rank, inputs], initial: 'uniform', bound: inputs ** -0.5 }],
        [names.b, { shape: [outputs, rank], initial: 'zeros' }],
      ];
    }),
  );
}

/** The constant that stands beside the adapters. */
export function loraScale({ rank, alpha }: Pick<Lora, 'rank' | 'alpha'>): FloatTensor {
  return float32([], [alpha / rank]);
}

/** Whether a parameter belongs to the adapters, their constant among them. */
export function isAdapter(name: string): boolean {
  return name.startsWith('lora.');
}

/** The adapters among the parameters, by module. */
function adaptersIn(parameters: ParameterTensors): { module: string; a: FloatTensor; b: FloatTensor }[] {
  return [...parameters].flatMap(([name, a]) => {
    const [, module = ''] = /^lora\.(.+)\.A$/.exec(name) ?? [];
    const b = parameters.get(adapterNames(module).b);
    return b === undefined ? [] : [{ module, a, b }];
  });
}

/**
 * The parameters with the adapters in the weights: W + scale * B A. What has no adapter is shared, not copied.
 * @returns without adapters
 */
export function mergeLora(parameters: ParameterTensors): Map<string, FloatTensor> {
  const merged = new Map([...parameters].filter(([name]) => !isAdapter(name)));
  addProducts(merged, parameters, 1);
  return merged;
}

/**
 * The inverse of `mergeLora`, up to rounding.
 * @param merged weights that have the adapters in them
 * @param adapters as they were when they were merged; other parameters are left out
 * @returns the weights as they were, with the adapters beside them
 */
export function unmergeLora(merged: ParameterTensors, adapters: ParameterTensors): Map<string, FloatTensor> {
  const apart = new Map(merged);
  addProducts(apart, adapters, -1);
  for (const [name, tensor] of adapters) if (isAdapter(name)) apart.set(name, tensor);
  return apart;
}

/** Replaces the weights by W + sign * scale * B A. */
function addProducts(weights: Map<string, FloatTensor>, adapters: ParameterTensors, sign: 1 | -1): void {
  const scale = adapters.get(adapterScale)?.data[0];
  for (const { module, a, b } of adaptersIn(adapters)) {
    const name = `${module}.weight`;
    const weight = weights.get(name);
    if (weight === undefined || scale === undefined)
      throw new ModelError(
        `there is an adapter of "${module}" and no ${scale === undefined ? adapterScale : name}`,
      );
    weights.set(name, withProduct(weight, a, b, sign * scale));
  }
}

/** weight + scale * b a, each row added up in float64. */
function withProduct(weight: FloatTensor, a: FloatTensor, b: FloatTensor, scale: number): FloatTensor {
  const [outputs, inputs] = weight.shape as [number, number];
  const rank = a.shape[0] as number;
  const sums = new Float64Array(inputs);
  const result = new Float32Array(weight.data.length);
  for (let row = 0; row < outputs; row++) {
    sums.set(weight.data.subarray(row * inputs, (row + 1) * inputs));
    for (let at = 0; at < rank; at++) {
      const factor = scale * (b.data[row * rank + at] as number);
      const start = at * inputs;
      for (let column = 0; column < inputs; column++)
        (sums[column] as number) += factor * (a.data[start + column] as number);
    }
    result.set(sums, row * inputs);
  }
  return float32(weight.shape, result);
}
