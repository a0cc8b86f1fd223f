/** Where the recordings come from: Debian's asterisk-core-sounds packages, installed or as .deb files. */
import { spawn } from 'node:child_process';
import { readdir, readFile } from 'node:fs/promises';
import { basename, join } from 'node:path';
import { gunzipSync } from 'node:zlib';
import { extract } from 'tar-stream';
import { ManifestError } from '../manifest.ts';

/** The languages with the code that the packages' names carry. */
export const languages = {
  english: 'en',
  spanish: 'es',
  french: 'fr',
  italian: 'it',
  russian: 'ru',
} as const;
export type Language = keyof typeof languages;

export interface Recording {
  readonly language: Language;
  /** `vm-goodbye`, `digits/7`: the same prompt has the same stem in every language. */
  readonly stem: string;
  readonly wav: Uint8Array;
  readonly transcript: string | undefined;
}

const soundsFolder = '/usr/share/asterisk/sounds';
const documentsFolder = '/usr/share/doc';
const largestFile = 16 * 1024 * 1024;

/**
 * All recordings of all languages.
 * @param debs a folder with the .deb files; the installed files when left out
 * @throws ManifestError saying what to install, or which package is missing
 */
export async function readRecordings(debs: string | undefined): Promise<Recording[]> {
  const files = debs === undefined ? await installedFiles() : await packagedFiles(debs);
  const recordings: Recording[] = [];
  const missing: string[] = [];
  for (const [language, code] of Object.entries(languages) as [Language, string][]) {
    const transcripts = transcriptsOf(files.get(`core-sounds-${code}.txt.gz`));
    const own = [...files].filter(([path]) => path.startsWith(`${code}_`) && path.endsWith('.wav'));
    if (own.length === 0) missing.push(`asterisk-core-sounds-${code}-wav`);
    if (transcripts.size === 0) missing.push(`asterisk-core-sounds-${code}`);
    for (const [path, wav] of own.sort(([a], [b]) => (a < b ? -1 : 1))) {
      const stem = path.slice(path.indexOf('/') + 1, -'.wav'.length);
      recordings.push({ language, stem, wav, transcript: transcripts.get(stem) });
    }
  }
  if (missing.length > 0) {
    throw new ManifestError(
      `the voice recordings are not here: ${missing.join(', ')}\n` +
        `Install them: apt-get install ${missing.join(' ')}\n` +
        'or put the .deb files into a folder (apt-get download ...) and say where: --set settings.debs=FOLDER',
    );
  }
  return recordings;
}

/** Lines of the form `stem: text`; comments begin with a semicolon. */
function transcriptsOf(compressed: Uint8Array | undefined): Map<string, string> {
  if (compressed === undefined) return new Map();
  const text = gunzipSync(compressed, { maxOutputLength: largestFile }).toString('utf8');
  return new Map(
    text.split('\n').flatMap((line): [string, string][] => {
      const match = /^([\w/.-]+):\s*(.+)$/.exec(line.trim());
      return match === null || line.startsWith(';') ? [] : [[match[1] as string, match[2] as string]];
    }),
  );
}

/** By `en_US_f_Allison/vm-goodbye.wav` and `core-sounds-en.txt.gz`. */
async function installedFiles(): Promise<Map<string, Uint8Array>> {
  const files = new Map<string, Uint8Array>();
  for (const code of Object.values(languages)) {
    const document = join(documentsFolder, `asterisk-core-sounds-${code}`, `core-sounds-${code}.txt.gz`);
    const bytes = await readFile(document).catch(() => undefined);
    if (bytes !== undefined) files.set(basename(document), bytes);
    const voices = (await readdir(soundsFolder).catch(() => [])).filter((name) =>
      name.startsWith(`${code}_`),
    );
    for (const voice of voices) {
      const entries = await readdir(join(soundsFolder, voice), { recursive: true, withFileTypes: true });
      for (const entry of entries.filter((found) => found.isFile() && found.name.endsWith('.wav'))) {
        const path = join(entry.parentPath, entry.name);
        files.set(path.slice(soundsFolder.length + 1), await readFile(path));
      }
    }
  }
  return files;
}

async function packagedFiles(folder: string): Promise<Map<string, Uint8Array>> {
  const entries = await readdir(folder).catch((error: NodeJS.ErrnoException) => {
    throw new ManifestError(`settings.debs: ${folder} cannot be read (${error.code})`);
  });
  const files = new Map<string, Uint8Array>();
  for (const name of entries.filter((entry) => /^asterisk-core-sounds-.*\.deb$/.test(entry)).sort()) {
    await readPackage(join(folder, name), files);
  }
  return files;
}

/** Takes the recordings and transcripts out of a package; links, devices and odd paths are not what we look for. */
function readPackage(path: string, files: Map<string, Uint8Array>): Promise<void> {
  return new Promise((resolve, reject) => {
    const fail = (reason: string) => reject(new ManifestError(`${path}: cannot be unpacked (${reason})`));
    const child = spawn('dpkg-deb', ['--fsys-tarfile', path], { stdio: ['ignore', 'pipe', 'pipe'] });
    let errors = '';
    child.stderr.on('data', (data) => {
      errors += data;
    });
    child.on('error', () => fail('dpkg-deb is not there: it comes with Debian and Ubuntu'));
    child.on('close', (code) => {
      if (code !== 0) fail(errors.trim());
    });
    const tar = extract();
    tar.on('entry', (header, stream, next) => {
      const name = nameOf(header.name);
      if (header.type !== 'file' || name === undefined || (header.size ?? 0) > largestFile) {
        stream.resume();
        stream.on('end', next);
        return;
      }
      const chunks: Buffer[] = [];
      stream.on('data', (chunk) => chunks.push(chunk as Buffer));
      stream.on('end', () => {
        files.set(name, Buffer.concat(chunks));
        next();
      });
    });
    tar.on('finish', resolve);
    tar.on('error', (error) => fail(error.message));
    child.stdout.pipe(tar);
  });
}

function nameOf(path: string): string | undefined {
  const sound = /^(?:\.\/)?usr\/share\/asterisk\/sounds\/([\w-]+\/[\w/-]+\.wav)$/.exec(path)?.[1];
  return (
    sound ??
    /^(?:\.\/)?usr\/share\/doc\/asterisk-core-sounds-\w+\/(core-sounds-\w+\.txt\.gz)$/.exec(path)?.[1]
  );
}
