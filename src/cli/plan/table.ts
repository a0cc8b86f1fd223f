/** A plan as tables for the terminal. */
import { describeHeld } from '../../ffn/accounting.ts';
import type { ExperimentPlan, PlannedStage } from '../../train/plan.ts';
import { formatTable } from '../terminal/table.ts';
import { formatTrains } from '../terminal/trains.ts';

const rounded = (value: number, digits: number) => Number(value.toFixed(digits));
const megabytes = (bytes: number) => rounded(bytes / 1e6, 1);

/** The streams, then each stage: parameters, memory and work. */
export function formatPlan(plan: ExperimentPlan): string {
  const { experiment, engine, rates, notes, skipped, streams, feedForward, stages, trains } = plan;
  const stated =
    rates === null
      ? 'No rates are known for this engine, so no time is told; --gflops-per-thread and --gb-per-second give them.'
      : `Times are arithmetic over rates: ${rates.gigaflopsPerThread} GFLOP/s a thread in matrix products, ${rates.gigabytesPerSecond} GB/s for the rest, ${rates.microsecondsPerNode} us a node.`;
  return [
    `${experiment}, ${engine}. Nothing was run.`,
    ...notes,
    ...(skipped.length === 0 ? [] : [`Samples that cannot be read and are left out: ${skipped.length}`]),
    ...skipped.map(({ id, reason }) => `left out "${id}": ${reason}`),
    '',
    formatTable(
      ['stream', 'frames', 'width'],
      streams.map(({ stream, frames, width }) => [stream, frames, width]),
    ),
    '',
    formatTable(
      [
        'stage',
        'steps',
        'parameters',
        'trained',
        'trained MB',
        'gradients MB',
        'optimizer MB',
        'activations MB',
        'peak resident MB',
        'GFLOP a step',
        'step ms',
        'minutes',
      ],
      stages.map(summaryRow),
    ),
    '',
    formatTrains(trains),
    ...describeHeld(feedForward),
    ...stages.flatMap((stage) => ['', ...formatStage(stage)]),
    '',
    stated,
  ].join('\n');
}

function summaryRow({ stage, steps, parameters, activations, peakResidentMB, flops, stepMs }: PlannedStage) {
  return [
    stage,
    steps,
    parameters.all,
    parameters.trained,
    megabytes(parameters.trainedBytes),
    megabytes(parameters.gradientBytes),
    megabytes(parameters.optimizerBytes),
    megabytes(activations.peakBytes),
    peakResidentMB ?? '',
    rounded(flops / 1e9, 2),
    stepMs === null ? '' : rounded(stepMs, 0),
    stepMs === null ? '' : rounded((steps * stepMs) / 60_000, 1),
  ];
}

function formatStage({
  stage,
  shapes,
  batchShapes,
  questions,
  activations,
  recomputation,
  parts,
  memory,
}: PlannedStage) {
  const { rows, textRows, targets } = shapes[0] as PlannedStage['shapes'][number];
  return [
    `Stage "${stage}": ${questions} questions, ${rows} x ${textRows} text tokens, ${targets} targets. Activations are most at "${activations.peakAt}".`,
    ...(recomputation === null ? [] : [recomputation]),
    ...(batchShapes === null ? [] : [batchShapes]),
    '',
    formatTable(
      ['part', 'forward GFLOP', 'backward GFLOP', 'update GFLOP', 'activations held at the peak, MB'],
      parts.map(({ part, flops }) => [
        part,
        rounded(flops.forward / 1e9, 3),
        rounded(flops.backward / 1e9, 3),
        rounded(flops.update / 1e9, 3),
        megabytes(activations.parts.find((held) => held.part === part)?.bytes ?? 0),
      ]),
    ),
    ...(memory.length === 0
      ? []
      : [
          '',
          formatTable(
            ['resident memory at its peak', 'MB'],
            memory.map(({ what, bytes }) => [what, megabytes(bytes)]),
          ),
        ]),
  ];
}
