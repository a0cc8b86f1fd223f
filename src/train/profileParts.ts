/** A profile by the model's parts: what takes the time, the arithmetic and the memory. */

import { bytesOf } from '../tensor/liveness.ts';
import { type Direction, type Part, partOf } from '../tensor/parts.ts';
import { isLeaf, type Node } from '../tensor/program.ts';
import { flopsOf } from '../tensor/shapes.ts';
import type { StepKernel, StepProfile } from './profile.ts';

/** What a part costs in one step. */
export interface PartCost {
  readonly part: string;
  /** Milliseconds by direction. */
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
  /** Wall milliseconds of the median step. */
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
  readonly ms: Record<Direction, number>;
  readonly bytes: Record<Direction, number>;
  flops: number;
  elsewhere: number;
}

/** The index of the step that stands for all: the median by its wall time, so that its parts add up to it. */
export function medianStep({ stepsMs }: Pick<StepProfile, 'stepsMs'>): number {
  const order = [...stepsMs.keys()].sort((a, b) => (stepsMs[a] ?? 0) - (stepsMs[b] ?? 0));
  return order[(order.length - 1) >> 1] ?? 0;
}

/** Adds up kernels and nodes by part. What is measured and belongs to no part has lines of its own. */
export function summarizeProfile(profile: StepProfile): ProfileSummary {
  const step = medianStep(profile);
  const at = (stepsMs: readonly number[]) => stepsMs[step] ?? 0;
  const tallies = new Map<string, Tally>();
  const tally = (part: string): Tally => {
    const none = () => ({ forward: 0, backward: 0, update: 0 });
    const own = tallies.get(part) ?? { ms: none(), bytes: none(), flops: 0, elsewhere: 0 };
    tallies.set(part, own);
    return own;
  };
  let [inEngineMs, inKernelsMs] = [0, 0];
  for (const { program, kernels, stepsMs, runsPerStep } of profile.programs) {
    for (const kernel of kernels) {
      const part = partOfKernel(kernel);
      const own = tally(part.name);
      own.ms[part.direction] += at(kernel.stepsMs);
      inKernelsMs += at(kernel.stepsMs);
      if (kernel.provider !== profile.provider) own.elsewhere++;
    }
    inEngineMs += at(stepsMs);
    for (const node of program.nodes) {
      const [first] = node.outputs;
      if (first === undefined || isLeaf(node)) continue;
      const part = partOf(first);
      const own = tally(part.name);
      own.flops += flopsOf(node) * runsPerStep;
      own.bytes[part.direction] += bytesMadeBy(node);
    }
  }
  const stepMs = at(profile.stepsMs);
  // A GPU works on while the engine prepares what comes next: its kernels can take longer than the engine's calls.
  tally(outside.engine).ms.forward += Math.max(0, inEngineMs - inKernelsMs);
  const updateMs = at(profile.updatesMs);
  if (updateMs > 0) tally('update').ms.update += updateMs;
  tally(outside.host).ms.forward += Math.max(0, stepMs - inEngineMs - updateMs);
  const parts = [...tallies].map(([part, own]) => {
    const { forward, backward, update } = own.ms;
    return { part, totalMs: forward + backward + update, ...own };
  });
  const wholeMs = parts.reduce((total, { totalMs }) => total + totalMs, 0);
  return {
    experiment: profile.experiment,
    stage: profile.stage,
    engine: profile.engine,
    warmUps: profile.warmUps,
    steps: profile.stepsMs.length,
    stepMs,
    flops: parts.reduce((total, { flops }) => total + flops, 0),
    parts: parts
      .map((own) => ({ ...own, share: wholeMs === 0 ? 0 : own.totalMs / wholeMs }))
      .sort((a, b) => b.totalMs - a.totalMs),
  };
}

function bytesMadeBy(node: Node): number {
  // A reshaped value is the same memory under another shape.
  if (node.primitive === 'reshape') return 0;
  return node.outputs.reduce((total, value) => total + bytesOf(value), 0);
}
