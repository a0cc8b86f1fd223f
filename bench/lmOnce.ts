/**
 * One language model on text, in a process of its own. Prints the result of `palkit lm` as one JSON line.
 *
 *     tsx bench/lmOnce.ts '{"llm": {"kind": "new", ...}, ...}'
 */
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { lmSchema } from '../src/config/lmSchema.ts';
import { runLm } from '../src/train/pretrain.ts';

const dir = await mkdtemp(join(tmpdir(), 'palkit-lm-'));
try {
  const experiment = lmSchema.parse({ ...JSON.parse(process.argv[2] ?? '{}'), run: { dir } });
  const watch = { note: () => {}, progress: () => ({ update: () => {}, stop: () => {} }) };
  const result = await runLm(experiment, { watch, resume: false });
  process.stdout.write(`${JSON.stringify(result)}\n`);
} finally {
  await rm(dir, { recursive: true });
}
