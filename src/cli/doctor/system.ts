/** What the machine brings: Node, memory, programs, packages, places to write. */
import { execFile } from 'node:child_process';
import { mkdtemp, readdir, readFile, rm, statfs } from 'node:fs/promises';
import { createRequire } from 'node:module';
import { availableParallelism, totalmem } from 'node:os';
import { join, resolve } from 'node:path';
import { promisify } from 'node:util';
import { z } from 'zod';
import { locate } from '../../config/locate.ts';
import type { Check } from './check.ts';

const gibibyte = 2 ** 30;

const packageSchema = z.object({
  version: z.string().default('?'),
  engines: z.object({ node: z.string() }).optional(),
  peerDependencies: z.record(z.string(), z.string()).default({}),
  optionalDependencies: z.record(z.string(), z.string()).default({}),
});

async function readPackage(path: string | URL): Promise<z.output<typeof packageSchema>> {
  return packageSchema.parse(JSON.parse(await readFile(path, 'utf8')));
}

/** Everything but the execution providers. */
export async function checkSystem(): Promise<Check[]> {
  const own = await readPackage(new URL('../../../package.json', import.meta.url));
  // The backends of TensorFlow.js are tried, not only looked for.
  const optional = Object.entries({ ...own.peerDependencies, ...own.optionalDependencies }).filter(
    ([name]) => !name.startsWith('@tensorflow/'),
  );
  return [
    checkNode(own.engines?.node ?? '>=20'),
    checkMachine(),
    await checkPackage('onnxruntime-node', null),
    ...(await Promise.all(optional.map(([name, range]) => checkPackage(name, range)))),
    await checkShipped(),
    await checkFfmpeg(),
    await checkVoicePrompts(),
    await checkWriting(),
  ];
}

function checkNode(range: string): Check {
  const wanted = Number(/\d+/.exec(range)?.[0] ?? 0);
  const right = Number(process.versions.node.split('.')[0]) >= wanted;
  const advice = right ? '' : `palkit needs Node ${range}: https://nodejs.org`;
  return { what: 'Node.js', status: right ? 'ok' : 'missing', found: process.version, advice };
}

function checkMachine(): Check {
  // In a container the limit counts; without one the system names none, or an absurdly high one.
  const limit = process.constrainedMemory() || Number.POSITIVE_INFINITY;
  const memory = Math.min(totalmem(), limit) / gibibyte;
  const cores = availableParallelism();
  const found = `${cores} ${cores === 1 ? 'core' : 'cores'}, ${memory.toFixed(1)} GiB`;
  if (memory < 2) {
    return { what: 'machine', status: 'optional', found, advice: 'little memory: lower train.batchSize' };
  }
  return { what: 'machine', status: 'ok', found, advice: `--set train.threads=${cores} uses all cores` };
}

/** @param range null for a package that palkit cannot do without */
async function checkPackage(name: string, range: string | null): Promise<Check> {
  const what = `npm ${name}`;
  const { resolve: find } = createRequire(import.meta.url);
  try {
    const { version } = await readPackage(find(`${name}/package.json`));
    return { what, status: 'ok', found: version, advice: '' };
  } catch {
    return range === null
      ? { what, status: 'missing', found: 'not there', advice: 'install again: npm ci' }
      : { what, status: 'optional', found: 'not there', advice: `npm install ${name}@${range}` };
  }
}

async function checkShipped(): Promise<Check> {
  const folders = ['models', 'encoders', 'datasets', 'configs'];
  const counts = await Promise.all(
    folders.map(async (folder) => (await readdir(locate(folder)).catch((): string[] => [])).length),
  );
  const empty = folders.filter((_, index) => counts[index] === 0);
  return empty.length === 0
    ? { what: 'shipped files', status: 'ok', found: folders.join(', '), advice: '' }
    : {
        what: 'shipped files',
        status: 'missing',
        found: `nothing in ${empty.join(', ')}`,
        advice: 'install palkit again, or run it in its own folder',
      };
}

async function checkFfmpeg(): Promise<Check> {
  const what = 'ffmpeg';
  try {
    const { stdout } = await promisify(execFile)('ffmpeg', ['-version'], { timeout: 10_000 });
    return { what, status: 'ok', found: /^ffmpeg version (\S+)/.exec(stdout)?.[1] ?? 'there', advice: '' };
  } catch {
    const advice = 'to convert audio that is not WAV: apt install ffmpeg, or brew install ffmpeg';
    return { what, status: 'optional', found: 'not there', advice };
  }
}

/** Recorded telephone prompts, from which datasets of speech are built. */
async function checkVoicePrompts(): Promise<Check> {
  const what = 'Asterisk voice prompts';
  const folder = '/usr/share/asterisk/sounds';
  const voices = (await readdir(folder, { withFileTypes: true }).catch(() => []))
    .filter((entry) => entry.isDirectory())
    .map(({ name }) => name);
  if (voices.length > 0) return { what, status: 'ok', found: voices.join(', '), advice: '' };
  const advice = 'for datasets of speech, on Debian or Ubuntu: apt install asterisk-core-sounds-en-wav';
  return { what, status: 'optional', found: 'not there', advice };
}

/** Runs, datasets and checkpoints are written into the working folder. */
async function checkWriting(): Promise<Check> {
  const what = 'writing';
  const folder = resolve('.');
  try {
    await rm(await mkdtemp(join(folder, '.palkit-doctor.tmp-')), { recursive: true });
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    return {
      what,
      status: 'missing',
      found: `${folder}: ${code}`,
      advice: 'run palkit in a folder of your own',
    };
  }
  const { bavail, bsize } = await statfs(folder);
  const free = (bavail * bsize) / gibibyte;
  const found = `${folder}, ${free.toFixed(1)} GiB free`;
  return free < 1
    ? { what, status: 'optional', found, advice: 'little space: lower train.checkpoint.keep' }
    : { what, status: 'ok', found, advice: '' };
}
