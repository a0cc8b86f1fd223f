/** The activation memory of a training program: how much at its peak, and which parts of the model hold it. */
import { bytesOf, liveness } from '../tensor/liveness.ts';
import { partOf } from '../tensor/parts.ts';
import { simplify } from '../tensor/passes.ts';
import type { Program } from '../tensor/program.ts';
import { schedule } from '../tensor/schedule.ts';

export interface Activations {
  /** Most bytes that the program's values hold at once, outputs not counted: those lie in memory of the caller. */
  readonly peakBytes: number;
  /** The value whose computation is the peak. */
  readonly peakAt: string;
  /** What is held then, by the part of the model that made it, most first. */
  readonly parts: readonly { readonly part: string; readonly bytes: number }[];
}

/** Reads the activations off a program as an engine runs it. */
export function activationsOf(program: Program): Activations {
  const { peakBytes, peakAt, heldAtPeak } = liveness(schedule(simplify(program)), 'elsewhere');
  const bytes = new Map<string, number>();
  for (const value of heldAtPeak) {
    const { name } = partOf(value);
    bytes.set(name, (bytes.get(name) ?? 0) + bytesOf(value));
  }
  return {
    peakBytes,
    peakAt: peakAt?.outputs[0]?.name ?? '',
    parts: [...bytes].map(([part, own]) => ({ part, bytes: own })).sort((a, b) => b.bytes - a.bytes),
  };
}
