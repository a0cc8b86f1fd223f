/**
 * Fetching models from the Hugging Face hub, or from a server that speaks its language. Questions are put by
 * `@huggingface/hub`; its downloads neither go on after a break nor check what came, so files are fetched here.
 */
import { copyFile, mkdir, readFile, rm, stat, symlink } from 'node:fs/promises';
import { dirname, join, relative } from 'node:path';
import {
  getHFHubCachePath,
  getRepoFolderName,
  HUB_URL,
  HubApiError,
  type ListFileEntry,
  listFiles,
  modelInfo,
} from '@huggingface/hub';
import { writeFileAtomic } from '../config/writeFile.ts';
import { DownloadError, download, reasonOf } from './download.ts';
import { ModelError } from './modelError.ts';
import { weightFiles } from './weightFiles.ts';

export interface HubOptions {
  /** Address of the hub; the environment's HF_ENDPOINT, or the public hub, when left out. */
  readonly hubUrl?: string;
  /** Folder of the hub's cache; where all programs of Hugging Face keep theirs when left out. */
  readonly cacheDir?: string;
  /** Told how far the download of a file is; lines on standard error when left out. */
  readonly onProgress?: (progress: DownloadProgress) => void;
}

export interface DownloadProgress {
  readonly file: string;
  readonly receivedBytes: number;
  readonly bytes: number;
}

/** A model on the hub, `organisation/name[@revision][:file]`. */
export interface HubName {
  readonly name: string;
  /** A branch, tag or commit. */
  readonly revision: string;
  /** The one file that holds the weights, where there are several. */
  readonly file?: string;
}

const besideWeights = /^(config|generation_config|tokenizer|tokenizer_config)\.json$|^chat_template\.jinja$/;
const wholeWeights = /^model[\w.-]*\.safetensors(\.index\.json)?$/;
const commit = /^[0-9a-f]{40}$/;

/** Reads a name on the hub; undefined when the text cannot be one. */
export function parseHubName(text: string): HubName | undefined {
  const path = '[A-Za-z0-9_][\\w./-]*';
  const form = new RegExp(
    `^([A-Za-z0-9][\\w.-]*/[A-Za-z0-9][\\w.-]*)(?:@(${path}))?(?::(${path}\\.(?:gguf|safetensors)))?$`,
  );
  const [whole, name = '', revision = 'main', file] = form.exec(text) ?? [];
  if (whole === undefined || whole.includes('..') || name.includes('--')) return undefined;
  return { name, revision, ...(file !== undefined && { file }) };
}

/**
 * Brings a model into the hub's cache, the one that Python's programs use too, and returns its folder there.
 * Only what palkit reads is downloaded: many repositories hold the same weights several times over. What is
 * there already is not downloaded again, and when the hub cannot be reached (or HF_HUB_OFFLINE is set), the copy
 * in the cache is used. Every file is checked by its size and its digest. A token for private models comes from
 * HF_TOKEN.
 * @throws ModelError when there is no such model, no right to read it, neither a hub nor a copy, or a file that is
 * not the one announced
 */
export async function downloadModel(wanted: HubName, options: HubOptions = {}): Promise<string> {
  const { name, revision } = wanted;
  const cacheDir = options.cacheDir ?? getHFHubCachePath();
  const repositoryFolder = join(cacheDir, getRepoFolderName({ type: 'model', name }));
  const cached = await cachedSnapshot(repositoryFolder, wanted);
  if (cached !== undefined && commit.test(revision)) return cached;
  if (isSet(process.env.HF_HUB_OFFLINE)) {
    if (cached !== undefined) return cached;
    throw new ModelError(`${name}: HF_HUB_OFFLINE is set and ${cacheDir} holds no copy of the model`);
  }
  try {
    return await fetchSnapshot(wanted, repositoryFolder, options);
  } catch (error) {
    if (error instanceof ModelError) throw error;
    const status =
      error instanceof HubApiError
        ? error.statusCode
        : error instanceof DownloadError
          ? error.status
          : undefined;
    const reason = reasonOf(error);
    if (cached !== undefined && (status === undefined || status >= 500)) {
      console.error(`${name}: the hub cannot be used (${reason}); taking the copy in ${cached}`);
      return cached;
    }
    const advice =
      status === 401 || status === 403 || status === 404
        ? 'Check the name; a private or gated model needs a token in HF_TOKEN.'
        : 'A mirror is set by HF_ENDPOINT; a model folder on this machine works without any network.';
    throw new ModelError(`${name}: cannot be fetched from the hub (${reason}). ${advice}`);
  }
}

