/** What a step computes and moves, by the parts of the model, and how long that will take. */
import type { Experiment } from '../config/schema.ts';
import { bytesOf } from '../tensor/liveness.ts';
import { type Direction, partOf } from '../tensor/parts.ts';
import { isLeaf, type Node, type Program } from '../tensor/program.ts';
import { flopsOf } from '../tensor/shapes.ts';

/** What a machine does. */
export interface Rates {
  /** 10^9 floating-point operations a second in matrix products, for each thread. */
  readonly gigaflopsPerThread: number;
  /** 10^9 bytes a second that everything else reads and writes. */
  readonly gigabytesPerSecond: number;
  /** Of each node, however small: dispatching, waking threads. */
  readonly microsecondsPerNode: number;
}

/** Measured on two shared x86-64 cores; see LOG.md. */
export const measuredRates: Rates = {
  gigaflopsPerThread: 95,
  gigabytesPerSecond: 14,
  microsecondsPerNode: 5,
};

/**
 * The rates for an engine: those given over those measured. Only ONNX Runtime on the CPU was measured.
 * @returns null where a rate is neither given nor measured
 */
export function ratesFor(
  engine: Experiment['engine'],
  given: { readonly [Name in keyof Rates]?: number | undefined },
): Rates | null {
  const known = engine.kind === 'onnx' && engine.provider === 'cpu' ? measuredRates : undefined;
  const gigaflopsPerThread = given.gigaflopsPerThread ?? known?.gigaflopsPerThread;
  const gigabytesPerSecond = given.gigabytesPerSecond ?? known?.gigabytesPerSecond;
  if (gigaflopsPerThread === undefined || gigabytesPerSecond === undefined) return null;
  return { gigaflopsPerThread, gigabytesPerSecond, microsecondsPerNode: known?.microsecondsPerNode ?? 0 };
}

/** The work of one part in one step. */
export interface PartWork {
  readonly part: string;
  readonly flops: Readonly<Record<Direction, number>>;
  /** Of those, in matrix products. */
  readonly productFlops: number;
  /** Read and written by what is no matrix product. */
  readonly movedBytes: number;
  /** Nodes that run. */
  readonly nodes: number;
}

/** A program of the step. */
export interface ProgramWork {
  readonly program: Program;
  /** In one step; no whole number where several programs share the micro-batches. */
  readonly runs: number;
}

/** Bytes that AdamW in place reads and writes for each byte of a parameter: four arrays, three of them back, and the norm. */
const updateMoves = 8;
/** Floating-point operations of AdamW for each parameter. */
const updateFlops = 14;

/**
 * The work of a step, most arithmetic first.
 * @param programs of the step, as the engine runs them
 * @param updatedBytes parameters that are updated outside of the programs
 */
export function partsOf(programs: readonly ProgramWork[], updatedBytes: number): PartWork[] {
  type Tally = { flops: Record<Direction, number>; productFlops: number; movedBytes: number; nodes: number };
  const tallies = new Map<string, Tally>();
  const tally = (part: string): Tally => {
    const none = { flops: { forward: 0, backward: 0, update: 0 }, productFlops: 0, movedBytes: 0, nodes: 0 };
    const own = tallies.get(part) ?? none;
    tallies.set(part, own);
    return own;
  };
  for (const { program, runs } of programs) {
    for (const node of program.nodes) {
      const [first] = node.outputs;
      if (first === undefined || isLeaf(node) || node.primitive === 'reshape') continue;
      const { name, direction } = partOf(first);
      const own = tally(name);
      own.flops[direction] += flopsOf(node) * runs;
      if (node.primitive === 'matmul') own.productFlops += flopsOf(node) * runs;
      else own.movedBytes += bytesMoved(node) * runs;
      own.nodes += runs;
    }
  }
  if (updatedBytes > 0) {
    const own = tally('update');
    own.flops.update += (updateFlops * updatedBytes) / 4;
    own.movedBytes += updateMoves * updatedBytes;
  }
  const total = ({ forward, backward, update }: Tally['flops']) => forward + backward + update;
  return [...tallies]
    .map(([part, own]) => ({ part, ...own }))
    .sort((a, b) => total(b.flops) - total(a.flops));
}

function bytesMoved({ inputs, outputs }: Node): number {
  return [...inputs, ...outputs].reduce((sum, value) => sum + bytesOf(value), 0);
}

/** Milliseconds of a step: products at one rate, what else is read and written at another, and something a node. */
export function estimateStepMs(parts: readonly PartWork[], rates: Rates, threads: number): number {
  const sum = (of: (part: PartWork) => number) => parts.reduce((total, part) => total + of(part), 0);
  return (
    sum(({ productFlops }) => productFlops) / (1e6 * rates.gigaflopsPerThread * threads) +
    sum(({ movedBytes }) => movedBytes) / (1e6 * rates.gigabytesPerSecond) +
    (sum(({ nodes }) => nodes) * rates.microsecondsPerNode) / 1e3
  );
}
