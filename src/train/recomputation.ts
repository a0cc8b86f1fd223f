/** Which layers of a stage compute their activations again for the backward pass, as a configuration asks. */
import type { Experiment } from '../config/schema.ts';
import type { Program } from '../tensor/program.ts';
import { type Region, recomputableRegions, recompute } from '../tensor/recompute.ts';
import { type Activations, activationsOf } from './activations.ts';
import { RunError } from './setup.ts';
import { layerScope } from './step.ts';

export type RecomputeConfig = Experiment['train']['recompute'];

export interface Recomputation {
  /** Rising. */
  readonly layers: readonly number[];
  /** What was chosen and why, for people. */
  readonly reason: string;
}

const layerOf = ({ scope }: Region) => Number(scope.slice(scope.indexOf('.') + 1));

/**
 * Chooses the layers. A layer below everything that is trained has no backward pass and is never among them.
 * @param program the step's, without recomputation
 * @param layerCount of the LLM
 * @throws RunError for a layer that is not there, and for a budget that even all layers do not keep, with the figures
 */
export function chooseRecomputation(
  config: Exclude<RecomputeConfig, { kind: 'none' }>,
  program: Program,
  layerCount: number,
): Recomputation {
  const regions = recomputableRegions(
    program,
    Array.from({ length: layerCount }, (_, layer) => layerScope(layer)),
  );
  const asIs = activationsOf(program);
  if (config.kind === 'budget') return withinBudget(config.activationMB, program, regions, asIs);
  const asked = new Set(askedLayers(config, layerCount));
  const chosen = regions.filter((region) => asked.has(layerOf(region)));
  const peak = activationsOf(recompute(program, chosen)).peakBytes;
  const missing = [...asked].filter((layer) => !chosen.some((region) => layerOf(region) === layer));
  const without = missing.length === 0 ? '' : `; no backward pass reads ${describeLayers(missing)}`;
  return recomputation(
    chosen,
    `activations take ${megabytes(peak)} instead of ${megabytes(asIs.peakBytes)}${without}`,
  );
}

function askedLayers(
  config: Exclude<RecomputeConfig, { kind: 'none' | 'budget' }>,
  layerCount: number,
): number[] {
  const every = [...Array(layerCount).keys()];
  if (config.kind === 'all') return every;
  const asked = config.kind === 'list' ? config.layers : [config.from, config.to];
  const outside = asked.find((layer) => layer >= layerCount);
  if (outside !== undefined) {
    throw new RunError(
      `train.recompute asks for layer ${outside}; the LLM has layers 0 to ${layerCount - 1}`,
    );
  }
  if (config.kind === 'list') return config.layers;
  return every.slice(config.from, config.to + 1);
}

/**
 * The fewest layers that bring the peak under the budget: those that hold most come first, among equals the lowest,
 * whose turn in the backward pass comes when most of the rest is freed.
 */
function withinBudget(
  activationMB: number,
  program: Program,
  regions: readonly Region[],
  asIs: Activations,
): Recomputation {
  const budget = `train.recompute.activationMB: ${activationMB}`;
  const order = [...regions].sort((a, b) => b.heldBytes - a.heldBytes || layerOf(a) - layerOf(b));
  if (asIs.peakBytes <= 1e6 * activationMB)
    return recomputation([], `activations take ${megabytes(asIs.peakBytes)}, within ${budget}`);
  let least = asIs;
  for (let count = 1; count <= order.length; count++) {
    const chosen = order.slice(0, count);
    least = activationsOf(recompute(program, chosen));
    if (least.peakBytes <= 1e6 * activationMB) {
      return recomputation(
        chosen,
        `activations take ${megabytes(least.peakBytes)} instead of ${megabytes(asIs.peakBytes)}, within ${budget}`,
      );
    }
  }
  const parts = least.parts.slice(0, 4).map(({ part, bytes }) => `${part} ${megabytes(bytes)}`);
  throw new RunError(
    `${budget}: activations take ${megabytes(asIs.peakBytes)}, and with all ${order.length} layers that have a backward pass ` +
      `computed again still ${megabytes(least.peakBytes)}, at "${least.peakAt}": ${parts.join(', ')}.\n` +
      `Raise it to ${Math.ceil(least.peakBytes / 1e6)}, or lower train.batchSize (and raise train.accumulate as much).`,
  );
}

function recomputation(chosen: readonly Region[], why: string): Recomputation {
  const layers = chosen.map(layerOf).sort((a, b) => a - b);
  const what = layers.length === 0 ? 'no layer' : describeLayers(layers);
  return { layers, reason: `computed again in the backward pass: ${what} (${why})` };
}

/** `layers 0 to 3, 7`: runs of neighbours as ranges. */
function describeLayers(layers: readonly number[]): string {
  const runs: [number, number][] = [];
  for (const layer of layers) {
    const last = runs.at(-1);
    if (last?.[1] === layer - 1) last[1] = layer;
    else runs.push([layer, layer]);
  }
  const parts = runs.map(([from, to]) => (from === to ? String(from) : `${from} to ${to}`));
  return `${layers.length === 1 ? 'layer' : 'layers'} ${parts.join(', ')}`;
}

function megabytes(bytes: number): string {
  return `${(bytes / 1e6).toFixed(bytes < 1e7 ? 2 : 0)} MB`;
}
