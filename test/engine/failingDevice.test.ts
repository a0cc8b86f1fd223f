/**
 * What a GPU device that fails is answered with, on a real one: the device in software behind a driver whose calls
 * fail. The words that an error is recognised by are those that ONNX Runtime and the driver really use.
 */
import { spawnSync } from 'node:child_process';
import { existsSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, describe, expect, it } from 'vitest';
import { softwareEnvironment } from '../../src/cli/doctor/child.ts';
import { makeWorld } from '../train/fixture.ts';
import { deviceEnvironment, howToGetADevice } from './onDevice.ts';

const driver = '/usr/lib/chromium/libvk_swiftshader.so';
const folder = mkdtempSync(join(tmpdir(), 'palkit-driver-'));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

/** Builds the failing driver; why it cannot be, where it cannot. */
function build(): string | undefined {
  if (softwareEnvironment() === undefined || !existsSync(driver))
    return `no device in software; ${howToGetADevice}`;
  const library = join(folder, 'failing.so');
  const made = spawnSync('cc', ['-shared', '-fPIC', '-o', library, 'test/engine/failingDriver.c', '-ldl']);
  if (made.status !== 0) return 'no C compiler (cc)';
  const icd = { file_format_version: '1.0.0', ICD: { library_path: library, api_version: '1.0.5' } };
  writeFileSync(join(folder, 'failing.json'), JSON.stringify(icd));
  return undefined;
}

/** From call number `after` on, `call` answers `result`. */
const failing = (call: string, result: number, after: number) => ({
  VK_ICD_FILENAMES: join(folder, 'failing.json'),
  FAILING_DRIVER: driver,
  FAILING_CALL: call,
  FAILING_RESULT: String(result),
  FAILING_AFTER: String(after),
});

const outOfDeviceMemory = -2;
const initializationFailed = -3;
const deviceLost = -4;

function trouble(size: number, environment: Record<string, string> = {}): string | null {
  const command = ['node_modules/tsx/dist/cli.mjs', 'test/engine/deviceTrouble.ts', String(size), '20'];
  const { stdout } = spawnSync(process.execPath, command, {
    encoding: 'utf8',
    timeout: 110_000,
    env: { ...deviceEnvironment(), ...environment },
  });
  return JSON.parse(stdout) as string | null;
}

const missing = build();

describe.skipIf(missing !== undefined)(
  `a GPU device${missing === undefined ? '' : ` (skipped: ${missing})`}`,
  () => {
    it('that works says nothing', () => {
      expect(trouble(1000, failing('vkQueueSubmit', deviceLost, 1_000_000))).toBeNull();
    });

    it('that is not there', () => {
      expect(trouble(1000, { VK_ICD_FILENAMES: join(folder, 'none.json') })).toMatch(
        /No supported adapters\s+Is a webgpu device there\? `palkit doctor` checks and says what to install/,
      );
      expect(trouble(1000, failing('vkCreateDevice', initializationFailed, 0))).toContain(
        'Is a webgpu device there?',
      );
    });

    it.each([
      ['vkQueueSubmit', 3],
      ['vkMapMemory', 2],
    ])('that is lost in %s', (call, after) => {
      expect(trouble(1000, failing(call, deviceLost, after))).toContain(
        'the GPU device was lost: its driver was reset',
      );
    });

    it('that has no memory left', () => {
      expect(trouble(1_000_000, failing('vkAllocateMemory', outOfDeviceMemory, 4))).toMatch(
        /the GPU device refused an earlier allocation: it is out of memory.*; lower train.batchSize/,
      );
    });

    it('that does not take a tensor so large', () => {
      expect(trouble(300_000_000)).toContain(
        'a tensor is larger than the GPU device takes in one buffer; lower',
      );
    });

    it('that is lost while it trains ends the run with the cause and the checkpoint', async () => {
      const world = await makeWorld();
      try {
        const command = [
          ...['node_modules/tsx/dist/cli.mjs', 'src/cli/main.ts', 'train', world.config],
          ...['--engine', 'webgpu', '--no-eval', '--set', 'train.maxSteps=6', '--set', 'train.batchSize=2'],
        ];
        // More submissions than two steps take, fewer than six.
        const { stderr, status } = spawnSync(process.execPath, command, {
          encoding: 'utf8',
          timeout: 110_000,
          env: { ...deviceEnvironment(), ...failing('vkQueueSubmit', deviceLost, 300) },
        });
        expect(status).not.toBe(0);
        expect(stderr).toMatch(/step \d, stage "connector": the program failed: the GPU device was lost/);
        expect(stderr).toMatch(
          /The newest whole checkpoint is \S+step-00000\d; run the same command: it resumes from there/,
        );
        expect(readdirSync(join(world.folder, 'run'))).not.toContain('running.json');
      } finally {
        await world.remove();
      }
    });
  },
);
