/** Parameters: a flat map from name to tensor, or to its handle inside a trace. */

import { constant } from './operations.ts';
import { ProgramError, type Value, type ValueType } from './program.ts';
import type { Shape, Tensor } from './tensor.ts';
import { named } from './trace.ts';

export type Parameters = ReadonlyMap<string, Value>;
export type ParameterTensors = ReadonlyMap<string, Tensor & { dtype: 'float32' }>;

/** How a new parameter begins. */
export type Initial = 'ones' | 'zeros' | 'normal' | 'uniform';

export interface ParameterSpec {
  readonly shape: Shape;
  readonly initial: Initial;
  /** Standard deviation of a normal initial value. */
  readonly deviation?: number;
  /** A uniform initial value lies in [-bound, bound). */
  readonly bound?: number;
}

/** @throws ProgramError naming the parameter that is missing */
export function parameter(parameters: Parameters, name: string): Value {
  const value = parameters.get(name);
  if (value === undefined) throw new ProgramError(`the model has no parameter "${name}"`);
  return value;
}

/** Frozen parameters as constants of the program, which engines prepack. */
export function frozen(tensors: ReadonlyMap<string, Tensor>): Map<string, Value> {
  return new Map([...tensors].map(([name, tensor]) => [name, named(name, constant(tensor))]));
}

/** Program inputs for parameters that are fed at each run. */
export function parameterInputs(tensors: ReadonlyMap<string, Tensor>): Record<string, ValueType> {
  return Object.fromEntries([...tensors].map(([name, { dtype, shape }]) => [name, { dtype, shape }]));
}
