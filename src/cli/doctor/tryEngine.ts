/** Whether an engine computes, tried in a child process. */
import { z } from 'zod';
import { type Environment, runChild } from './child.ts';

const attemptSchema = z.object({
  ok: z.boolean(),
  reason: z.string().default(''),
  /** What a step's matrix products may be computed in: `float32`, `float16 (emulated)`. */
  types: z.array(z.string()).default([]),
});

export type Attempt = z.output<typeof attemptSchema>;

/**
 * Runs a tiny program.
 * @param name the provider or backend
 */
export async function tryEngine(
  kind: 'onnx' | 'tfjs',
  name: string,
  environment: Environment = {},
): Promise<Attempt> {
  const outcome = await runChild('tryProvider', [kind, name], attemptSchema, {
    environment,
    limitMs: 60_000,
  });
  return outcome.ok ? outcome.answer : { ...outcome, types: [] };
}
