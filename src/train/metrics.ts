/** metrics.jsonl: one line per optimizer step. */
import { appendFileSync, closeSync, openSync } from 'node:fs';
import { readFile } from 'node:fs/promises';
import { z } from 'zod';
import { writeFileAtomic } from '../config/writeFile.ts';
import { RunError } from './setup.ts';

export interface StepMetrics {
  /** 1-based step of the whole curriculum. */
  readonly step: number;
  readonly stage: string;
  readonly loss: number;
  readonly learningRate: number;
  /** Before clipping; null in the file where the step was skipped. */
  readonly gradientNorm: number;
  /** What the gradients were multiplied by; with float16 alone. */
  readonly lossScale?: number;
  /** Whether the gradients overflowed, so that nothing was updated; with float16 alone. */
  readonly skipped?: boolean;
  /** What is minimised beside the loss, for each supervised token; with sparse feed-forward layers that have some. */
  readonly auxiliaryLoss?: number;
  /** How tokens choose blocks: `layers.3.entropy`; with sparse feed-forward layers alone. */
  readonly feedForward?: Readonly<Record<string, number>>;
  /** Text and audio tokens taken in by the LLM. */
  readonly tokens: number;
  readonly tokensPerSecond: number;
  readonly stepMs: number;
  /** Most memory that the process ever held, in megabytes (10^6 bytes). */
  readonly peakResidentMB: number;
}

/** Most memory that this process ever held, in megabytes (10^6 bytes). */
export function peakResidentMB(): number {
  // Node gives KiB.
  return Math.round((process.resourceUsage().maxRSS * 1024) / 1e6);
}

/** The statistics of a step as its metrics. */
export function routingMetrics({
  auxiliaryLoss,
  ...feedForward
}: Readonly<Record<string, number>>): Pick<StepMetrics, 'auxiliaryLoss' | 'feedForward'> {
  return {
    ...(auxiliaryLoss !== undefined && { auxiliaryLoss }),
    ...(Object.keys(feedForward).length > 0 && { feedForward }),
  };
}

/** What is drawn of a line. A statistic of nothing is not a number, which JSON writes as null. */
const lineSchema = z.object({
  step: z.int().min(1),
  feedForward: z.record(z.string(), z.number().nullable()).optional(),
});

export type RoutingMetrics = z.infer<typeof lineSchema>;

/**
 * The feed-forward statistics of every step, rising. A torn last line is left out.
 * @throws RunError naming the line that is none of a metrics file
 */
export async function readRoutingMetrics(path: string): Promise<RoutingMetrics[]> {
  // What follows the last line feed is nothing, or torn.
  const lines = (await readFile(path, 'utf8')).split('\n').slice(0, -1);
  let last = 0;
  return lines.map((line, at) => {
    const fail = (what: string) => new RunError(`${path}:${at + 1}: ${what}`);
    let value: unknown;
    try {
      value = JSON.parse(line);
    } catch {
      throw fail('not JSON');
    }
    const parsed = lineSchema.safeParse(value);
    if (!parsed.success) throw fail('not the metrics of a step');
    if (parsed.data.step <= last) throw fail(`step ${parsed.data.step} after step ${last}`);
    last = parsed.data.step;
    return parsed.data;
  });
}

export interface MetricsLog {
  append(metrics: StepMetrics): void;
  close(): void;
}

/**
 * Opens the log, cut to the steps of the checkpoint that training resumes from, so that no step stands there twice.
 * A torn last line (a killed process, a full disk) is dropped.
 * @throws the system's error for a log that is there and cannot be read, which stays as it was
 */
export async function openMetrics(path: string, stepsDone: number): Promise<MetricsLog> {
  const text = await readFile(path, 'utf8').catch((error: NodeJS.ErrnoException) => {
    if (error.code === 'ENOENT') return '';
    throw error;
  });
  const kept = text.split('\n').filter((line) => {
    try {
      return (JSON.parse(line) as { step: number }).step <= stepsDone;
    } catch {
      return false;
    }
  });
  await writeFileAtomic(path, kept.map((line) => `${line}\n`).join(''));
  const file = openSync(path, 'a');
  return {
    append: (metrics) => appendFileSync(file, `${JSON.stringify(metrics)}\n`),
    close: () => closeSync(file),
  };
}
