/**
 * Equal programs are compiled once. A compiled program has as many users as asked for it and ends when the last of
 * them disposes it; during `reuse` a while later, so that those that come one after the other share it too.
 */
import { liveness } from '../tensor/liveness.ts';
import type { Program } from '../tensor/program.ts';
import { type CompileOptions, EngineError, type Executable } from './engine.ts';
import { programKey } from './programKey.ts';

export interface ProgramCache {
  /** As an engine compiles, or what was compiled for an equal program before. */
  compile(program: Program, options?: CompileOptions): Promise<Executable>;
  /** While `work` runs, programs that nobody uses any more are kept, up to `idleBytes`. */
  reuse<T>(work: () => Promise<T>): Promise<T>;
}

interface Entry {
  readonly compiled: Promise<Executable>;
  /** What it holds, estimated; Infinity where it is not to be kept. */
  readonly bytes: number;
  users: number;
}

/** What programs without users may hold together: enough for models that compile as long as they run. */
const idleBytes = 2 ** 28;

/** @param compile an engine's own */
export function programCache(
  compile: (program: Program, options?: CompileOptions) => Promise<Executable>,
): ProgramCache {
  // In the order in which they were given back.
  const entries = new Map<string, Entry>();
  let reusing = 0;

  /** Ends programs without users; those that were given back last stay, as far as there is room. */
  async function shrink(): Promise<void> {
    const room = reusing > 0 ? idleBytes : 0;
    const idle = [...entries].filter(([, { users }]) => users === 0).reverse();
    const ending: Entry[] = [];
    let kept = 0;
    for (const [key, entry] of idle) {
      if (kept + entry.bytes <= room) kept += entry.bytes;
      else {
        entries.delete(key);
        ending.push(entry);
      }
    }
    for (const { compiled } of ending) await (await compiled).dispose();
  }

  async function giveBack(key: string, entry: Entry): Promise<void> {
    entry.users--;
    if (entry.users > 0 || entries.get(key) !== entry) return;
    entries.delete(key);
    entries.set(key, entry);
    await shrink();
  }

  return {
    async compile(program, options = {}) {
      const key = programKey(program, options);
      const entry = entries.get(key) ?? {
        compiled: compile(program, options),
        bytes: reusing > 0 ? bytesOfRun(program) : Number.POSITIVE_INFINITY,
        users: 0,
      };
      entries.set(key, entry);
      entry.users++;
      const compiled = await entry.compiled.catch((error: unknown) => {
        if (entries.get(key) === entry) entries.delete(key);
        throw error;
      });
      let disposed = false;
      return {
        async run(feeds, into) {
          if (disposed) throw new EngineError('the program was disposed');
          return compiled.run(feeds, into);
        },
        async dispose() {
          if (disposed) return;
          disposed = true;
          await giveBack(key, entry);
        },
      };
    },
    async reuse(work) {
      reusing++;
      try {
        return await work();
      } finally {
        reusing--;
        await shrink();
      }
    },
  };
}

/** Engines keep constants at least once, and memory that is as large as a run needs. */
function bytesOfRun(program: Program): number {
  const constants = program.nodes.reduce(
    (total, node) => total + (node.primitive === 'constant' ? node.attributes.tensor.data.byteLength : 0),
    0,
  );
  return constants + liveness(program).peakBytes;
}
