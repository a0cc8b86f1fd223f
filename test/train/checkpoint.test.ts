/** Reading checkpoints: whatever their size, verified while they are read, and never taken for absent. */
import { createHash } from 'node:crypto';
import { mkdtemp, readFile, rm, truncate, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { safetensorsPieces } from '../../src/llm/safetensors.ts';
import { float32, int32 } from '../../src/tensor/tensor.ts';
import {
  type Checkpoint,
  CheckpointError,
  listCheckpoints,
  newestCheckpoint,
  readCheckpoint,
  saveCheckpoint,
} from '../../src/train/checkpoint.ts';

let folder: string;
beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), 'palkit-checkpoint-'));
});
afterEach(() => rm(folder, { recursive: true }));

const values = Float32Array.from({ length: 100 }, (_, index) => Math.sin(index));

function checkpoint(step: number): Checkpoint {
  return {
    progress: {
      version: 1,
      step,
      stage: 0,
      stageStep: step,
      drawn: step,
      updates: step,
      tokensSeen: 10 * step,
      seed: 1,
      configHash: 'a',
      frozenHash: 'b',
    },
    parameters: new Map([
      ['b', float32([10, 10], values)],
      ['a', float32([], [step])],
      ['none', float32([0], [])],
    ]),
    moments: new Map([['first.b', float32([100], values)]]),
  };
}

/** Puts other bytes in place of a file, as a copy that went wrong does. */
async function damage(path: string, change: (bytes: Buffer) => void): Promise<void> {
  const bytes = await readFile(path);
  change(bytes);
  await writeFile(path, bytes);
}

/** Puts other bytes in place of a file and says in the manifest that they are what was written. */
async function forge(path: string, file: string, bytes: Buffer): Promise<void> {
  await writeFile(join(path, file), bytes);
  const manifest = JSON.parse(await readFile(join(path, 'MANIFEST.json'), 'utf8'));
  const sha256 = createHash('sha256').update(bytes).digest('hex');
  manifest.files[file] = { bytes: bytes.length, sha256 };
  await writeFile(join(path, 'MANIFEST.json'), JSON.stringify(manifest));
}

describe('a checkpoint', () => {
  test.each([1, 64, 2 ** 30])('is read in pieces of %i bytes', async (pieceBytes) => {
    const path = await saveCheckpoint(folder, checkpoint(3), 2);
    expect(await readCheckpoint(path, { pieceBytes })).toEqual(checkpoint(3));
  });

  test.each(['model.safetensors', 'optimizer.safetensors', 'state.json'])(
    'of which any byte of %s has changed is not what was written, read in small pieces too',
    async (file) => {
      const path = await saveCheckpoint(folder, checkpoint(3), 2);
      const { length } = await readFile(join(path, file));
      // In the header's length, in the header, and in the numbers.
      for (const at of [0, 7, 8, 40, length - 300, length - 1].filter((at) => at >= 0)) {
        const invert = (bytes: Buffer) => bytes.writeUInt8(bytes.readUInt8(at) ^ 0xff, at);
        await damage(join(path, file), invert);
        await expect(readCheckpoint(path, { pieceBytes: 64 })).rejects.toThrow(
          new CheckpointError(`${join(path, file)} is not the file that was written (${length} bytes)`),
        );
        await damage(join(path, file), invert);
      }
      expect(await readCheckpoint(path)).toEqual(checkpoint(3));
    },
  );

  test('that is cut off, or lacks a file, says so', async () => {
    const path = await saveCheckpoint(folder, checkpoint(3), 2);
    await truncate(join(path, 'optimizer.safetensors'), 100);
    await expect(readCheckpoint(path)).rejects.toThrow(
      `${join(path, 'optimizer.safetensors')} is not the file that was written (100 bytes)`,
    );
    await rm(join(path, 'model.safetensors'));
    await expect(readCheckpoint(path)).rejects.toThrow(
      `${join(path, 'model.safetensors')} cannot be read (ENOENT)`,
    );
    await rm(join(path, 'MANIFEST.json'));
    await expect(readCheckpoint(path)).rejects.toThrow('MANIFEST.json cannot be read (ENOENT)');
  });

  test('that was written wrong says what is wrong with it', async () => {
    const path = await saveCheckpoint(folder, checkpoint(3), 2);
    const huge = Buffer.alloc(16);
    huge.writeBigUInt64LE(2n ** 63n);
    await forge(path, 'model.safetensors', huge);
    await expect(readCheckpoint(path)).rejects.toThrow(
      `${join(path, 'model.safetensors')}: its header would have 9223372036854775808 bytes`,
    );
    await forge(path, 'model.safetensors', Buffer.concat(safetensorsPieces({ a: int32([1], [1]) })));
    await expect(readCheckpoint(path)).rejects.toThrow(
      `${join(path, 'model.safetensors')}: a is int32, not float32`,
    );
    await forge(path, 'state.json', Buffer.from('{}'));
    await expect(readCheckpoint(path)).rejects.toThrow('state.json is not what a checkpoint holds');
  });
});

