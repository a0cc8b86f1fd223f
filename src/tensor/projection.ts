/** Named linear layers of a model, as `torch.nn.Linear` stores them, and low-rank adapters on them. */
import { add, linear, multiply } from './operations.ts';
import { type Parameters, parameter } from './parameters.ts';
import type { Value } from './program.ts';
import type { Shape } from './tensor.ts';
import { dropoutMask } from './trace.ts';

/** What a layer's adapter is called: A [rank, inputs] and B [outputs, rank]. */
export const adapterNames = (layer: string) => ({ a: `lora.${layer}.A`, b: `lora.${layer}.B` });

/** A constant among the parameters, which nothing trains: what the products of all adapters are multiplied by. */
export const adapterScale = 'lora.scale';

/** What an adapter's dropout leaves of inputs of this shape; undefined without an adapter, and outside of training. */
export function adapterMask(parameters: Parameters, name: string, shape: Shape): Value | undefined {
  return parameters.has(adapterNames(name).a) ? dropoutMask(name, shape) : undefined;
}

/**
 * The linear layer `<name>`: `<name>.weight` [outputs, inputs] and, where the parameters hold one, `<name>.bias`; and
 * where they hold an adapter of it, scale * B A dropout(x) beside it (LoRA, Hu et al. 2021, arXiv 2106.09685).
 * @param x [..., inputs]
 * @param mask of the dropout; drawn here when left out, anew for each call
 * @returns [..., outputs]
 */
export function project(
  x: Value,
  parameters: Parameters,
  name: string,
  mask = adapterMask(parameters, name, x.shape),
): Value {
  const y = linear(x, parameter(parameters, `${name}.weight`), parameters.get(`${name}.bias`));
  const names = adapterNames(name);
  const a = parameters.get(names.a);
  if (a === undefined) return y;
  const kept = mask === undefined ? x : multiply(x, mask);
  const narrow = multiply(linear(kept, a), parameter(parameters, adapterScale));
  return add(y, linear(narrow, parameter(parameters, names.b)));
}
