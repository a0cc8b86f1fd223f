/** What each stage trains, in groups that a person can take in. */
import type { Experiment } from '../config/schema.ts';
import { isHashTable } from '../ffn/parameters.ts';
import type { ParameterTensors } from '../tensor/parameters.ts';
import { adapterScale } from '../tensor/projection.ts';
import { trainableByStage } from './stage.ts';

/** Parameters that stand together: `model.layers.*.self_attn`. */
export interface TrainedGroup {
  readonly group: string;
  readonly tensors: number;
  readonly parameters: number;
}

export interface StageTrains {
  readonly stage: string;
  /** Of the parameters that train, the largest first. */
  readonly groups: readonly TrainedGroup[];
  readonly trained: { readonly tensors: number; readonly parameters: number };
  readonly all: { readonly tensors: number; readonly parameters: number };
}

/** What every stage trains. @throws ConfigError as `trainableByStage` */
export function whatTrains(experiment: Experiment, parameters: ParameterTensors): StageTrains[] {
  const own = new Map([...parameters].filter(([name]) => name !== adapterScale && !isHashTable(name)));
  const all = counted([...own.keys()], own);
  return trainableByStage(experiment, own.keys()).map((names, at) => {
    const groups = [...new Set([...names].map(groupOf))].map((group) => ({
      group,
      ...counted(
        [...names].filter((name) => groupOf(name) === group),
        own,
      ),
    }));
    return {
      stage: experiment.train.stages[at]?.name ?? '',
      groups: groups.sort((a, b) => b.parameters - a.parameters),
      trained: counted([...names], own),
      all,
    };
  });
}

function counted(names: readonly string[], parameters: ParameterTensors) {
  const count = names.reduce((total, name) => total + (parameters.get(name)?.data.length ?? 0), 0);
  return { tensors: names.length, parameters: count };
}

/** A parameter's group: the part of a layer, of all layers together; of a stream all, of adapters by where they stand. */
function groupOf(name: string): string {
  const steps = name.split('.').map((step) => (/^\d+$/.test(step) ? '*' : step));
  if (steps[0] === 'connector') return steps.slice(0, 2).join('.');
  const depth = steps.indexOf('*') < 0 ? 2 : steps.indexOf('*') + 2;
  return steps.slice(0, depth).join('.');
}
