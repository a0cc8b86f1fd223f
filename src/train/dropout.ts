/** The masks of dropout, which a training program takes as inputs: a run that goes on draws the same ones again. */
import type { Executable } from '../engine/engine.ts';
import type { Program } from '../tensor/program.ts';
import { float32, sizeOf, type Tensor } from '../tensor/tensor.ts';
import { maskPrefix } from '../tensor/trace.ts';
import type { Batch } from './step.ts';

/** A program that is run for micro-batches. */
export interface BatchExecutable {
  readonly executable: Executable;
  /** What it takes of a micro-batch. The masks lie where those of the micro-batch before were. */
  readonly feedsOf: (batch: Batch) => Record<string, Tensor>;
}

/**
 * Allocates the masks that a program takes.
 * @param rate probability with which an element is dropped; what is kept is divided by the rest
 */
export function withMasks(executable: Executable, program: Program, rate: number): BatchExecutable {
  const masks = Object.fromEntries(
    maskInputs(program).map(([name, { shape }]) => [name, float32(shape, new Float32Array(sizeOf(shape)))]),
  );
  const kept = 1 / (1 - rate);
  const perLog = 1 / Math.log(1 - rate);
  return {
    executable,
    feedsOf({ feeds, random }) {
      for (const [name, { data }] of Object.entries(masks)) {
        if (random === undefined) throw new RangeError(`"${name}": the batch brings no random numbers`);
        const draw = random(name);
        // From one dropped element to the next: geometric, and fewer draws than one an element.
        const gap = () => Math.floor(Math.log(1 - draw.uniform()) * perLog);
        data.fill(kept);
        for (let at = gap(); at < data.length; at += 1 + gap()) data[at] = 0;
      }
      return { ...feeds, ...masks };
    },
  };
}

/** Bytes of a program's masks. */
export function maskBytes(program: Program): number {
  return maskInputs(program).reduce((total, [, { shape }]) => total + 4 * sizeOf(shape), 0);
}

function maskInputs({ inputs }: Program) {
  return [...inputs].filter(([name]) => name.startsWith(maskPrefix));
}
