/** The default engine: programs run as one ONNX graph by ONNX Runtime, on CPU, WebGPU or CUDA. */
import * as ort from 'onnxruntime-node';
import type { Program, Value } from '../../tensor/program.ts';
import type { Shape, Tensor } from '../../tensor/tensor.ts';
import { trace } from '../../tensor/trace.ts';
import {
  type CompileOptions,
  type DeviceTensor,
  type Engine,
  EngineError,
  type Executable,
  type Feed,
  isDeviceTensor,
} from '../engine.ts';
import { checkFeeds, checkKept } from '../feeds.ts';
import { programToOnnx } from './lower.ts';

export type Provider = 'cpu' | 'webgpu' | 'cuda';
export type OptimizationLevel = 'disabled' | 'basic' | 'extended' | 'all';

export interface OnnxEngineOptions {
  readonly provider?: Provider;
  /** Threads inside one operator; 2 when left out. */
  readonly threads?: number;
  readonly optimization?: OptimizationLevel;
}

/** A tensor of ONNX Runtime under the engine's contract. */
interface OnnxDeviceTensor extends DeviceTensor {
  readonly held: ort.Tensor;
}

/** Makes the ONNX engine. Sessions live in this thread: ONNX Runtime is not safe in worker threads. */
export function onnxEngine({
  provider = 'cpu',
  threads = 2,
  optimization = 'all',
}: OnnxEngineOptions = {}): Engine {
  const open = new Set<ort.InferenceSession>();

  async function compile(program: Program, { keepOnDevice = [] }: CompileOptions = {}): Promise<Executable> {
    const kept = checkKept(program, keepOnDevice);
    const session = await createSession(programToOnnx(program), {
      executionProviders: provider === 'cpu' ? ['cpu'] : [provider, 'cpu'],
      intraOpNumThreads: threads,
      interOpNumThreads: 1,
      graphOptimizationLevel: optimization,
      // Measured on a transformer's training step: the memory pattern raised the peak by 40 % and saved no time.
      enableMemPattern: false,
      logSeverityLevel: 3,
      ...(provider === 'webgpu' && {
        preferredOutputLocation: Object.fromEntries(
          [...program.outputs.keys()].map((name) => [name, kept.has(name) ? 'gpu-buffer' : 'cpu']),
        ),
      }),
    });
    open.add(session);
    return {
      async run(feeds) {
        const held = feedsOf(program, feeds);
        const outputs = await session.run(held).catch((error: unknown) => {
          throw runError(error, program);
        });
        return Object.fromEntries(
          [...program.outputs].map(([name, value]) => {
            const output = outputs[name];
            if (output === undefined) throw new EngineError(`the engine returned no "${name}"`);
            return [name, kept.has(name) ? keep(output, value) : plainTensor(output, value)];
          }),
        );
      },
      async dispose() {
        if (open.delete(session)) await session.release();
      },
    };
  }

  async function createSession(
    model: Uint8Array,
    options: ort.InferenceSession.SessionOptions,
  ): Promise<ort.InferenceSession> {
    try {
      return await ort.InferenceSession.create(model, options);
    } catch (error) {
      const reason = error instanceof Error ? error.message : String(error);
      const advice =
        provider === 'cpu'
          ? ''
          : `\nIs a ${provider} device there? \`palkit doctor\` checks and says what to install.`;
      throw new EngineError(`ONNX Runtime (${provider}) does not take the program: ${reason}${advice}`);
    }
  }

  async function read(tensors: Readonly<Record<string, DeviceTensor>>): Promise<Record<string, Tensor>> {
    const entries = Object.entries(tensors);
    if (entries.length === 0) return {};
    if (provider !== 'webgpu') {
      return Object.fromEntries(
        entries.map(([name, value]) => [name, plainTensor(heldBy(value, name), value)]),
      );
    }
    // Reading a GPU buffer directly aborts the process; a graph with outputs on the CPU brings it back safely.
    const inputs = Object.fromEntries(entries.map(([name, { dtype, shape }]) => [name, { dtype, shape }]));
    const copy = await compile(
      trace(inputs, (values) =>
        Object.fromEntries(Object.entries(values).map(([name, value]) => [`read:${name}`, value])),
      ),
    );
    try {
      const outputs = await copy.run(tensors);
      return Object.fromEntries(entries.map(([name]) => [name, outputs[`read:${name}`] as Tensor]));
    } finally {
      await copy.dispose();
    }
  }

  return {
    description: `onnx (${provider}${provider === 'cpu' ? `, ${threads} threads` : ''})`,
    compile,
    read,
    async dispose() {
      const sessions = [...open];
      open.clear();
      await Promise.all(sessions.map((session) => session.release()));
    },
  };
}

function heldBy(value: DeviceTensor, name: string): ort.Tensor {
  const { held } = value as Partial<OnnxDeviceTensor>;
  if (held instanceof ort.Tensor) return held;
  throw new EngineError(`"${name}" is a device tensor of another engine: read() it there first`);
}

function keep(held: ort.Tensor, { dtype, shape }: Value): OnnxDeviceTensor {
  return { location: 'device', dtype, shape, held, dispose: () => held.dispose() };
}

function plainTensor(held: ort.Tensor, { dtype, shape }: { dtype: Tensor['dtype']; shape: Shape }): Tensor {
  return { dtype, shape, data: held.data } as Tensor;
}

function feedsOf(program: Program, feeds: Readonly<Record<string, Feed>>): Record<string, ort.Tensor> {
  const held: Record<string, ort.Tensor> = {};
  for (const { name, value, feed } of checkFeeds(program, feeds)) {
    if (isDeviceTensor(feed)) held[name] = heldBy(feed, name);
    else if (value.dtype === 'bfloat16')
      throw new EngineError(`input "${name}": ONNX Runtime's Node binding has no bfloat16`);
    else held[name] = new ort.Tensor(value.dtype, feed.data as never, value.shape);
  }
  return held;
}

/** ONNX Runtime names the node; nodes have the names of the program's values. */
function runError(error: unknown, program: Program): EngineError {
  const reason = error instanceof Error ? error.message : String(error);
  const name = /Name:\s*'([^']*)'/.exec(reason)?.[1];
  const node = program.nodes.find((candidate) => candidate.outputs.some((value) => value.name === name));
  const where = node === undefined ? '' : ` at "${name}" (${node.primitive})`;
  return new EngineError(`the program failed${where}: ${reason}`);
}
