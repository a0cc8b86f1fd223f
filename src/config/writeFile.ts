import { mkdir, open, readdir, rename, rm } from 'node:fs/promises';
import { dirname, resolve } from 'node:path';

/** What a file is to hold; several pieces stand one after the other. */
export type FileContent = string | Uint8Array | readonly Uint8Array[];

/**
 * Writes a file so that its final name never holds a part of it: written aside, flushed, renamed, and the
 * folder flushed so that the rename itself survives a power loss.
 * @throws the system's error (a full disk, say) after removing the temporary file; the old file stays as it was.
 */
export async function writeFileAtomic(path: string, data: FileContent): Promise<void> {
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
export async function writeFlushed(path: string, data: FileContent): Promise<void> {
  const file = await open(path, 'w');
  try {
    for (const piece of typeof data === 'string' || data instanceof Uint8Array ? [data] : data)
      await file.writeFile(piece);
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

/** A folder that is to be replaced holds something else than what stood there before. */
export class OccupiedFolderError extends Error {
  override readonly name = 'OccupiedFolderError';
}

/**
 * Writes a folder so that its final name holds all of it or nothing: `fill` writes into a folder aside, which then
 * takes the place of whatever was there.
 * @throws what `fill` or the system throws, after removing the folder aside; the old folder stays as it was
 */
export async function writeFolderAtomic(path: string, fill: (aside: string) => Promise<void>): Promise<void> {
  // With a slash at its end, the folder aside would lie inside the one that it replaces.
  const target = resolve(path);
  const aside = `${target}.tmp-${process.pid}`;
  try {
    await mkdir(aside, { recursive: true });
    await fill(aside);
    await flushFolder(aside);
    await rm(target, { recursive: true, force: true });
    await rename(aside, target);
  } catch (error) {
    // The first error is the one to tell of.
    await rm(aside, { recursive: true, force: true }).catch(() => undefined);
    throw error;
  }
  await flushFolder(dirname(target));
}

/** @throws OccupiedFolderError when the folder is there and holds anything, or is a file */
export async function mustBeEmpty(folder: string): Promise<void> {
  if ((await entriesOf(folder)).length === 0) return;
  throw new OccupiedFolderError(
    `${folder}: holds files already, so it is left as it is; choose another folder`,
  );
}

/**
 * Whoever names a folder to build into may have named one with their own files.
 * @param marker a file that every earlier build holds
 * @throws OccupiedFolderError when the folder holds files and not the marker
 */
export async function mustBeReplaceable(folder: string, marker: string): Promise<void> {
  const inside = await entriesOf(folder);
  if (inside.length === 0 || inside.includes(marker)) return;
  throw new OccupiedFolderError(
    `${folder}: holds other files and no ${marker}, so it is left as it is; choose another folder`,
  );
}

/** The names in a folder; none where there is no folder. */
function entriesOf(folder: string): Promise<string[]> {
  return readdir(folder).catch((error: NodeJS.ErrnoException): string[] => {
    if (error.code === 'ENOENT') return [];
    if (error.code === 'ENOTDIR') throw new OccupiedFolderError(`${folder}: is a file, not a folder`);
    throw error;
  });
}
