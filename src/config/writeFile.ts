import { mkdir, open, rename, rm } from 'node:fs/promises';
import { dirname } from 'node:path';

/**
 * Writes a file so that its final name never holds a part of it: written aside, flushed, renamed, and the
 * folder flushed so that the rename itself survives a power loss.
 * @throws the system's error (a full disk, say) after removing the temporary file; the old file stays as it was.
 */
export async function writeFileAtomic(path: string, data: string | Uint8Array): Promise<void> {
  const temporary = `${path}.tmp-${process.pid}`;
  try {
    await writeFlushed(temporary, data);
    await rename(temporary, path);
  } catch (error) {
    await rm(temporary, { force: true });
    throw error;
  }
  await flushFolder(dirname(path));
}

/** Writes a file and flushes it to the disk. */
export async function writeFlushed(path: string, data: string | Uint8Array): Promise<void> {
  const file = await open(path, 'w');
  try {
    await file.writeFile(data);
    await file.sync();
  } finally {
    await file.close();
  }
}

/** Flushes a folder's entries (created, renamed and removed names) to the disk. */
export async function flushFolder(path: string): Promise<void> {
  const folder = await open(path, 'r');
  try {
    await folder.sync();
  } finally {
    await folder.close();
  }
}

/**
 * Writes a folder so that its final name holds all of it or nothing: `fill` writes into a folder aside, which then
 * takes the place of whatever was there.
 * @throws what `fill` or the system throws, after removing the folder aside; the old folder stays as it was
 */
export async function writeFolderAtomic(path: string, fill: (aside: string) => Promise<void>): Promise<void> {
  const aside = `${path}.tmp-${process.pid}`;
  try {
    await mkdir(aside, { recursive: true });
    await fill(aside);
    await flushFolder(aside);
    await rm(path, { recursive: true, force: true });
    await rename(aside, path);
  } catch (error) {
    // The first error is the one to tell of.
    await rm(aside, { recursive: true, force: true }).catch(() => undefined);
    throw error;
  }
  await flushFolder(dirname(path));
}
