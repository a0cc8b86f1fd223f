/** Finds, loads and names the backend of TensorFlow.js that computes. Nothing of it is loaded before it is wanted. */
import { createRequire } from 'node:module';
import { dirname } from 'node:path';
import { EngineError } from '../engine.ts';
import { refuseNullPointers } from './failure.ts';

/** The API of TensorFlow.js. */
export type Tf = typeof import('@tensorflow/tfjs-core');

export type TfjsBackend = 'node-gpu' | 'node' | 'wasm' | 'cpu';

export interface ChosenBackend {
  readonly tf: Tf;
  readonly backend: TfjsBackend;
  /** What TensorFlow.js calls it. */
  readonly registered: string;
  /** Why this one, for people. */
  readonly reason: string;
}

/** How a package is imported; another one in tests. */
export type Load = (name: string) => Promise<unknown>;

const core = '@tensorflow/tfjs-core';
const version = '4.22.0';
const packages: Readonly<Record<TfjsBackend, string>> = {
  'node-gpu': '@tensorflow/tfjs-node-gpu',
  node: '@tensorflow/tfjs-node',
  wasm: '@tensorflow/tfjs-backend-wasm',
  cpu: '@tensorflow/tfjs-backend-cpu',
};

/** From the fastest; `auto` takes the first that works. */
export const tfjsBackends = Object.keys(packages) as readonly TfjsBackend[];

const loadPackage: Load = (name) => import(name);

/**
 * Makes a backend ready.
 * @param wanted one backend, or `auto` for the first that works
 * @throws EngineError saying what to install when the wanted one is not there; it is never replaced by another
 */
export async function chooseBackend(
  wanted: TfjsBackend | 'auto',
  load: Load = loadPackage,
): Promise<ChosenBackend> {
  const tf = (await importOne(core, load)) as Tf;
  if (wanted !== 'auto') return { ...(await prepare(tf, wanted, load)), reason: 'as asked for' };
  const passed: string[] = [];
  for (const backend of tfjsBackends) {
    try {
      const chosen = await prepare(tf, backend, load);
      return { ...chosen, reason: passed.length === 0 ? 'the fastest' : passed.join('; ') };
    } catch (error) {
      if (!(error instanceof EngineError)) throw error;
      passed.push(error.message.split('\n')[0] ?? '');
    }
  }
  throw new EngineError(`no backend of TensorFlow.js works here: ${passed.join('; ')}`);
}

async function prepare(tf: Tf, backend: TfjsBackend, load: Load): Promise<Omit<ChosenBackend, 'reason'>> {
  const name = packages[backend];
  const module = await importOne(name, load);
  const registered = backend === 'wasm' || backend === 'cpu' ? backend : 'tensorflow';
  // A package with a tfjs-core of its own registers its backend there, where nobody looks.
  if (tf.findBackendFactory(registered) === null) {
    throw new EngineError(
      `${name} does not belong to the installed ${core} ${tf.version_core}\n` +
        `Install the same version: npm install ${name}@${tf.version_core}`,
    );
  }
  mustBeOfVersion(module, backend, tf.version_core);
  if (backend === 'wasm') useInstalledBinaries(module);
  // Its advertisement of tfjs-node is `auto`'s to give.
  if (backend === 'cpu') tf.enableProdMode();
  if (!(await tf.setBackend(registered).catch(() => false))) {
    throw new EngineError(`${name} is installed, but does not start`);
  }
  if (backend === 'wasm') refuseNullPointers(tf.backend());
  // The GPU package computes on the CPU where it finds no GPU, and says nothing.
  if (backend === 'node-gpu' && !usesGpu(tf.backend())) {
    throw new EngineError(
      `${name} finds no GPU\nIt needs an NVIDIA GPU with CUDA and cuDNN; without one, choose node or wasm`,
    );
  }
  return { tf, backend, registered };
}

/** Imports a package. @throws EngineError when it is not installed, or does not load */
async function importOne(name: string, load: Load): Promise<unknown> {
  try {
    const module = (await load(name)) as { readonly default?: unknown };
    return module.default ?? module;
  } catch (error) {
    const { code, message } = error as NodeJS.ErrnoException;
    if (code === 'ERR_MODULE_NOT_FOUND' && message.includes(name)) {
      throw new EngineError(`${name} is not installed\nInstall it: npm install ${name}@${version}`);
    }
    throw new EngineError(`${name} is installed, but does not load: ${message.split('\n')[0]}`);
  }
}

/** Every package carries the version of tfjs-core that it was made with. */
function mustBeOfVersion(module: unknown, backend: TfjsBackend, wanted: string): void {
  const { version_wasm, version_cpu, version: own } = module as Record<string, unknown>;
  const native = (own as Record<string, unknown> | undefined)?.['tfjs-core'];
  const found = { wasm: version_wasm, cpu: version_cpu, node: native, 'node-gpu': native }[backend];
  if (found === undefined || found === wanted) return;
  const name = packages[backend];
  throw new EngineError(
    `${name} ${found} does not belong to the installed ${core} ${wanted}\n` +
      `Install the same version: npm install ${name}@${wanted}`,
  );
}

/** The binaries lie beside the package's code, wherever that is installed. */
function useInstalledBinaries(module: unknown): void {
  const { setWasmPaths } = module as typeof import('@tensorflow/tfjs-backend-wasm');
  setWasmPaths(`${dirname(createRequire(import.meta.url).resolve(packages.wasm))}/`);
}

const usesGpu = (backend: object) => 'isUsingGpuDevice' in backend && backend.isUsingGpuDevice === true;
