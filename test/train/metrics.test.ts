/** The log of a run's steps, as it is found and cut. */
import { mkdtempSync, readFileSync } from 'node:fs';
import { mkdir, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, expect, it } from 'vitest';
import { openMetrics } from '../../src/train/metrics.ts';

const folder = mkdtempSync(join(tmpdir(), 'palkit-metrics-'));
afterAll(() => rm(folder, { recursive: true }));

it('begins where nothing is, and keeps the steps before a checkpoint', async () => {
  const path = join(folder, 'metrics.jsonl');
  (await openMetrics(path, 0)).close();
  expect(readFileSync(path, 'utf8')).toBe('');
  await writeFile(path, '{"step":1}\n{"step":2}\n{"step":3}\n{"ste');
  (await openMetrics(path, 2)).close();
  expect(readFileSync(path, 'utf8')).toBe('{"step":1}\n{"step":2}\n');
});

it('what cannot be read is not taken for a log without steps', async () => {
  const path = join(folder, 'occupied');
  await mkdir(path);
  await expect(openMetrics(path, 0)).rejects.toThrow('EISDIR: illegal operation on a directory, read');
});
