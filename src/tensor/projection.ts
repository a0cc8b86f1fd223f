/** Named linear layers of a model, as `torch.nn.Linear` stores them. */
import { linear } from './operations.ts';
import { type Parameters, parameter } from './parameters.ts';
import type { Value } from './program.ts';

/**
 * The linear layer `<name>`: `<name>.weight` [outputs, inputs] and, where the parameters hold one, `<name>.bias`.
 * @param x [..., inputs]
 * @returns [..., outputs]
 */
export function project(x: Value, parameters: Parameters, name: string): Value {
  return linear(x, parameter(parameters, `${name}.weight`), parameters.get(`${name}.bias`));
}
