import { mkdtemp, readdir, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { expect, test, vi } from 'vitest';
import type { Experiment } from '../../src/config/schema.ts';
import { loadExperimentLlm } from '../../src/train/setup.ts';
import { hubServer } from '../llm/hubServer.ts';

test('what comes from the hub is shown, and every bar ends', async () => {
  const model = 'models/sound-world';
  const cache = await mkdtemp(join(tmpdir(), 'palkit-download-'));
  const files = new Map<string, Uint8Array>();
  for (const file of await readdir(model)) files.set(file, await readFile(join(model, file)));
  const hub = await hubServer({ name: 'some-lab/tiny', sha: '0'.repeat(40), files });
  vi.stubEnv('HF_ENDPOINT', hub.url);
  vi.stubEnv('HF_HUB_CACHE', cache);
  vi.stubEnv('HF_HUB_OFFLINE', '');
  const bars: { label: string; total: number; done: number; stopped: boolean }[] = [];
  const watch = {
    note: () => undefined,
    progress: (label: string, total: number) => {
      const bar = { label, total, done: 0, stopped: false };
      bars.push(bar);
      return {
        update: (done: number) => {
          bar.done = done;
        },
        stop: () => {
          bar.stopped = true;
        },
      };
    },
  };
  try {
    const experiment = { llm: { from: 'some-lab/tiny' } } as Experiment;
    const { hash } = await loadExperimentLlm(experiment, watch);
    expect(hash).toBe((await loadExperimentLlm({ llm: { from: model } } as Experiment)).hash);
    const weights = bars.find(({ label }) => label === 'downloading model.safetensors (MB)');
    expect(weights?.done).toBe(weights?.total);
    expect(weights?.total).toBe(Math.ceil((files.get('model.safetensors')?.length ?? 0) / 1e6));
    expect(bars.filter(({ stopped }) => !stopped)).toEqual([]);
    const { length } = bars;
    await loadExperimentLlm(experiment, watch);
    expect(bars).toHaveLength(length);
  } finally {
    vi.unstubAllEnvs();
    await hub.close();
    await rm(cache, { recursive: true });
  }
});
