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
  const entry = (path: string, content: Uint8Array) => ({
    type: 'file',
    path,
    size: content.length,
    oid: createHash('sha1').update(content).digest('hex'),
  });

  const server = createServer((request, response) => {
    const path = decodeURIComponent(new URL(request.url ?? '/', 'http://hub').pathname);
    requests.push(`${request.method} ${path}`);
    const answer = (status: number, body: unknown) =>
      response.writeHead(status, { 'Content-Type': 'application/json' }).end(JSON.stringify(body));
    if (failure && path.endsWith(failure.ending)) return answer(failure.status, { error: 'Out of order' });
    if (token !== undefined && request.headers.authorization !== `Bearer ${token}`) {
      return answer(404, { error: 'Repository not found' });
    }
    if (path === `/api/models/${name}/revision/main`) return answer(200, { _id: '1', id: name, sha });
    if (path === `/api/models/${name}/tree/${sha}`) {
      return answer(200, [
        { type: 'directory', path: 'onnx', size: 0, oid: '0' },
        ...[...files].map(([file, content]) => entry(file, content)),
      ]);
    }
    if (path === `/api/models/${name}/paths-info/${sha}`) {
      let body = '';
      request.on('data', (chunk: Buffer) => {
        body += chunk.toString();
      });
      request.on('end', () => {
        const wanted = (JSON.parse(body) as { paths: string[] }).paths;
        answer(
          200,
          [...files].filter(([file]) => wanted.includes(file)).map(([file, content]) => entry(file, content)),
        );
      });
      return;
    }
    const content = files.get(path.slice(`/${name}/resolve/${sha}/`.length));
    if (content === undefined) return answer(404, { error: 'Repository not found' });
    const range = /^bytes=(\d+)-(\d+)$/.exec(request.headers.range ?? '');
    const [start, end] = range ? [Number(range[1]), Number(range[2]) + 1] : [0, content.length];
    response
      .writeHead(range ? 206 : 200, {
        ETag: `"${entry(path, content).oid}"`,
        'Content-Range': `bytes ${start}-${end - 1}/${content.length}`,
      })
      .end(content.subarray(start, end));
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  return {
    url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
    requests,
    fail: (status, ending = '') => {
      failure = { status, ending };
    },
    close: () =>
      new Promise((resolve) => {
        server.closeAllConnections();
        server.close(() => resolve());
      }),
  };
}
