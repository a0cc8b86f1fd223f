/** The second engine: programs run node by node on TensorFlow.js, on a GPU, natively, in WebAssembly or in plain JavaScript. */
import type { HalfType } from '../../tensor/precision.ts';
import type { Node, Primitive, Program, Value } from '../../tensor/program.ts';
import { formatShape, sameShape, sizeOf, type Tensor } from '../../tensor/tensor.ts';
import {
  type Arithmetic,
  type CompileOptions,
  type DeviceTensor,
  type Engine,
  EngineError,
  type Executable,
  type Feed,
  isDeviceTensor,
} from '../engine.ts';
import { checkFeeds, checkInto, checkKept } from '../feeds.ts';
import { programCache } from '../programCache.ts';
import { chooseBackend, type Load, type Tf, type TfjsBackend } from './backends.ts';
import { runError } from './failure.ts';
import { rules } from './lower.ts';
import { type Plan, planOf } from './plan.ts';
import type { Held, Rule } from './rule.ts';
import { download, type TfDType, tfDType, upload } from './transfer.ts';

export interface TfjsEngineOptions {
  /** `auto`, when left out: the first that works of node-gpu, node, wasm and cpu. */
  readonly backend?: TfjsBackend | 'auto';
  /** How packages are imported; another one in tests. */
  readonly load?: Load;
}

/** A tensor of TensorFlow.js under the engine's contract. */
interface TfjsDeviceTensor extends DeviceTensor {
  readonly onTfjs: Held;
}

/**
 * Makes the TensorFlow.js engine. Its backend is chosen, and loaded, here.
 * @throws EngineError when the backend is not there, saying what to install
 */
export async function tfjsEngine({ backend = 'auto', load }: TfjsEngineOptions = {}): Promise<Engine> {
  const chosen = await chooseBackend(backend, load);
  const { tf } = chosen;
  const open = new Set<() => void>();
  // The backend is a global of TensorFlow.js: another engine may have set its own. Once loaded it is there at once.
  const select = () => {
    if (tf.getBackend() !== chosen.registered) void tf.setBackend(chosen.registered);
  };

  async function compileNew(
    source: Program,
    { keepOnDevice = [] }: CompileOptions = {},
  ): Promise<Executable> {
    const kept = checkKept(source, keepOnDevice);
    const plan = planOf(source);
    select();
    const constants = uploadConstants(tf, plan.program);
    const dispose = () => {
      for (const held of constants.values()) held.dispose();
    };
    open.add(dispose);
    return {
      async run(feeds, into = {}) {
        if (!open.has(dispose)) throw new EngineError('the program was disposed');
        const checked = checkFeeds(source, feeds);
        checkInto(source, into);
        select();
        const inputs = new Map(checked.map(({ name, feed }) => [name, feed]));
        // What a failing step leaves behind is freed by leaving the scope.
        const outputs = tf.tidy(() => runPlan(tf, plan, inputs, constants));
        try {
          return Object.fromEntries(
            [...source.outputs].map(([name, value], index) => {
              const held = outputs[index] as Held;
              if (kept.has(name)) return [name, keep(held, value)];
              const plain = download(held, value, into[name]);
              held.dispose();
              return [name, plain];
            }),
          );
        } catch (error) {
          for (const held of outputs) held.dispose();
          throw runError(error, 'the reading of its outputs');
        }
      },
      async dispose() {
        if (open.delete(dispose)) dispose();
      },
    };
  }

  const cache = programCache(compileNew);
  return {
    description: `tfjs (${chosen.backend}: ${chosen.reason})`,
    inPlace: false,
    compile: cache.compile,
    reuse: cache.reuse,
    arithmetic: tfjsArithmetic,
    async read(tensors) {
      select();
      return Object.fromEntries(
        Object.entries(tensors).map(([name, value]): [string, Tensor] => [
          name,
          download(heldBy(value, name), value),
        ]),
      );
    },
    async dispose() {
      for (const dispose of open) dispose();
      open.clear();
    },
  };
}

