/** Tries on execution providers in a process of their own: a GPU provider that fails can take its process with it. */
import { fork } from 'node:child_process';
import { existsSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { fileURLToPath } from 'node:url';
import type { z } from 'zod';

export type Environment = Readonly<Record<string, string>>;

export type Outcome<T> =
  | { readonly ok: true; readonly answer: T }
  | { readonly ok: false; readonly reason: string };

/** Debian's chromium package brings SwiftShader, a GPU in software, and a Vulkan loader that finds it. */
const chromium = '/usr/lib/chromium';

/** The variables under which WebGPU finds a device in software; undefined where none is installed. */
export function softwareEnvironment(): Environment | undefined {
  const driver = `${chromium}/vk_swiftshader_icd.json`;
  if (!existsSync(driver)) return undefined;
  const { LD_LIBRARY_PATH: own, XDG_RUNTIME_DIR = tmpdir() } = process.env;
  return {
    VK_ICD_FILENAMES: driver,
    XDG_RUNTIME_DIR,
    // After the folders that are named already: a loader of the system's is as good.
    LD_LIBRARY_PATH: own === undefined ? chromium : `${own}:${chromium}`,
  };
}

/**
 * Runs a module of this folder and takes the last message that it sends, also where the process dies after it: a
 * module that has more to try sends first what it knows already.
 * @param module `tryProvider`
 * @param schema what it answers
 */
export function runChild<T>(
  module: string,
  given: readonly string[],
  schema: z.ZodType<T>,
  { environment = {}, limitMs }: { readonly environment?: Environment; readonly limitMs: number },
): Promise<Outcome<T>> {
  const ending = import.meta.url.endsWith('.ts') ? 'ts' : 'js';
  const child = fork(fileURLToPath(new URL(`./${module}.${ending}`, import.meta.url)), [...given], {
    env: { ...process.env, ...environment },
    stdio: ['ignore', 'ignore', 'ignore', 'ipc'],
  });
  return new Promise((resolve) => {
    let outcome: Outcome<T> | undefined;
    const timer = setTimeout(() => {
      outcome ??= { ok: false, reason: `no answer within ${limitMs / 1000} s` };
      child.kill('SIGKILL');
    }, limitMs);
    child.on('message', (message) => {
      const parsed = schema.safeParse(message);
      outcome = parsed.success
        ? { ok: true, answer: parsed.data }
        : { ok: false, reason: `an answer that is none: ${parsed.error.message}` };
    });
    child.on('error', (error) => {
      outcome ??= { ok: false, reason: error.message };
    });
    child.on('close', (code, signal) => {
      clearTimeout(timer);
      resolve(outcome ?? { ok: false, reason: `its process ended with ${signal ?? `exit code ${code}`}` });
    });
  });
}
