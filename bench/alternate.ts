/**
 * Contenders, each in a process of its own, in turn (A B A B): these machines are shared and drift, ratios less. A
 * process prints one JSON line last; the first of its times warms up and is left out.
 */
import { measure, median } from './measure.ts';

export interface Run {
  /** Milliseconds of each repetition. */
  readonly times: readonly number[];
  /** The process's peak resident memory. */
  readonly peakMB: number;
}

export interface Contender {
  readonly name: string;
  readonly command: string;
  readonly script: readonly string[];
}

export interface Measured<R extends Run> {
  readonly name: string;
  readonly medianMs: number;
  readonly bestMs: number;
  readonly peakMB: number;
  readonly runs: readonly R[];
}

/** palkit's side: a TypeScript file of this folder. */
export function palkit(name: string, script: readonly string[]): Contender {
  return { name, command: 'node_modules/.bin/tsx', script };
}

/** Runs every contender `rounds` times, in turn. */
export function alternate<R extends Run>(contenders: readonly Contender[], rounds: number): Measured<R>[] {
  const results = contenders.map((contender) => ({ contender, runs: [] as R[] }));
  for (let round = 1; round <= rounds; round++) {
    for (const { contender, runs } of results) {
      process.stderr.write(`round ${round}/${rounds}: ${contender.name}\n`);
      runs.push(measure<R>(contender.command, contender.script));
    }
  }
  return results.map(({ contender, runs }) => {
    const times = runs.flatMap((run) => run.times.slice(1));
    return {
      name: contender.name,
      medianMs: median(times),
      bestMs: Math.min(...times),
      peakMB: median(runs.map(({ peakMB }) => peakMB)),
      runs,
    };
  });
}

/** `1.23 x` */
export function formatRatio(ratio: number): string {
  return `${ratio.toFixed(2)} x`;
}