describe('the newest checkpoint', () => {
  const skipped: string[] = [];
  const newest = () => newestCheckpoint(folder, (message) => skipped.push(message));
  beforeEach(() => {
    skipped.length = 0;
  });
  const cut = (name: string) => truncate(join(folder, name, 'model.safetensors'), 100);

  test('is undefined where there is none', async () => {
    expect(await newest()).toBeUndefined();
    expect(await newestCheckpoint(join(folder, 'missing'), () => undefined)).toBeUndefined();
  });

  test('is the whole one before a damaged one, of which it tells', async () => {
    for (const step of [2, 4]) await saveCheckpoint(folder, checkpoint(step), 2);
    await cut('step-000004');
    expect((await newest())?.progress.step).toBe(2);
    expect(skipped).toEqual([
      `${join(folder, 'step-000004')} is left out: ${join(folder, 'step-000004', 'model.safetensors')} is not the file that was written (100 bytes)`,
    ]);
  });

  test('is an error where none of them can be read, with the reason of each and what to do', async () => {
    for (const step of [2, 4]) await saveCheckpoint(folder, checkpoint(step), 2);
    await cut('step-000002');
    await rm(join(folder, 'step-000004', 'MANIFEST.json'));
    const error = await newest().catch((error: unknown) => error);
    expect(error).toBeInstanceOf(CheckpointError);
    const [what, ...rest] = (error as CheckpointError).message.split('\n');
    expect(what).toBe(`${folder}: none of its checkpoints can be read, so there is nothing to resume from:`);
    expect(rest.slice(0, 2)).toEqual([
      `  step-000004: ${join(folder, 'step-000004', 'MANIFEST.json')} cannot be read (ENOENT)`,
      `  step-000002: ${join(folder, 'step-000002', 'model.safetensors')} is not the file that was written (100 bytes)`,
    ]);
    expect(rest[2]).toContain('--resume never');
    expect(skipped).toEqual([]);
    expect(await listCheckpoints(folder)).toEqual(['step-000002', 'step-000004']);
  });

  test('of a run that was started over is its own, not one of the run before', async () => {
    for (const step of [8, 10]) await saveCheckpoint(folder, checkpoint(step), 2);
    for (const step of [2, 4, 6]) await saveCheckpoint(folder, checkpoint(step), 2);
    expect(await listCheckpoints(folder)).toEqual(['step-000004', 'step-000006']);
    expect((await newest())?.progress.step).toBe(6);
  });

  test('is that of the last step, with seven digits too', async () => {
    for (const step of [999_998, 999_999, 1_000_000]) await saveCheckpoint(folder, checkpoint(step), 2);
    expect(await listCheckpoints(folder)).toEqual(['step-999999', 'step-1000000']);
    expect((await newest())?.progress.step).toBe(1_000_000);
  });
});