/** TensorFlow.js has no half types on any backend. @throws EngineError always */
export async function tfjsArithmetic(type: HalfType): Promise<Arithmetic> {
  throw new EngineError(`TensorFlow.js does not have ${type}`);
}

function uploadConstants(tf: Tf, { nodes }: Program): Map<Value, Held> {
  const constants = new Map<Value, Held>();
  try {
    for (const { primitive, attributes, outputs } of nodes) {
      if (primitive !== 'constant') continue;
      const value = outputs[0] as Value;
      constants.set(value, tf.keep(upload(tf, attributes.tensor, `the constant "${value.name}"`)));
    }
  } catch (error) {
    for (const held of constants.values()) held.dispose();
    throw error;
  }
  return constants;
}

/**
 * Runs every step, and frees each value after its last reader.
 * @returns a tensor for each output, in order, that is the caller's
 */
function runPlan(
  tf: Tf,
  { program, steps, unread }: Plan,
  inputs: ReadonlyMap<string, Feed>,
  constants: ReadonlyMap<Value, Held>,
): Held[] {
  const values = new Map<Value, Held>(constants);
  // Device tensors belong to whoever fed them, constants to the executable.
  const own = new Set<Value>();
  for (const [name, value] of program.inputs) {
    const feed = inputs.get(name) as Feed;
    if (isDeviceTensor(feed)) values.set(value, heldBy(feed, name));
    else if (!unread.has(value)) {
      values.set(value, upload(tf, feed, `input "${name}"`));
      own.add(value);
    }
  }
  for (const { node, last } of steps) {
    const made = compute(tf, node, values);
    for (const [index, value] of node.outputs.entries()) {
      values.set(value, made[index] as Held);
      own.add(value);
    }
    for (const value of last) {
      if (own.has(value)) values.get(value)?.dispose();
      values.delete(value);
    }
  }
  // A clone shares the memory. Several outputs may be one value, or an input or a constant as it came.
  return [...program.outputs.values()].map((value) => tf.keep((values.get(value) as Held).clone()));
}

/** The outputs of a node. What its rule needs in between is freed. */
function compute(tf: Tf, node: Node, values: ReadonlyMap<Value, Held>): Held[] {
  const inputs = node.inputs.map((value) => values.get(value) as Held);
  const [a, b, c] = inputs as [Held, Held, Held];
  const output = node.outputs[0] as Value;
  const rule = rules[node.primitive] as Rule<Primitive>;
  try {
    return tf.tidy(() => {
      if (node.outputs.every(({ shape }) => sizeOf(shape) === 0)) {
        return node.outputs.map(({ dtype, shape }) => tf.zeros([...shape], tfDType[dtype] as TfDType));
      }
      const made = [rule({ tf, attributes: node.attributes, inputs, a, b, c, output })].flat();
      for (const [index, value] of node.outputs.entries()) mustBe(made[index], value);
      return made;
    });
  } catch (error) {
    throw runError(error, `"${output.name}" (${node.primitive})`);
  }
}

/** A kernel that makes another type than the program says would be read as something else later. */
function mustBe(made: Held | undefined, { dtype, shape }: Value): void {
  if (made?.dtype === tfDType[dtype] && sameShape(made.shape, shape)) return;
  throw new Error(
    `TensorFlow.js made ${made?.dtype}${formatShape(made?.shape ?? [])} of what is ${dtype}${formatShape(shape)}`,
  );
}

function heldBy(value: DeviceTensor, name: string): Held {
  const { onTfjs } = value as Partial<TfjsDeviceTensor>;
  if (onTfjs === undefined) {
    throw new EngineError(`"${name}" is a device tensor of another engine: read() it there first`);
  }
  if (onTfjs.isDisposed) throw new EngineError(`"${name}" is a device tensor that was disposed`);
  return onTfjs;
}

function keep(onTfjs: Held, { dtype, shape }: Value): TfjsDeviceTensor {
  return { location: 'device', dtype, shape, onTfjs, dispose: () => onTfjs.dispose() };
}
