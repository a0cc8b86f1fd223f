/** Modules of this folder in a process of their own, where WebGPU finds a device: a provider that fails can take its process with it. */
import { spawnSync } from 'node:child_process';
import { tmpdir } from 'node:os';
import { softwareEnvironment } from '../../src/cli/doctor/child.ts';

/** What a machine without a device is told to do. */
export const howToGetADevice = 'on Debian, apt-get install chromium gives one in software';

/** The environment of this process, with the device in software where none is chosen. */
export function deviceEnvironment(): NodeJS.ProcessEnv {
  const software = softwareEnvironment() ?? {};
  const loader = software.LD_LIBRARY_PATH;
  return {
    XDG_RUNTIME_DIR: tmpdir(),
    ...software,
    ...process.env,
    ...(loader !== undefined && { LD_LIBRARY_PATH: loader }),
  };
}

/** What a module prints, as JSON, or the last line of why it does not. */
export function runOnDevice<T>(
  module: string,
  given: readonly string[],
  environment: Readonly<Record<string, string>> = {},
): T | string {
  const child = spawnSync(
    process.execPath,
    ['node_modules/tsx/dist/cli.mjs', `test/engine/${module}.ts`, ...given],
    {
      encoding: 'utf8',
      maxBuffer: 2 ** 28,
      timeout: 110_000,
      env: { ...deviceEnvironment(), ...environment },
    },
  );
  return child.status === 0
    ? (JSON.parse(child.stdout) as T)
    : `${child.stderr}`.trim().split('\n').at(-1) || 'no device';
}
