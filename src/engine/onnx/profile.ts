/** ONNX Runtime's profile of some runs, read back in terms of the program's values. */
import { z } from 'zod';
import type { Program, Value } from '../../tensor/program.ts';
import { EngineError } from '../engine.ts';
import { endingName, type LoweredValues } from './lower.ts';

/** What one node of the executed graph cost. */
export interface KernelProfile {
  /** The node's name in the executed graph, which ONNX Runtime's optimizer may have changed. */
  readonly node: string;
  /** `MatMul`; of ONNX, or of ONNX Runtime's own. */
  readonly operator: string;
  /** `cpu`, `webgpu`, `cuda`. */
  readonly provider: string;
  /** What it computes or helps to compute; undefined where the optimizer left no trace of that. */
  readonly value: Value | undefined;
  /** Element types of what it makes, in ONNX Runtime's words: `float`, `int64`. */
  readonly types: readonly string[];
  readonly outputBytes: number;
  /** Milliseconds in each run; on a GPU those that the GPU worked, where it measures them. */
  readonly runsMs: readonly number[];
}

/** A compiled program's runs. */
export interface ProgramProfile {
  /** As it was compiled: simplified. */
  readonly program: Program;
  readonly kernels: readonly KernelProfile[];
  /** Wall milliseconds of each run. */
  readonly runsMs: readonly number[];
}

const shapesSchema = z.array(z.record(z.string(), z.unknown()));

const eventSchema = z.object({
  cat: z.string(),
  name: z.string(),
  /** Microseconds. */
  ts: z.number(),
  dur: z.number(),
  args: z
    .object({
      op_name: z.string().optional(),
      provider: z.string().optional(),
      output_size: z.string().optional(),
      output_type_shape: shapesSchema.optional(),
    })
    .default({}),
});

type Event = z.output<typeof eventSchema>;

const kernelSuffix = '_kernel_time';

/**
 * Reads the JSON that a profiled session leaves.
 * @throws EngineError when it is not such a file
 */
export function readProfile(text: string, { program, values }: LoweredValues): ProgramProfile {
  const events = parseEvents(text);
  const runs = events
    .filter(({ cat, name }) => cat === 'Session' && name === 'model_run')
    .sort((a, b) => a.ts - b.ts);
  const runOf = (event: Event) => runs.findIndex(({ ts, dur }) => event.ts >= ts && event.ts <= ts + dur);
  const gpuMs = gpuTimes(events, runs.length);
  const kernels = new Map<string, { first: Event; runsMs: number[] }>();
  for (const event of events) {
    if (event.cat !== 'Node' || !event.name.endsWith(kernelSuffix)) continue;
    const node = event.name.slice(0, -kernelSuffix.length);
    if (node === endingName) continue;
    const kernel = kernels.get(node) ?? { first: event, runsMs: runs.map(() => 0) };
    kernels.set(node, kernel);
    const run = runOf(event);
    if (run >= 0) kernel.runsMs[run] = (kernel.runsMs[run] ?? 0) + event.dur / 1000;
  }
  const names = [...values.keys()];
  return {
    program,
    runsMs: runs.map(({ dur }) => dur / 1000),
    kernels: [...kernels].map(([node, { first, runsMs }]) => ({
      node,
      operator: first.args.op_name ?? '?',
      provider: (first.args.provider ?? '?').replace(/ExecutionProvider$/, '').toLowerCase(),
      value: values.get(node) ?? values.get(longestPrefix(node, names)),
      types: (first.args.output_type_shape ?? []).flatMap((output) => Object.keys(output)),
      outputBytes: Number(first.args.output_size ?? 0),
      runsMs: gpuMs.get(node) ?? runsMs,
    })),
  };
}

function parseEvents(text: string): Event[] {
  try {
    const all = z.array(z.looseObject({ cat: z.string().optional() })).parse(JSON.parse(text));
    return all.filter(({ cat }) => cat !== undefined).map((event) => eventSchema.parse(event));
  } catch (error) {
    throw new EngineError(
      `ONNX Runtime left a profile that cannot be read: ${error instanceof Error ? error.message : error}`,
    );
  }
}

/**
 * Milliseconds that the GPU spent on each node, by run. A kernel call on a GPU returns before the work is done, so
 * the provider reports the GPU's own clock in events called `<node>&<operator>&<shader>`.
 */
function gpuTimes(events: readonly Event[], runs: number): Map<string, number[]> {
  const calls = new Map<string, number[]>();
  for (const { cat, name, dur } of events) {
    if (cat !== 'Api') continue;
    const node = name.split('&')[0] as string;
    const own = calls.get(node) ?? [];
    own.push(dur / 1000);
    calls.set(node, own);
  }
  // Every run launches the same shaders; the GPU's clock is not the one by which runs are told apart.
  return new Map(
    [...calls].map(([node, times]) => [
      node,
      Array.from({ length: runs }, (_, run) =>
        times
          .slice(Math.round((run * times.length) / runs), Math.round(((run + 1) * times.length) / runs))
          .reduce((total, time) => total + time, 0),
      ),
    ]),
  );
}

/** The optimizer calls a node that it makes after the one that it replaces: `<name>/<what it did>`, `<name>_<...>`. */
function longestPrefix(node: string, names: readonly string[]): string {
  return names.reduce(
    (best, name) =>
      name.length > best.length && node.startsWith(name) && /^[/_.]/.test(node.slice(name.length))
        ? name
        : best,
    '',
  );
}
