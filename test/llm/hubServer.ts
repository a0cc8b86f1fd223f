import { createHash } from 'node:crypto';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';

/** A server on this machine that speaks the part of the Hugging Face hub's interface that downloads need. */
export interface HubServer {
  readonly url: string;
  /** Method and path of every request so far. */
  readonly requests: string[];
  /** The status of every answer from now on whose path ends so. */
  fail(status: number, ending?: string): void;
  /** Breaks the connection after so many bytes of every file from now on; undefined: no longer. */
  cut(afterBytes: number | undefined): void;
  /** Changes the content of a file from now on, but not what the hub says of it. */
  corrupt(file: string, content: Uint8Array): void;
  close(): Promise<void>;
}

export interface Repository {
  readonly name: string;
  readonly sha: string;
  readonly files: ReadonlyMap<string, Uint8Array>;
  /** Without it the repository is not there, as the hub puts it. */
  readonly token?: string;
}

export async function hubServer(repository: Repository): Promise<HubServer> {
  const { name, sha, files, token } = repository;
  const requests: string[] = [];
  let failure: { status: number; ending: string } | undefined;
  let cutAfter: number | undefined;
  const corrupted = new Map<string, Uint8Array>();
  const entry = (path: string, content: Uint8Array) => {
    const sha256 = createHash('sha256').update(content).digest('hex');
    const oid = createHash('sha1').update(`blob ${content.length}\0`).update(content).digest('hex');
    const large = /\.(safetensors|gguf)$/.test(path);
    const lfs = { oid: sha256, size: content.length, pointerSize: 134 };
    return { type: 'file', path, size: content.length, oid, ...(large && { lfs }) };
  };

  const server = createServer((request, response) => {
    const path = decodeURIComponent(new URL(request.url ?? '/', 'http://hub').pathname);
    requests.push(`${request.method} ${path}`);
    const answer = (status: number, body: unknown) =>
      response.writeHead(status, { 'Content-Type': 'application/json' }).end(JSON.stringify(body));
    if (failure && path.endsWith(failure.ending)) return answer(failure.status, { error: 'Out of order' });
    if (token !== undefined && request.headers.authorization !== `Bearer ${token}`) {
      return answer(404, { error: 'Repository not found' });
    }
    if ([`main`, 'v1'].some((revision) => path === `/api/models/${name}/revision/${revision}`)) {
      return answer(200, { _id: '1', id: name, sha });
    }
    if (path === `/api/models/${name}/tree/${sha}`) {
      return answer(200, [
        { type: 'directory', path: 'onnx', size: 0, oid: '0' },
        ...[...files].map(([file, content]) => entry(file, content)),
      ]);
    }
    const file = path.slice(`/${name}/resolve/${sha}/`.length);
    const content = corrupted.get(file) ?? files.get(file);
    if (content === undefined) return answer(404, { error: 'Repository not found' });
    const range = /^bytes=(\d+)-(\d*)$/.exec(request.headers.range ?? '');
    if (range) requests.push(`${range[0]} ${file}`);
    const start = Number(range?.[1] ?? 0);
    const end = range?.[2] ? Number(range[2]) + 1 : content.length;
    response.writeHead(range ? 206 : 200, {
      ETag: `"${entry(file, content).oid}"`,
      'Content-Length': end - start,
      ...(range && { 'Content-Range': `bytes ${start}-${end - 1}/${content.length}` }),
    });
    if (cutAfter === undefined || cutAfter >= end - start) return response.end(content.subarray(start, end));
    // Written first and then broken off, so that what was written arrives.
    response.write(content.subarray(start, start + cutAfter), () => {
      setTimeout(() => response.destroy(), 50);
    });
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  return {
    url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
    requests,
    fail: (status, ending = '') => {
      failure = { status, ending };
    },
    cut: (afterBytes) => {
      cutAfter = afterBytes;
    },
    corrupt: (file, content) => corrupted.set(file, content),
    close: () =>
      new Promise((resolve) => {
        server.closeAllConnections();
        server.close(() => resolve());
      }),
  };
}
