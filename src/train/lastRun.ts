/**
 * Whether the last run in a folder ended in order. The system that runs out of memory, a GPU driver that crashes, a
 * machine that is switched off end a process without a word; the next start finds what it left and tells.
 */
import { readFileSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { writeFileAtomic } from '../config/writeFile.ts';

const fileName = 'running.json';

interface Mark {
  readonly pid: number;
  readonly started: string;
}

/**
 * Marks a run's folder as at work.
 * @param note told about a run before that ended without a word
 * @returns removes the mark; to be called however the run ends
 */
export async function markRunning(folder: string, note: (text: string) => void): Promise<() => void> {
  const path = join(folder, fileName);
  const left = readMark(path);
  if (left !== undefined)
    note(left.pid !== process.pid && isAlive(left.pid) ? beside(left) : died(left, folder));
  const mark: Mark = { pid: process.pid, started: new Date().toISOString() };
  await writeFileAtomic(path, `${JSON.stringify(mark)}\n`);
  return () => rmSync(path, { force: true });
}

function readMark(path: string): Mark | undefined {
  try {
    const { pid, started } = JSON.parse(readFileSync(path, 'utf8')) as Partial<Mark>;
    return { pid: Number(pid), started: String(started) };
  } catch {
    return undefined;
  }
}

function isAlive(pid: number): boolean {
  try {
    return process.kill(pid, 0);
  } catch {
    return false;
  }
}

function died({ pid, started }: Mark, folder: string): string {
  return (
    `the run of ${started} in ${folder} (process ${pid}) ended without a word: it was killed, by somebody, by the ` +
    'system for want of memory (lower train.batchSize), or with a GPU driver that crashed; the system log ' +
    '(journalctl -k, dmesg) tells which'
  );
}

function beside({ pid, started }: Mark): string {
  return (
    `process ${pid} has been at work in this folder since ${started}, it seems: two runs in one folder spoil each ` +
    'other; if it is no palkit, the run before ended without a word'
  );
}
