/** What a run of `palkit lm` has measured so far, kept in its folder: a run that goes on does not have the models of before. */
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { z } from 'zod';
import { writeFileAtomic } from '../config/writeFile.ts';
import { CheckpointError } from './checkpoint.ts';

const modelNames = ['dense', 'converted', 'reconstructed', 'initial', 'trained'] as const;

const findingsSchema = z.strictObject({
  /** Of everything that decides the numbers. */
  configHash: z.string(),
  measured: z.array(
    z.strictObject({
      model: z.enum(modelNames),
      nll: z.number(),
      tokens: z.int().min(1),
      bitsPerByte: z.number(),
    }),
  ),
  /** How tokens chose in the last step; of layers that choose alone. */
  feedForward: z.record(z.string(), z.number()).optional(),
});

/** perplexity is exp(nll). */
export type Findings = z.infer<typeof findingsSchema>;

/** A model by what has happened to it: `dense`, as it was; `converted`; `reconstructed`; `initial`, new; `trained` */
export type ModelName = (typeof modelNames)[number];

const fileName = 'measured.json';

export async function writeFindings(folder: string, findings: Findings): Promise<void> {
  await writeFileAtomic(join(folder, fileName), `${JSON.stringify(findings, null, 2)}\n`);
}

/**
 * What was measured before a checkpoint.
 * @throws CheckpointError where that is not there, damaged, or of another run
 */
export async function readFindings(folder: string, configHash: string): Promise<Findings> {
  const path = join(folder, fileName);
  const fail = (reason: string): never => {
    throw new CheckpointError(
      `${path}: ${reason}; it belongs to the checkpoints beside it. Bring it back, or start over with --resume never`,
    );
  };
  const text = await readFile(path, 'utf8').catch(({ code }: NodeJS.ErrnoException) =>
    fail(`cannot be read (${code})`),
  );
  let findings: Findings;
  try {
    findings = findingsSchema.parse(JSON.parse(text));
  } catch {
    return fail('is not what a run writes');
  }
  return findings.configHash === configHash ? findings : fail('is of another run');
}
