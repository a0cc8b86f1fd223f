/**
 * Parameters, gradients and moments side by side in WebAssembly memories, where a kernel updates them in place: one
 * pass, no second generation of the state. ONNX Runtime reads the parameters and writes the gradients where they lie.
 */
import { EngineError } from '../engine/engine.ts';
import type { ParameterTensors } from '../tensor/parameters.ts';
import { type Shape, sizeOf, type Tensor } from '../tensor/tensor.ts';
import { adamwBinary } from './adamwBinary.ts';
import type { AdamWConfig } from './optimizer.ts';

type Array32 = Tensor & { dtype: 'float32' };

/** The four arrays of one parameter, all in the same memory. */
export interface AdamWTensors {
  readonly parameter: Array32;
  readonly gradient: Array32;
  readonly first: Array32;
  readonly second: Array32;
}

/** What changes from step to step. */
export interface AdamWStep {
  readonly learningRate: number;
  /** Updates done before this one. */
  readonly done: number;
  /** What the gradients are multiplied with: one over the tokens, times the clipping. */
  readonly scale: number;
}

export interface AdamWMemory {
  readonly tensors: ReadonlyMap<string, AdamWTensors>;
  /** The Euclidean norm of all gradients together. */
  gradientNorm(): number;
  /** One AdamW update of everything (Loshchilov and Hutter 2019, algorithm 2), as `adamW` of optimizer.ts. */
  update(config: AdamWConfig, step: AdamWStep): void;
}

interface Kernels {
  squaredNorm(at: number, count: number): number;
  update(
    ...args: [
      parameter: number,
      gradient: number,
      first: number,
      second: number,
      count: number,
      scale: number,
      keep1: number,
      take1: number,
      keep2: number,
      take2: number,
      widen: number,
      epsilon: number,
      step: number,
      decay: number,
    ]
  ): void;
}

const page = 65_536;
/** The kernels address 32 bits. */
const largestMemory = 65_536 * page;
const arraysPerTensor = 4;
const bytesPerFloat = 4;

/** Elements as the kernels take them, in sixteens; what is added stays zero. */
const padded = (count: number) => Math.ceil(count / 16) * 16;
const bytesNeeded = (shape: Shape) => arraysPerTensor * bytesPerFloat * padded(sizeOf(shape));

/**
 * Allocates what the parameters need and copies them in; gradients and moments are zero.
 * @throws EngineError when there is not enough memory, or a tensor is above 2^28 elements
 */
export function adamwMemory(parameters: ParameterTensors): AdamWMemory {
  const module = new WebAssembly.Module(Buffer.from(adamwBinary, 'base64'));
  const tensors = new Map<string, AdamWTensors>();
  const kernels = new Map<string, Kernels>();
  for (const bank of banks(parameters)) {
    const bytes = bank.reduce((total, [, { shape }]) => total + bytesNeeded(shape), 0);
    const memory = allocate(bytes, parameters);
    const instance = new WebAssembly.Instance(module, { palkit: { memory } });
    let next = 0;
    for (const [name, { shape, data }] of bank) {
      const array = (): Array32 => {
        const at = next;
        next += bytesPerFloat * padded(sizeOf(shape));
        return { dtype: 'float32', shape, data: new Float32Array(memory.buffer, at, sizeOf(shape)) };
      };
      const own = { parameter: array(), gradient: array(), first: array(), second: array() };
      own.parameter.data.set(data);
      tensors.set(name, own);
      kernels.set(name, instance.exports as unknown as Kernels);
    }
  }
  return {
    tensors,
    gradientNorm() {
      let total = 0;
      for (const [name, { gradient }] of tensors)
        total += (kernels.get(name) as Kernels).squaredNorm(
          gradient.data.byteOffset,
          padded(gradient.data.length),
        );
      return Math.sqrt(total);
    },
    update({ beta1, beta2, epsilon, weightDecay }, { learningRate, done, scale }) {
      for (const [name, { parameter, gradient, first, second }] of tensors) {
        const decays = parameter.shape.length >= 2;
        (kernels.get(name) as Kernels).update(
          parameter.data.byteOffset,
          gradient.data.byteOffset,
          first.data.byteOffset,
          second.data.byteOffset,
          padded(parameter.data.length),
          scale,
          beta1,
          1 - beta1,
          beta2,
          1 - beta2,
          1 / Math.sqrt(1 - beta2 ** (done + 1)),
          epsilon,
          learningRate / (1 - beta1 ** (done + 1)),
          decays ? 1 - learningRate * weightDecay : 1,
        );
      }
    },
  };
}

/** The parameters in groups that each fit into one memory. */
function banks(parameters: ParameterTensors): [string, Array32][][] {
  const groups: [string, Array32][][] = [];
  let room = 0;
  for (const entry of parameters) {
    const [name, { shape }] = entry;
    const bytes = bytesNeeded(shape);
    if (bytes > largestMemory) {
      throw new EngineError(
        `"${name}" has ${sizeOf(shape)} elements: AdamW on the CPU takes tensors of up to ${2 ** 28}. Freeze it, or train on another engine`,
      );
    }
    if (bytes > room) {
      groups.push([]);
      room = largestMemory;
    }
    groups.at(-1)?.push(entry);
    room -= bytes;
  }
  return groups;
}

function allocate(bytes: number, parameters: ParameterTensors): WebAssembly.Memory {
  const pages = Math.ceil(bytes / page);
  try {
    return new WebAssembly.Memory({ initial: pages, maximum: pages });
  } catch (error) {
    const count = [...parameters.values()].reduce((total, { shape }) => total + sizeOf(shape), 0);
    throw new EngineError(
      `there is no memory for AdamW: ${count} parameters with gradients and moments take ` +
        `${Math.round((count * arraysPerTensor * bytesPerFloat) / 2 ** 20)} MiB. Train fewer parameters, or use a machine with more memory`,
      { cause: error },
    );
  }
}
