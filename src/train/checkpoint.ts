/**
 * Checkpoints: folders that hold all of a training state or do not exist. A checkpoint is written aside, every
 * file flushed, a manifest with the hash of each file last, and the folder then renamed.
 */
import { createHash } from 'node:crypto';
import { createReadStream } from 'node:fs';
import { readdir, readFile, rm, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { z } from 'zod';
import { updateHash } from '../config/hash.ts';
import { writeFlushed, writeFolderAtomic } from '../config/writeFile.ts';
import { ModelError } from '../llm/modelError.ts';
import { type Reading, safetensorsPieces, streamSafetensors } from '../llm/safetensors.ts';
import type { ParameterTensors } from '../tensor/parameters.ts';
import type { Tensor } from '../tensor/tensor.ts';

export class CheckpointError extends Error {
  override readonly name = 'CheckpointError';
}

const stateSchema = z.strictObject({
  version: z.literal(1),
  /** Optimizer steps done in the whole curriculum. */
  step: z.int().min(0),
  /** Where the next step continues: stage, steps done in it, micro-batches drawn in it. */
  stage: z.int().min(0),
  stageStep: z.int().min(0),
  drawn: z.int().min(0),
  /** The optimizer's updates in this stage. */
  updates: z.int().min(0),
  /** Of this stage, where its precision needs one. */
  lossScale: z
    .strictObject({ scale: z.number().gt(0), steps: z.int().min(0), skipped: z.int().min(0) })
    .optional(),
  tokensSeen: z.int().min(0),
  /** The stream that the data order comes from: (seed, stage, epoch) name each permutation. */
  seed: z.int(),
  /** Hash of everything in the configuration that decides the numbers. */
  configHash: z.string(),
  /** Hash of the parameters that never train and are not in the checkpoint. */
  frozenHash: z.string(),
});

export type TrainingProgress = z.infer<typeof stateSchema>;

/** Before the first step. */
export function noProgress(
  identity: Pick<TrainingProgress, 'seed' | 'configHash' | 'frozenHash'>,
): TrainingProgress {
  return { version: 1, step: 0, stage: 0, stageStep: 0, drawn: 0, updates: 0, tokensSeen: 0, ...identity };
}

export interface Checkpoint {
  readonly progress: TrainingProgress;
  /** Every parameter that some stage trains. */
  readonly parameters: ParameterTensors;
  /** The optimizer's moments of the current stage; empty at a stage's beginning. */
  readonly moments: ParameterTensors;
}

/** A checkpoint whose tensors belong to whoever read it. */
export interface ReadCheckpoint extends Checkpoint {
  readonly parameters: FloatTensors;
  readonly moments: FloatTensors;
}

type FloatTensors = Map<string, Tensor & { dtype: 'float32' }>;

const manifestSchema = z.strictObject({
  files: z.record(
    z.string().regex(/^[\w.]+$/),
    z.strictObject({ bytes: z.int().min(0), sha256: z.string() }),
  ),
});

/** `step-000120` */
export function checkpointName(step: number): string {
  return `step-${String(step).padStart(6, '0')}`;
}

/**
 * Writes a checkpoint and removes those older than the newest `keep`.
 * @throws CheckpointError when the disk does not take it; earlier checkpoints stay as they are
 */
export async function saveCheckpoint(folder: string, checkpoint: Checkpoint, keep: number): Promise<string> {
  const name = checkpointName(checkpoint.progress.step);
  const target = join(folder, name);
  // Written from where they lie: a copy of parameters and moments would be the peak of the whole training.
  const files: Record<string, readonly Uint8Array[]> = {
    'model.safetensors': safetensorsPieces(checkpoint.parameters),
    'optimizer.safetensors': safetensorsPieces(checkpoint.moments),
    'state.json': [Buffer.from(`${JSON.stringify(checkpoint.progress, null, 2)}\n`)],
  };
  try {
    await writeFolderAtomic(target, async (aside) => {
      for (const [file, pieces] of Object.entries(files)) await writeFlushed(join(aside, file), pieces);
      const entries = Object.entries(files).map(([file, pieces]) => [
        file,
        { bytes: pieces.reduce((sum, { length }) => sum + length, 0), sha256: sha256(pieces) },
      ]);
      const manifest = { files: Object.fromEntries(entries) };
      await writeFlushed(join(aside, 'MANIFEST.json'), `${JSON.stringify(manifest, null, 2)}\n`);
    });
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    const reason = code === 'ENOSPC' ? 'the disk is full' : String(error);
    const earlier = (await listCheckpoints(folder)).at(-1);
    throw new CheckpointError(
      `${target}: the checkpoint could not be written: ${reason}.\n` +
        (earlier === undefined
          ? 'There is no earlier one. Free space or set run.dir to another disk, and start again.'
          : `The newest whole one is ${earlier}. Free space, then run the same command: it resumes from there.`),
    );
  }
  await prune(folder, checkpoint.progress.step, keep);
  return target;
}

/**
 * Removes old checkpoints and what killed processes left. Those of later steps than `step`, which was just written,
 * are of a run that was started over, or not whole: counted as the newest, they would take the place of this run's.
 * A failure here never harms the run.
 */
async function prune(folder: string, step: number, keep: number): Promise<void> {
  const listed = await listCheckpoints(folder);
  const old = listed.filter((name) => stepOf(name) <= step).slice(0, -keep);
  const later = listed.filter((name) => stepOf(name) > step);
  const entries = await readdir(folder).catch(() => []);
  const remains = entries.filter((entry) => /\.tmp-\d+$/.test(entry));
  for (const name of [...old, ...later, ...remains]) {
    await rm(join(folder, name), { recursive: true, force: true }).catch(() => undefined);
  }
}

/** Names of finished checkpoints, oldest first. */
export async function listCheckpoints(folder: string): Promise<string[]> {
  const entries = await readdir(folder).catch(() => []);
  return entries.filter((entry) => /^step-\d{6,}$/.test(entry)).sort((a, b) => stepOf(a) - stepOf(b));
}

function stepOf(name: string): number {
  return Number(name.slice('step-'.length));
}

/**
 * The newest checkpoint that is whole, or undefined where there is none at all.
 * @param onSkipped told about every newer one that is not whole, with the reason
 * @throws CheckpointError when there are checkpoints and none of them can be read, with each one's reason: to go on
 *   as if there were none would begin the run anew over what it has recorded
 */
export async function newestCheckpoint(
  folder: string,
  onSkipped: (message: string) => void,
): Promise<ReadCheckpoint | undefined> {
  const skipped: { name: string; reason: string }[] = [];
  for (const name of (await listCheckpoints(folder)).reverse()) {
    try {
      const checkpoint = await readCheckpoint(join(folder, name));
      for (const { name, reason } of skipped) onSkipped(`${join(folder, name)} is left out: ${reason}`);
      return checkpoint;
    } catch (error) {
      skipped.push({ name, reason: error instanceof Error ? error.message : String(error) });
    }
  }
  if (skipped.length === 0) return undefined;
  throw new CheckpointError(
    [
      `${folder}: none of its checkpoints can be read, so there is nothing to resume from:`,
      ...skipped.map(({ name, reason }) => `  ${name}: ${reason}`),
      'Repair one (copy it again from where it is whole), or set run.dir to another folder. To start over, remove ' +
        'them or give --resume never: either empties metrics.jsonl.',
    ].join('\n'),
  );
}

/**
 * Reads a checkpoint and verifies every file against the manifest. A tensor file is hashed while it is read, and
 * may have any size.
 * @param reading the pieces to read in
 * @throws CheckpointError naming the file that is missing or differs
 */
export async function readCheckpoint(
  folder: string,
  reading: Pick<Reading, 'pieceBytes'> = {},
): Promise<ReadCheckpoint> {
  const parse = <T>(schema: z.ZodType<T>, bytes: Buffer, file: string): T => {
    try {
      return schema.parse(JSON.parse(bytes.toString('utf8')));
    } catch {
      throw new CheckpointError(`${join(folder, file)} is not what a checkpoint holds`);
    }
  };
  const small = (file: string) => readFile(join(folder, file)).catch(unreadable(join(folder, file)));
  const { files } = parse(manifestSchema, await small('MANIFEST.json'), 'MANIFEST.json');
  const written = async (file: string): Promise<WrittenFile> => {
    const path = join(folder, file);
    const { size } = await stat(path).catch(unreadable(path));
    const entry = files[file];
    if (entry?.bytes !== size) throw notAsWritten(path, size);
    return { path, bytes: size, sha256: entry.sha256 };
  };
  // The sizes first: a file that is missing or cut off shows before gigabytes have been read.
  const model = await written('model.safetensors');
  const optimizer = await written('optimizer.safetensors');
  const state = await written('state.json');
  const progress = await small('state.json');
  if (sha256([progress]) !== state.sha256) throw notAsWritten(state.path, progress.length);
  return {
    progress: parse(stateSchema, progress, 'state.json'),
    parameters: await readTensors(model, reading),
    moments: await readTensors(optimizer, reading),
  };
}

/** A file that is as large as the manifest says, and the hash that it should have. */
interface WrittenFile {
  readonly path: string;
  readonly bytes: number;
  readonly sha256: string;
}

/** Reads and hashes a file of tensors in one pass. */
async function readTensors(
  { path, bytes, sha256 }: WrittenFile,
  reading: Pick<Reading, 'pieceBytes'>,
): Promise<FloatTensors> {
  const hash = createHash('sha256');
  const tensors: FloatTensors = new Map();
  try {
    const hashed: Reading = { ...reading, onBytes: (piece) => hash.update(piece) };
    for await (const [name, tensor] of streamSafetensors(path, hashed)) {
      tensors.set(name, mustFloat(tensor, `${path}: ${name}`));
    }
  } catch (error) {
    if (error instanceof Error && 'syscall' in error) unreadable(path)(error as NodeJS.ErrnoException);
    if (!(error instanceof ModelError || error instanceof CheckpointError)) throw error;
    // What a damaged file says of itself means nothing: it is the reason only in the file that was written.
    if ((await hashOfFile(path)) !== sha256) throw notAsWritten(path, bytes);
    throw error;
  }
  if (hash.digest('hex') !== sha256) throw notAsWritten(path, bytes);
  return tensors;
}

function notAsWritten(path: string, bytes: number): CheckpointError {
  return new CheckpointError(`${path} is not the file that was written (${bytes} bytes)`);
}

function unreadable(path: string): (error: NodeJS.ErrnoException) => never {
  return ({ code }) => {
    throw new CheckpointError(`${path} cannot be read (${code})`);
  };
}

async function hashOfFile(path: string): Promise<string> {
  const hash = createHash('sha256');
  try {
    for await (const piece of createReadStream(path)) hash.update(piece);
  } catch (error) {
    unreadable(path)(error as NodeJS.ErrnoException);
  }
  return hash.digest('hex');
}

function mustFloat(tensor: Tensor, where: string): Tensor & { dtype: 'float32' } {
  if (tensor.dtype !== 'float32') throw new CheckpointError(`${where} is ${tensor.dtype}, not float32`);
  return tensor;
}

function sha256(pieces: readonly Uint8Array[]): string {
  const hash = createHash('sha256');
  for (const piece of pieces) updateHash(hash, piece);
  return hash.digest('hex');
}
