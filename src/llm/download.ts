/** Bringing one large file over a connection that may break, so that its final name never holds anything else. */
import { createHash } from 'node:crypto';
import { createReadStream } from 'node:fs';
import { mkdir, open, rename, rm, stat } from 'node:fs/promises';
import { dirname } from 'node:path';
import { setTimeout as wait } from 'node:timers/promises';
import { ModelError } from './modelError.ts';

export interface Download {
  readonly url: string;
  readonly headers: Readonly<Record<string, string>>;
  /** Bytes that the file must have. */
  readonly size: number;
  /** What the file is known by: sha256 of its bytes, or the sha1 that git gives it. */
  readonly digest: { readonly kind: 'sha256' | 'git'; readonly hex: string };
  /** How error messages name the file. */
  readonly label: string;
  readonly onProgress?: (received: number) => void;
}

/** An answer that is none: the server's status, or undefined for a connection that failed. */
export class DownloadError extends Error {
  override readonly name = 'DownloadError';
  readonly status: number | undefined;
  constructor(message: string, status?: number) {
    super(message);
    this.status = status;
  }
}

/** Failures one after the other, without a byte between them, before the download is given up. */
const maximumFailures = 4;
const firstPauseMs = 200;

/**
 * Downloads into `<path>.partial`, going on where an earlier try ended, and renames when size and digest are right.
 * @throws DownloadError when the server refuses or cannot be reached: what came stays, for the next try
 * @throws ModelError when the bytes are not those that were announced: they are deleted
 */
export async function download(path: string, wanted: Download): Promise<void> {
  const partial = `${path}.partial`;
  await mkdir(dirname(path), { recursive: true });
  for (let failures = 0, before = 0; ; ) {
    try {
      await fetchRest(partial, wanted);
      break;
    } catch (error) {
      const { status } = error as DownloadError;
      const again =
        error instanceof DownloadError && (status === undefined || status === 429 || status >= 500);
      const received = await sizeOf(partial);
      failures = received > before ? 1 : failures + 1;
      before = received;
      if (!again || failures === maximumFailures) throw error;
      await wait(firstPauseMs * 2 ** (failures - 1));
    }
  }
  const digest = await digestOf(partial, wanted);
  if (digest !== wanted.digest.hex) {
    await rm(partial);
    throw new ModelError(
      `${wanted.label}: the bytes that came are not those of the file (${digest} instead of ${wanted.digest.hex}); they are deleted`,
    );
  }
  await rename(partial, path);
}

async function sizeOf(path: string): Promise<number> {
  return (await stat(path).catch(() => undefined))?.size ?? 0;
}

async function fetchRest(
  partial: string,
  { url, headers, size, label, onProgress }: Download,
): Promise<void> {
  let received = await sizeOf(partial);
  if (received > size) received = 0;
  if (received === size && size > 0) return;
  const range: Record<string, string> = received > 0 ? { Range: `bytes=${received}-` } : {};
  const response = await fetch(url, { headers: { ...headers, ...range } }).catch((error: unknown) => {
    throw new DownloadError(reasonOf(error));
  });
  if (!response.ok) {
    await response.body?.cancel();
    throw new DownloadError(`${label}: the server answers ${response.status}`, response.status);
  }
  // A server that knows no ranges sends all of it once more.
  const goesOn =
    response.status === 206 && (response.headers.get('Content-Range') ?? '').startsWith(`bytes ${received}-`);
  if (!goesOn) received = 0;
  const file = await open(partial, goesOn ? 'a' : 'w');
  try {
    for await (const piece of bodyOf(response)) {
      received += piece.length;
      if (received > size)
        throw new ModelError(`${label}: more bytes come than the ${size} that were announced`);
      await file.writeFile(piece);
      onProgress?.(received);
    }
    await file.sync();
  } finally {
    await file.close();
  }
  if (received < size) throw new DownloadError(`the connection ended after ${received} of ${size} bytes`);
}

async function* bodyOf(response: Response): AsyncGenerator<Uint8Array> {
  try {
    yield* response.body ?? [];
  } catch (error) {
    throw new DownloadError(reasonOf(error));
  }
}

async function digestOf(path: string, { digest, size }: Download): Promise<string> {
  const hash = createHash(digest.kind === 'git' ? 'sha1' : 'sha256');
  if (digest.kind === 'git') hash.update(`blob ${size}\0`);
  for await (const piece of createReadStream(path, { highWaterMark: 2 ** 20 })) hash.update(piece as Buffer);
  return hash.digest('hex');
}

/** Node says "fetch failed" and keeps the reason in the cause. */
export function reasonOf(error: unknown): string {
  if (!(error instanceof Error)) return String(error);
  return error.cause instanceof Error ? `${error.message}: ${error.cause.message}` : error.message;
}
