import { mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { mustBeReplaceable, writeFolderAtomic } from '../../src/config/writeFile.ts';
import { ensureDataset } from '../../src/data/dataset.ts';

let folder: string;
beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), 'palkit-write-'));
});
afterEach(() => rm(folder, { recursive: true }));

test.each(['built', 'built/', 'built//', './built/.'])(
  'a folder written as "%s" replaces the earlier one',
  async (name) => {
    await writeFolderAtomic(join(folder, 'built'), (aside) => writeFile(join(aside, 'old'), 'old'));
    await writeFolderAtomic(`${folder}/${name}`, (aside) => writeFile(join(aside, 'new'), 'new'));
    expect(await readdir(folder)).toEqual(['built']);
    expect(await readdir(join(folder, 'built'))).toEqual(['new']);
  },
);

test('a failure leaves the earlier folder as it was', async () => {
  const path = `${join(folder, 'built')}/`;
  await writeFolderAtomic(path, (aside) => writeFile(join(aside, 'old'), 'old'));
  const failing = writeFolderAtomic(path, () => Promise.reject(new Error('no')));
  await expect(failing).rejects.toThrow('no');
  expect(await readFile(join(path, 'old'), 'utf8')).toBe('old');
  expect(await readdir(folder)).toEqual(['built']);
});

test('only an earlier build, an empty folder or none may be replaced', async () => {
  await mustBeReplaceable(join(folder, 'nothing'), 'dataset.json');
  await mustBeReplaceable(folder, 'dataset.json');
  await writeFile(join(folder, 'thesis.tex'), 'years of work');
  await expect(mustBeReplaceable(folder, 'dataset.json')).rejects.toThrow(
    `${folder}: holds other files and no dataset.json, so it is left as it is; choose another folder`,
  );
  await expect(mustBeReplaceable(join(folder, 'thesis.tex'), 'dataset.json')).rejects.toThrow('is a file');
});

test('data.dir pointing at the files of a user is refused before anything is made', async () => {
  await writeFile(join(folder, 'thesis.tex'), 'years of work');
  await expect(ensureDataset('sound-world', folder, () => undefined)).rejects.toThrow('holds other files');
  expect(await readdir(folder)).toEqual(['thesis.tex']);
});
