/** The contract every engine keeps: it compiles a tensor program once and runs it many times. */
import type { HalfType } from '../tensor/precision.ts';
import type { Program } from '../tensor/program.ts';
import type { DType, Shape, Tensor } from '../tensor/tensor.ts';

/** Numbers that stay where the engine computes; `Engine.read` brings them back. */
export interface DeviceTensor {
  readonly location: 'device';
  readonly dtype: DType;
  readonly shape: Shape;
  /** Frees the memory. The tensor must not be used afterwards. */
  dispose(): void;
}

export type Feed = Tensor | DeviceTensor;

export interface CompileOptions {
  /** Outputs that stay on the device, to be fed to a later run: parameters, optimizer state, caches. */
  readonly keepOnDevice?: readonly string[];
}

export interface Executable {
  /**
   * Runs the program.
   * @param feeds every input by name
   * @param into plain tensors that outputs are written to, so that large ones need no new memory at each run
   * @returns the outputs by name; those in `keepOnDevice` as device tensors, the others as plain tensors
   * @throws EngineError naming the input or the program value at fault
   */
  run(
    feeds: Readonly<Record<string, Feed>>,
    into?: Readonly<Record<string, Tensor>>,
  ): Promise<Record<string, Feed>>;
  dispose(): Promise<void>;
}

/** `emulated`: in float32, each result rounded to the type: right, and no faster than float32. */
export type Arithmetic = 'native' | 'emulated';

export interface Engine {
  /** For people: `onnx (cpu, 2 threads)`. */
  readonly description: string;
  /**
   * Whether runs read their feeds and write `into` where they lie. Then an output may be written over a feed that
   * nothing else reads: the sum of an addition over one of its terms.
   */
  readonly inPlace: boolean;
  /** Equal programs that are in use at the same time are compiled once; each user disposes its own. */
  compile(program: Program, options?: CompileOptions): Promise<Executable>;
  /**
   * How the engine computes in a half type. It is tried, not looked up: devices differ.
   * @throws EngineError saying why it does not
   */
  arithmetic(type: HalfType): Promise<Arithmetic>;
  /** While `work` runs, small programs that were disposed are kept, for equal ones that come later. */
  reuse<T>(work: () => Promise<T>): Promise<T>;
  /** Copies device tensors back into plain memory. */
  read(tensors: Readonly<Record<string, DeviceTensor>>): Promise<Record<string, Tensor>>;
  dispose(): Promise<void>;
}

export class EngineError extends Error {
  override readonly name = 'EngineError';
}

export function isDeviceTensor(feed: Feed): feed is DeviceTensor {
  return 'location' in feed;
}

/**
 * The output of a run that is a plain tensor.
 * @throws EngineError when it is not there, or stayed on the device
 */
export function plain(outputs: Readonly<Record<string, Feed>>, name: string): Tensor {
  const output = outputs[name];
  if (output === undefined) throw new EngineError(`the program has no output "${name}"`);
  if (isDeviceTensor(output)) throw new EngineError(`output "${name}" stayed on the device: read() it first`);
  return output;
}
