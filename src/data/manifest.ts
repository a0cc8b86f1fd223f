/** Audio-QA manifests: one JSON object a line, beside the audio it names. */
import { readFile } from 'node:fs/promises';
import { isAbsolute, normalize, sep } from 'node:path';
import { z } from 'zod';
import { writeFileAtomic } from '../config/writeFile.ts';

const exampleSchema = z.strictObject({
  id: z.string().min(1).max(200),
  /** Path of the WAV file, relative to the manifest's folder. */
  audio: z.string().min(1).max(1000),
  question: z.string().min(1).max(10_000),
  answer: z.string().min(1).max(10_000),
  /** What a choice question offers; the answer is one of them. */
  options: z.array(z.string().min(1)).min(2).max(100).optional(),
  /** What the question is about, for tables. */
  category: z.string().min(1),
  /** Questions of one wording family that share their set of answers; the majority baseline is per template. */
  template: z.string().min(1),
  kind: z.enum(['choice', 'open']),
});

/** One question about one clip. */
export type Example = z.infer<typeof exampleSchema>;

export class ManifestError extends Error {
  override readonly name = 'ManifestError';
}

const longestLine = 1_000_000;

/**
 * Reads a manifest (JSON lines; a byte order mark and CRLF are tolerated).
 * @throws ManifestError with file and line of everything that is wrong
 */
export async function readManifest(path: string): Promise<Example[]> {
  let text: string;
  try {
    text = await readFile(path, 'utf8');
  } catch (error) {
    throw new ManifestError(`${path}: cannot be read (${(error as NodeJS.ErrnoException).code ?? error})`);
  }
  const examples: Example[] = [];
  const problems: string[] = [];
  const lineOf = new Map<string, number>();
  for (const [index, raw] of text
    .replace(/^\uFEFF/, '')
    .split('\n')
    .entries()) {
    const line = raw.replace(/\r$/, '');
    if (line.trim() === '') continue;
    const where = `${path}:${index + 1}`;
    const result = parseLine(line);
    if ('problem' in result) {
      problems.push(`${where}: ${result.problem}`);
      continue;
    }
    const earlier = lineOf.get(result.example.id);
    if (earlier !== undefined)
      problems.push(`${where}: id "${result.example.id}" stands in line ${earlier} already`);
    lineOf.set(result.example.id, index + 1);
    examples.push(result.example);
  }
  if (problems.length > 0) throw new ManifestError(summary(problems));
  if (examples.length === 0) throw new ManifestError(`${path}: holds no example`);
  return examples;
}

function summary(problems: readonly string[]): string {
  const shown = problems.slice(0, 20);
  const rest = problems.length - shown.length;
  return [...shown, ...(rest > 0 ? [`... and ${rest} more`] : [])].join('\n');
}

function parseLine(line: string): { example: Example } | { problem: string } {
  if (line.length > longestLine)
    return { problem: `the line has ${line.length} characters, at most ${longestLine} are read` };
  let json: unknown;
  try {
    json = JSON.parse(line);
  } catch (error) {
    return { problem: `not JSON (${error instanceof Error ? error.message : error})` };
  }
  const parsed = exampleSchema.safeParse(json);
  if (!parsed.success) {
    const issues = parsed.error.issues.map((issue) => `${issue.path.join('.') || 'line'}: ${issue.message}`);
    return { problem: issues.join('; ') };
  }
  const example = parsed.data;
  const path = normalize(example.audio);
  if (isAbsolute(path) || path === '..' || path.startsWith(`..${sep}`)) {
    return { problem: `audio: "${example.audio}" leads out of the dataset's folder` };
  }
  if (example.kind === 'choice' && !example.options?.includes(example.answer)) {
    return { problem: `answer: "${example.answer}" is not among the options` };
  }
  if (example.kind === 'open' && example.options !== undefined) {
    return { problem: 'options: an open question has none' };
  }
  return { example };
}

/** Writes a manifest; the file appears whole or not at all. */
export async function writeManifest(path: string, examples: readonly Example[]): Promise<void> {
  await writeFileAtomic(path, examples.map((example) => `${JSON.stringify(example)}\n`).join(''));
}

/** What a builder reports. */
export interface DatasetSummary {
  readonly name: string;
  readonly folder: string;
  /** Questions per split and category. */
  readonly counts: Readonly<Record<string, Readonly<Record<string, number>>>>;
}

/** Questions per category. */
export function countByCategory(examples: readonly Example[]): Record<string, number> {
  const counts: Record<string, number> = {};
  for (const { category } of examples) counts[category] = (counts[category] ?? 0) + 1;
  return counts;
}
