import type { StageTrains } from '../../train/trains.ts';
import { formatTable } from './table.ts';

const share = (part: number, whole: number) => `${((100 * part) / whole).toFixed(2)} %`;

/** What trains and how much of it: one table, stage after stage, each with its total. */
export function formatTrains(stages: readonly StageTrains[]): string {
  const [first] = stages;
  if (first === undefined) return '';
  const rows = stages.flatMap(({ stage, groups, trained, all }) => [
    ...groups.map(({ group, tensors, parameters }) => [
      stage,
      group,
      tensors,
      parameters,
      share(parameters, all.parameters),
    ]),
    [
      stage,
      'all that trains',
      trained.tensors,
      trained.parameters,
      share(trained.parameters, all.parameters),
    ],
  ]);
  const { tensors, parameters } = first.all;
  return [
    formatTable(['stage', 'what trains', 'tensors', 'parameters', 'of all'], rows),
    `The model has ${parameters} parameters in ${tensors} tensors.`,
  ].join('\n');
}
