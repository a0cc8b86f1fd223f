/** Text files of folders as a corpus, in which nothing that is held out stands in what is trained on. */
import { createHash } from 'node:crypto';
import { lstat, readdir, readFile, stat } from 'node:fs/promises';
import { basename, join } from 'node:path';
import { promisify } from 'node:util';
import { gunzip } from 'node:zlib';
import { ConfigError } from '../config/configError.ts';
import { patternTest } from '../config/patterns.ts';

export interface CorpusOptions {
  /** Folders of text files. */
  readonly folders: readonly string[];
  /** Patterns on file names; a compressed file (.gz) goes by its name without the ending. */
  readonly files: readonly string[];
  /** Share of the files that are held out. */
  readonly heldOut: number;
  /** Characters of text at most, in millions; null: all. */
  readonly mostMB: number | null;
}

export interface CorpusFile {
  readonly path: string;
  readonly text: string;
}

export interface Corpus {
  readonly training: readonly CorpusFile[];
  readonly heldOut: readonly CorpusFile[];
  /** Files that could not be read as text, and why. */
  readonly skipped: readonly { readonly path: string; readonly reason: string }[];
  /** Files left out because the corpus was large enough. */
  readonly beyond: number;
  /** Files with the content of another. */
  readonly copies: number;
  /** Characters of paragraphs that had occurred before. */
  readonly repeatedCharacters: number;
}

/** Larger ones are no text that somebody wrote. */
const largestFileBytes = 16 * 2 ** 20;

/**
 * Reads the text files below some folders. Files are ordered by a hash of their content, which decides too which are
 * held out: the corpus depends on nothing but the files. A paragraph that has occurred before is left out, and
 * training text comes first: no paragraph that is held out can have been trained on. Symbolic links are not followed.
 * @throws ConfigError for a folder that is not there, and for a corpus without text on both sides
 */
export async function readCorpus(options: CorpusOptions): Promise<Corpus> {
  const { folders, files, heldOut, mostMB } = options;
  const isWanted = files.map((pattern, at) => patternTest(pattern, `corpus.files[${at}]`));
  const paths = new Set<string>();
  const skipped: { path: string; reason: string }[] = [];
  for (const folder of folders) {
    const found = await stat(folder).catch(() => undefined);
    if (found?.isDirectory() !== true)
      throw new ConfigError(
        `corpus.folders: ${folder}: is ${found === undefined ? 'not there' : 'no folder'}; name folders of text files`,
      );
    for await (const path of filesBelow(folder, skipped)) {
      const name = basename(path).replace(/\.gz$/, '');
      if (isWanted.some((test) => test(name))) paths.add(path);
    }
  }
  const unreadableFolders = skipped.length;
  const found = new Map<string, { path: string; share: number }>();
  for (const path of [...paths].sort()) {
    const text = await textOf(path).catch((error: unknown) => {
      skipped.push({ path, reason: error instanceof Error ? error.message : String(error) });
    });
    if (text === undefined) continue;
    const digest = createHash('sha256').update(text).digest();
    const key = digest.toString('hex');
    if (!found.has(key)) found.set(key, { path, share: digest.readUInt32BE(0) / 2 ** 32 });
  }
  const copies = paths.size - (skipped.length - unreadableFolders) - found.size;
  const ordered = [...found].sort(([a], [b]) => (a < b ? -1 : 1)).map(([, file]) => file);
  const seen = new Set<string>();
  let [beyond, repeatedCharacters] = [0, 0];
  const take = async (isHeldOut: boolean): Promise<CorpusFile[]> => {
    const most =
      mostMB === null
        ? Number.POSITIVE_INFINITY
        : Math.round(1e6 * mostMB * (isHeldOut ? heldOut : 1 - heldOut));
    const taken: CorpusFile[] = [];
    let characters = 0;
    for (const { path, share } of ordered) {
      if (share < heldOut !== isHeldOut) continue;
      if (characters >= most) {
        beyond++;
        continue;
      }
      const whole = await textOf(path).catch((error: Error) => {
        throw new ConfigError(`${path}: ${error.message}; it changed while the corpus was read`);
      });
      const { text, repeated } = unseenParagraphs(whole, seen, most - characters);
      repeatedCharacters += repeated;
      characters += text.length;
      if (text !== '') taken.push({ path, text });
    }
    return taken;
  };
  const training = await take(false);
  const kept = await take(true);
  if (training.length === 0 || kept.length === 0)
    throw new ConfigError(
      `corpus: ${training.length} files to train on and ${kept.length} held out, of ${paths.size} that ` +
        `${files.join(', ')} match below ${folders.join(', ')} (${skipped.length} unreadable, ${copies} copies): name more text, or another share (corpus.heldOut)`,
    );
  return { training, heldOut: kept, skipped, beyond, copies, repeatedCharacters };
}

/** Regular files below a folder, by name; folders that cannot be read are noted. */
async function* filesBelow(
  folder: string,
  skipped: { path: string; reason: string }[],
): AsyncGenerator<string> {
  const entries = await readdir(folder, { withFileTypes: true }).catch((error: Error) => {
    skipped.push({ path: folder, reason: error.message });
    return [];
  });
  for (const entry of entries.sort((a, b) => (a.name < b.name ? -1 : 1))) {
    const path = join(folder, entry.name);
    if (entry.isDirectory()) yield* filesBelow(path, skipped);
    else if (entry.isFile()) yield path;
  }
}

const unzip = promisify(gunzip);

/** @throws Error saying why a file is no text */
async function textOf(path: string): Promise<string> {
  const { size } = await lstat(path);
  const tooLarge = `is larger than ${largestFileBytes / 2 ** 20} MiB`;
  if (size > largestFileBytes) throw new Error(tooLarge);
  const stored = await readFile(path);
  const bytes = path.endsWith('.gz')
    ? await unzip(stored, { maxOutputLength: largestFileBytes }).catch((error: NodeJS.ErrnoException) => {
        throw new Error(
          error.code === 'ERR_BUFFER_TOO_LARGE' ? tooLarge : `is no gzip file: ${error.message}`,
        );
      })
    : stored;
  if (bytes.includes(0)) throw new Error('has zero bytes: it is binary');
  try {
    return new TextDecoder('utf-8', { fatal: true }).decode(bytes).replaceAll('\r\n', '\n');
  } catch {
    throw new Error('is not UTF-8');
  }
}

/** The paragraphs that have not been seen, which now have: at most so many characters. */
function unseenParagraphs(
  whole: string,
  seen: Set<string>,
  most: number,
): { text: string; repeated: number } {
  const kept: string[] = [];
  let [characters, repeated] = [0, 0];
  for (const paragraph of whole.split(/\n\s*\n/)) {
    if (characters >= most) break;
    const words = paragraph.replace(/[^\p{L}\p{N}]+/gu, ' ').trim();
    // Rules and blank lines say nothing.
    if (words === '') continue;
    const key = createHash('sha1').update(words).digest('base64');
    if (seen.has(key)) repeated += paragraph.length;
    else {
      seen.add(key);
      kept.push(paragraph);
      characters += paragraph.length;
    }
  }
  // Cut between characters, not within one.
  const text = kept
    .join('\n\n')
    .slice(0, most)
    .replace(/[\ud800-\udbff]$/, '');
  return { text, repeated };
}
