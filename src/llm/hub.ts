/** Fetching models from the Hugging Face hub, or from a server that speaks its language. */
import { mkdir, readFile, stat } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import {
  downloadFileToCacheDir,
  getHFHubCachePath,
  getRepoFolderName,
  HubApiError,
  listFiles,
  modelInfo,
} from '@huggingface/hub';
import { writeFileAtomic } from '../config/writeFile.ts';
import { ModelError } from './modelError.ts';

export interface HubOptions {
  /** Address of the hub; the environment's HF_ENDPOINT, or the public hub, when left out. */
  readonly hubUrl?: string;
  /** Folder of the hub's cache; where all programs of Hugging Face keep theirs when left out. */
  readonly cacheDir?: string;
}

const neededFiles =
  /^(config|generation_config|tokenizer|tokenizer_config)\.json$|^chat_template\.jinja$|^model[\w.-]*\.safetensors(\.index\.json)?$/;
const commit = /^[0-9a-f]{40}$/;

/** Whether a text can be the name of a model on the hub: `organisation/name`. */
export function isHubName(text: string): boolean {
  return (
    /^[A-Za-z0-9][\w.-]*\/[A-Za-z0-9][\w.-]*$/.test(text) && !text.includes('..') && !text.includes('--')
  );
}

/**
 * Brings a model into the hub's cache, the one that Python's programs use too, and returns its folder there.
 * Only what palkit reads is downloaded: many repositories hold the same weights several times over. What is
 * there already is not downloaded again, and when the hub cannot be reached (or HF_HUB_OFFLINE is set), the copy
 * in the cache is used. A token for private models comes from HF_TOKEN.
 * @param name organisation/name
 * @throws ModelError when there is no such model, no right to read it, or neither a hub nor a copy
 */
export async function downloadModel(name: string, options: HubOptions = {}): Promise<string> {
  const cacheDir = options.cacheDir ?? getHFHubCachePath();
  const repositoryFolder = join(cacheDir, getRepoFolderName({ type: 'model', name }));
  const cached = await cachedSnapshot(repositoryFolder);
  if (isSet(process.env.HF_HUB_OFFLINE)) {
    if (cached !== undefined) return cached;
    throw new ModelError(`${name}: HF_HUB_OFFLINE is set and ${cacheDir} holds no copy of the model`);
  }
  const hubUrl = (options.hubUrl ?? process.env.HF_ENDPOINT)?.replace(/\/+$/, '');
  try {
    return await download(name, repositoryFolder, cacheDir, hubUrl);
  } catch (error) {
    const status = error instanceof HubApiError ? error.statusCode : undefined;
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

async function download(
  name: string,
  repositoryFolder: string,
  cacheDir: string,
  hubUrl: string | undefined,
): Promise<string> {
  const accessToken = process.env.HF_TOKEN;
  const access = { ...(hubUrl && { hubUrl }), ...(accessToken && { accessToken }) };
  const { sha } = await modelInfo({ ...access, name, additionalFields: ['sha'], revision: 'main' });
  if (!commit.test(sha)) throw new Error(`the hub answered with ${JSON.stringify(sha)} for a commit`);
  const files: string[] = [];
  for await (const { path, type } of listFiles({ ...access, repo: name, revision: sha })) {
    if (type === 'file' && neededFiles.test(path)) files.push(path);
  }
  // The library reports each download on the standard output, which belongs to results.
  const { debug } = console;
  console.debug = console.error;
  try {
    for (const path of files) {
      await downloadFileToCacheDir({ ...access, repo: name, path, revision: sha, cacheDir });
    }
  } finally {
    console.debug = debug;
  }
  // Written last: what `refs` names is complete, and can be used without the hub.
  const reference = join(repositoryFolder, 'refs', 'main');
  await mkdir(dirname(reference), { recursive: true });
  await writeFileAtomic(reference, sha);
  return join(repositoryFolder, 'snapshots', sha);
}

/** The folder of the newest copy in the cache. */
async function cachedSnapshot(repositoryFolder: string): Promise<string | undefined> {
  const sha = await readFile(join(repositoryFolder, 'refs', 'main'), 'utf8').catch(() => '');
  if (!commit.test(sha.trim())) return undefined;
  const folder = join(repositoryFolder, 'snapshots', sha.trim());
  const found = await stat(join(folder, 'config.json')).catch(() => undefined);
  return found === undefined ? undefined : folder;
}

function isSet(variable: string | undefined): boolean {
  return variable !== undefined && /^(1|true|yes|on)$/i.test(variable);
}

/** Node says "fetch failed" and keeps the reason in the cause. */
function reasonOf(error: unknown): string {
  if (!(error instanceof Error)) return String(error);
  return error.cause instanceof Error ? `${error.message}: ${error.cause.message}` : error.message;
}