async function fetchSnapshot(
  { name, revision, file }: HubName,
  repositoryFolder: string,
  options: HubOptions,
): Promise<string> {
  const hubUrl = (options.hubUrl ?? process.env.HF_ENDPOINT ?? HUB_URL).replace(/\/+$/, '');
  const accessToken = process.env.HF_TOKEN;
  const access = { hubUrl, ...(accessToken && { accessToken }) };
  const sha = commit.test(revision)
    ? revision
    : (await modelInfo({ ...access, name, additionalFields: ['sha'], revision })).sha;
  if (!commit.test(sha)) throw new Error(`the hub answered with ${JSON.stringify(sha)} for a commit`);
  const entries = await listModelFiles({ ...access, repo: name, revision: sha }, name, file);
  const snapshot = join(repositoryFolder, 'snapshots', sha);
  const onProgress = options.onProgress ?? progressLines(name);
  for (const entry of entries) {
    const digest = digestOf(entry, name);
    const blob = join(repositoryFolder, 'blobs', digest.hex);
    const label = `${name}: ${entry.path}`;
    if ((await stat(blob).catch(() => undefined))?.size !== entry.size) {
      await download(blob, {
        url: `${hubUrl}/${name}/resolve/${sha}/${entry.path}`,
        headers: accessToken ? { Authorization: `Bearer ${accessToken}` } : {},
        size: entry.size,
        digest,
        label,
        onProgress: (receivedBytes) => onProgress({ file: entry.path, receivedBytes, bytes: entry.size }),
      });
    }
    await link(blob, join(snapshot, entry.path));
  }
  // Written last: what `refs` names is complete, and can be used without the hub.
  if (!commit.test(revision)) {
    const reference = join(repositoryFolder, 'refs', revision);
    await mkdir(dirname(reference), { recursive: true });
    await writeFileAtomic(reference, sha);
  }
  return snapshot;
}

/** The files of a repository that make up the model. */
async function listModelFiles(
  where: { hubUrl: string; accessToken?: string; repo: string; revision: string },
  name: string,
  file: string | undefined,
): Promise<ListFileEntry[]> {
  const entries: ListFileEntry[] = [];
  for await (const entry of listFiles(where)) if (entry.type === 'file') entries.push(entry);
  if (file?.includes('/')) {
    for await (const entry of listFiles({ ...where, path: dirname(file) })) entries.push(entry);
  }
  if (file !== undefined && !entries.some(({ path }) => path === file)) {
    throw new ModelError(`${name}: there is no ${file} in it`);
  }
  const weights = ({ path }: ListFileEntry) => (file === undefined ? wholeWeights.test(path) : path === file);
  if (!entries.some(weights)) {
    const others = entries.filter(({ path }) => /\.(gguf|safetensors)$/.test(path)).map(({ path }) => path);
    const choice =
      others.length === 0
        ? ''
        : `; choose one of its files: ${others.map((path) => `${name}:${path}`).join(', ')}`;
    throw new ModelError(`${name}: it holds no model.safetensors${choice}`);
  }
  const alone = file?.endsWith('.gguf') ?? false;
  return entries.filter((entry) => weights(entry) || (!alone && besideWeights.test(entry.path)));
}

/** What the hub says a file is known by. It becomes a file's name, so it must be nothing but a digest. */
function digestOf(
  { path, size, oid, lfs }: ListFileEntry,
  name: string,
): { kind: 'sha256' | 'git'; hex: string } {
  const isSize = Number.isSafeInteger(size) && size >= 0;
  if (isSize && lfs !== undefined && /^[0-9a-f]{64}$/.test(lfs.oid)) return { kind: 'sha256', hex: lfs.oid };
  if (isSize && lfs === undefined && /^[0-9a-f]{40}$/.test(oid ?? ''))
    return { kind: 'git', hex: oid as string };
  throw new ModelError(`${name}: the hub does not say what ${path} is known by, so it could not be checked`);
}

/** The cache keeps every content once; a snapshot's files point to it. */
async function link(blob: string, pointer: string): Promise<void> {
  if ((await stat(pointer).catch(() => undefined)) !== undefined) return;
  await mkdir(dirname(pointer), { recursive: true });
  await rm(pointer, { force: true });
  // Where links are not allowed (Windows without developer mode), a copy does as well.
  await symlink(relative(dirname(pointer), blob), pointer).catch(() => copyFile(blob, pointer));
}

/** The folder of the newest copy in the cache that holds all that is wanted. */
async function cachedSnapshot(
  repositoryFolder: string,
  { revision, file }: HubName,
): Promise<string | undefined> {
  const read = () => readFile(join(repositoryFolder, 'refs', revision), 'utf8').catch(() => '');
  const sha = commit.test(revision) ? revision : (await read()).trim();
  if (!commit.test(sha)) return undefined;
  const folder = join(repositoryFolder, 'snapshots', sha);
  const holds = async (path: string) => (await stat(join(folder, path)).catch(() => undefined)) !== undefined;
  if (file !== undefined && !(await holds(file))) return undefined;
  if (file?.endsWith('.gguf')) return folder;
  if (!(await holds('config.json')) || !(await holds('tokenizer.json'))) return undefined;
  const weights = file === undefined ? await weightFiles(folder).catch(() => undefined) : [file];
  return weights === undefined ? undefined : folder;
}

/** Says every few seconds how far a download is. */
function progressLines(name: string): (progress: DownloadProgress) => void {
  let lastMs = Number.NEGATIVE_INFINITY;
  return ({ file, receivedBytes, bytes }) => {
    if (performance.now() - lastMs < 5000) return;
    lastMs = performance.now();
    console.error(`${name}: ${file}: ${(receivedBytes / 1e6).toFixed(1)} of ${(bytes / 1e6).toFixed(1)} MB`);
  };
}

function isSet(variable: string | undefined): boolean {
  return variable !== undefined && /^(1|true|yes|on)$/i.test(variable);
}
