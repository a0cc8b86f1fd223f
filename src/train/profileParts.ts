/** A profile by the model's parts: what takes the time, the arithmetic and the memory. */

import { type Direction, type Part, partOf } from '../tensor/parts.ts';
import type { Node } from '../tensor/program.ts';
import { flopsOf } from '../tensor/shapes.ts';
import { bytesPerElement, sizeOf } from '../tensor/tensor.ts';
import type { StepKernel, StepProfile } from './profile.ts';

/** What a part costs in one step. */
export interface PartCost {
  readonly part: string;
  /** Median milliseconds over the measured steps, by direction. */
  readonly ms: Readonly<Record<Direction, number>>;
  readonly totalMs: number;
  /** Of the whole step. */
  readonly share: number;
  readonly flops: number;
  /** Bytes of the values that it makes in one run of its program. */
  readonly bytes: Readonly<Record<Direction, number>>;
  /** Kernels that ran on another provider than the one asked for. */
  readonly elsewhere: number;
}

export interface ProfileSummary {
  readonly experiment: string;
  readonly stage: string;
  readonly engine: string;
  readonly warmUps: number;
  readonly steps: number;
  /** Median wall milliseconds of a step. */
  readonly stepMs: number;
  readonly flops: number;
  /** The most expensive first. */
  readonly parts: readonly PartCost[];
}

/** Time that belongs to no value of the program. */
export const outside = {
  copies: 'copies between devices',
  unattributed: 'not attributed',
  engine: 'engine, between kernels',
  host: 'outside the engine: batches, feeds',
} as const;

/** The part that a kernel works for. */
export function partOfKernel({ value, operator }: Pick<StepKernel, 'value' | 'operator'>): Part {
  if (value !== undefined) return partOf(value);
  const name = operator.startsWith('Memcpy') ? outside.copies : outside.unattributed;
  return { name, direction: 'forward', path: [name] };
}

interface Tally {
  readonly stepsMs: Record<Direction, number[]>;
  readonly bytes: Record<Direction, number>;
  flops: number;
  elsewhere: number;
}

/** Adds up kernels and nodes by part. What is measured and belongs to no part has lines of its own. */
export function summarizeProfile(profile: StepProfile): ProfileSummary {
  const steps = profile.stepsMs.length;
  const tallies = new Map<string, Tally>();
  const tally = (part: string): Tally => {
    const none = () => Array.from({ length: steps }, () => 0);
    const own = tallies.get(part) ?? {
      stepsMs: { forward: none(), backward: none(), update: none() },
      bytes: { forward: 0, backward: 0, update: 0 },
      flops: 0,
      elsewhere: 0,
    };
    tallies.set(part, own);
    return own;
  };
  const inEngineMs = profile.stepsMs.map(() => 0);
  const inKernelsMs = profile.stepsMs.map(() => 0);
  for (const { program, kernels, stepsMs, runsPerStep } of profile.programs) {
    for (const kernel of kernels) {
      const part = partOfKernel(kernel);
      const own = tally(part.name);
      addTo(own.stepsMs[part.direction], kernel.stepsMs);
      addTo(inKernelsMs, kernel.stepsMs);
      if (kernel.provider !== profile.provider) own.elsewhere++;
    }
    addTo(inEngineMs, stepsMs);
    for (const node of program.nodes) {
      const [first] = node.outputs;
      if (first === undefined || isLeaf(node)) continue;
      const part = partOf(first);
      const own = tally(part.name);
      own.flops += flopsOf(node) * runsPerStep;
      own.bytes[part.direction] += bytesOf(node);
    }
  }
  // Work on a GPU goes on while the engine prepares the next: the kernels can take longer than what is left for them.
  const rest = (whole: readonly number[], part: readonly number[]) =>
    whole.map((ms, step) => Math.max(0, ms - (part[step] ?? 0)));
  addTo(tally(outside.engine).stepsMs.forward, rest(inEngineMs, inKernelsMs));
  addTo(tally(outside.host).stepsMs.forward, rest(profile.stepsMs, inEngineMs));
  const parts = [...tallies].map(([part, own]) => cost(part, own));
  const wholeMs = parts.reduce((total, { totalMs }) => total + totalMs, 0);
  return {
    experiment: profile.experiment,
    stage: profile.stage,
    engine: profile.engine,
    warmUps: profile.warmUps,
    steps,
    stepMs: median(profile.stepsMs),
    flops: parts.reduce((total, { flops }) => total + flops, 0),
    parts: parts
      .map((own) => ({ ...own, share: wholeMs === 0 ? 0 : own.totalMs / wholeMs }))
      .sort((a, b) => b.totalMs - a.totalMs),
  };
}

function cost(part: string, { stepsMs, ...own }: Tally): Omit<PartCost, 'share'> {
  const ms = {
    forward: median(stepsMs.forward),
    backward: median(stepsMs.backward),
    update: median(stepsMs.update),
  };
  return { part, ms, totalMs: ms.forward + ms.backward + ms.update, ...own };
}

/** Inputs and constants are there before the step. */
export function isLeaf({ primitive }: Pick<Node, 'primitive'>): boolean {
  return primitive === 'input' || primitive === 'constant';
}

function bytesOf(node: Node): number {
  // A reshaped value is the same memory under another shape.
  if (node.primitive === 'reshape') return 0;
  return node.outputs.reduce((total, { dtype, shape }) => total + bytesPerElement[dtype] * sizeOf(shape), 0);
}

function addTo(sums: number[], more: readonly number[]): void {
  for (const [index, value] of more.entries()) sums[index] = (sums[index] ?? 0) + value;
}

/** The middle of some numbers, 0 of none. */
export function median(numbers: readonly number[]): number {
  const sorted = [...numbers].sort((a, b) => a - b);
  const middle = sorted.length >> 1;
  return sorted.length % 2 === 1
    ? (sorted[middle] ?? 0)
    : ((sorted[middle - 1] ?? 0) + (sorted[middle] ?? 0)) / 2;
}
