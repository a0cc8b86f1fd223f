/** What every benchmark needs: a process of its own for each measurement, medians, and a way to refuse. */
import { execFileSync } from 'node:child_process';
import { existsSync, readFileSync } from 'node:fs';
import { type BenchShapeName, benchShapes } from './models.ts';

/** Runs a script in a process of its own; its last line is JSON. */
export function measure<T>(command: string, script: readonly string[]): T {
  if (command.includes('/') && !existsSync(command)) fail(`${command}: is not there`);
  const text = execFileSync(command, script, { encoding: 'utf8', stdio: ['ignore', 'pipe', 'inherit'] });
  return JSON.parse(text.trim().split('\n').at(-1) ?? '') as T;
}

/** Runs one of this folder's scripts. */
export function measureOwn<T>(script: string, ...parameters: readonly string[]): T {
  return measure('node_modules/.bin/tsx', [`bench/${script}`, ...parameters]);
}

export function median(numbers: readonly number[]): number {
  const sorted = [...numbers].sort((a, b) => a - b);
  const middle = sorted.length / 2;
  const [low, high] = [sorted[Math.ceil(middle) - 1], sorted[Math.floor(middle)]];
  return ((low ?? Number.NaN) + (high ?? Number.NaN)) / 2;
}

/** This process's resident memory in megabytes, now or at its peak. */
export function memoryMB(field: 'VmRSS' | 'VmHWM'): number {
  const status = readFileSync('/proc/self/status', 'utf8');
  return Math.round((Number(new RegExp(`${field}:\\s*(\\d+)`).exec(status)?.[1]) * 1024) / 1e6);
}

/** The name of a shape. Ends the process when there is none of that name. */
export function benchShapeName(given: string): BenchShapeName {
  if (Object.hasOwn(benchShapes, given)) return given as BenchShapeName;
  return fail(`--shape ${given}: there are ${Object.keys(benchShapes).join(', ')}`);
}

export function fail(message: string): never {
  process.stderr.write(`${message}\n`);
  process.exit(2);
}
