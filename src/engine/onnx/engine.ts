/** The default engine: programs run as one ONNX graph by ONNX Runtime, on CPU, WebGPU or CUDA. */
import { mkdtemp, readdir, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { Program, Value } from '../../tensor/program.ts';
import { allocate, type Shape, sizeOf, type Tensor } from '../../tensor/tensor.ts';
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
import { checkFeeds, checkInto, checkKept, checkOverwriting, inputReaders } from '../feeds.ts';
import { tryHalf } from '../halfTrial.ts';
import { programCache } from '../programCache.ts';
import { type CudaOptions, chooseTf32, cudaProvider } from './cuda.ts';
import { compileError, runError } from './failure.ts';
import { endingName, type LoweredValues, lowerProgram, type Provider } from './lower.ts';
import { type ProgramProfile, readProfile } from './profile.ts';
import * as ort from './runtime.ts';

export type OptimizationLevel = 'disabled' | 'basic' | 'extended' | 'all';

export interface OnnxEngineOptions extends CudaOptions {
  readonly provider?: Provider;
  /** Threads inside one operator; 2 when left out. */
  readonly threads?: number;
  readonly optimization?: OptimizationLevel;
  /** Measures every kernel of what is compiled, and tells when a program is disposed. Measuring costs some time. */
  readonly onProfile?: (profile: ProgramProfile) => void;
}

/**
 * Constants from here on are read by ONNX Runtime where they lie, in place of being copied into a model. Shapes and
 * axes, which its shape inference wants to see, are far smaller.
 */
export const externalFromBytes = 65_536;

/** A tensor of ONNX Runtime under the engine's contract. */
interface OnnxDeviceTensor extends DeviceTensor {
  readonly held: ort.Tensor;
}

/** For people: `onnx (cpu, 2 threads)`. */
export function describeOnnx(provider: Provider, threads: number): string {
  return `onnx (${provider}${provider === 'cpu' ? `, ${threads} threads` : ''})`;
}

/**
 * Makes the ONNX engine. Sessions live in this thread: ONNX Runtime is not safe in worker threads.
 * @throws EngineError for an option of CUDA with another provider
 */
export function onnxEngine({
  provider = 'cpu',
  threads = 2,
  optimization = 'disabled',
  onProfile,
  ...cuda
}: OnnxEngineOptions = {}): Engine {
  if (provider !== 'cuda') mustBeUnset(cuda, provider);
  else chooseTf32(cuda);
  const own = provider === 'cuda' ? cudaProvider(cuda) : provider;
  const open = new Set<ort.InferenceSession>();
  const profileFolders = new Set<string>();

  async function removeFolder(folder: string): Promise<void> {
    profileFolders.delete(folder);
    await rm(folder, { recursive: true, force: true });
  }

  /** @param alone refuses what would run on the CPU in place of the provider */
  async function compileNew(
    program: Program,
    { keepOnDevice = [] }: CompileOptions = {},
    alone = false,
  ): Promise<Executable> {
    const kept = checkKept(program, keepOnDevice);
    // The model is let go as soon as there is a session: it can be large.
    const { model, external, ...lowered } = lowerProgram(program, provider, {
      ending: provider === 'cpu',
      externalFrom: externalFromBytes,
    });
    const profiles = onProfile === undefined ? undefined : await mkdtemp(join(tmpdir(), 'palkit-profile-'));
    if (profiles !== undefined) profileFolders.add(profiles);
    const session = await createSession(model, {
      executionProviders: alone || provider === 'cpu' ? [own] : [own, 'cpu'],
      ...(alone && provider !== 'cpu' && { extra: { session: { disable_cpu_ep_fallback: '1' } } }),
      intraOpNumThreads: threads,
      interOpNumThreads: 1,
      graphOptimizationLevel: optimization,
      // Measured on a transformer's training step: the memory pattern raised the peak by 40 % and saved no time.
      enableMemPattern: false,
      // A trial that fails says so by itself.
      logSeverityLevel: alone ? 4 : 3,
      ...(external.length > 0 && { externalData: external }),
      ...(profiles !== undefined && { enableProfiling: true, profileFilePrefix: join(profiles, 'run') }),
      ...(provider === 'webgpu' && {
        preferredOutputLocation: Object.fromEntries(
          [...program.outputs.keys()].map((name) => [name, kept.has(name) ? 'gpu-buffer' : 'cpu']),
        ),
      }),
    });
    open.add(session);
    const readers = inputReaders(lowered.program);
    return {
      async run(feeds, into = {}) {
        const held = feedsOf(program, feeds);
        if (provider === 'cpu') checkOverwriting(lowered.program, readers, feeds, into);
        const outputs =
          provider === 'cpu'
            ? await runInto(session, held, lowered, into)
            : await session.run(held).catch((error: unknown) => {
                throw runError(error, lowered);
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
        if (!open.delete(session)) return;
        try {
          if (profiles !== undefined) onProfile?.(await collectProfile(session, profiles, lowered));
        } finally {
          await session.release();
          if (profiles !== undefined) await removeFolder(profiles);
        }
      },
    };
  }

  // What is measured is told by program, when its only user disposes it.
  const cache = onProfile === undefined ? programCache(compileNew) : undefined;
  const compile = cache?.compile ?? compileNew;

  async function createSession(
    model: Uint8Array,
    options: ort.InferenceSession.SessionOptions,
  ): Promise<ort.InferenceSession> {
    try {
      return await ort.InferenceSession.create(model, options);
    } catch (error) {
      throw compileError(error, provider);
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
    description: describeOnnx(provider, threads),
    inPlace: provider === 'cpu',
    compile,
    async arithmetic(type) {
      await tryHalf((program) => compileNew(program, {}, true), type);
      return provider === 'cpu' ? 'emulated' : 'native';
    },
    reuse: cache?.reuse ?? ((work) => work()),
    read,
    async dispose() {
      const sessions = [...open];
      open.clear();
      await Promise.all(sessions.map((session) => session.release()));
      for (const folder of [...profileFolders]) await removeFolder(folder);
    },
  };
}

function mustBeUnset(options: CudaOptions, provider: Provider): void {
  for (const [name, value] of Object.entries(options)) {
    if (value !== undefined)
      throw new EngineError(`engine.${name} has no effect on ${provider}, only on cuda`);
  }
}

/** Runs with outputs that are written to memory of ours: `into` where it is given, else new. */
async function runInto(
  session: ort.InferenceSession,
  feeds: Record<string, ort.Tensor>,
  lowered: LoweredValues,
  into: Readonly<Record<string, Tensor>>,
): Promise<Record<string, ort.Tensor>> {
  const { program } = lowered;
  checkInto(program, into);
  try {
    const outputs = Object.fromEntries(
      [...program.outputs].map(([name, { dtype, shape }]) => {
        const data = into[name]?.data ?? allocate(dtype, sizeOf(shape));
        return [name, new ort.Tensor(dtype as 'float32', data as Float32Array, shape)];
      }),
    );
    await session.run(feeds, { [endingName]: null, ...outputs }).catch((error: unknown) => {
      if (!(error instanceof Error && error.message.startsWith('Non tensor type'))) throw error;
    });
    return outputs;
  } catch (error) {
    throw runError(error, lowered);
  }
}

/** Ends the session's measuring and takes the file that it leaves. */
async function collectProfile(
  session: ort.InferenceSession,
  folder: string,
  lowered: LoweredValues,
): Promise<ProgramProfile> {
  session.endProfiling();
  const [file] = await readdir(folder);
  if (file === undefined) throw new EngineError('ONNX Runtime left no profile');
  return readProfile(await readFile(join(folder, file), 'utf8'), lowered);
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
