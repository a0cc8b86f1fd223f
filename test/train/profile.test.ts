import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { loadExperiment } from '../../src/config/load.ts';
import { countFlops } from '../../src/tensor/print.ts';
import { profileStep, type StepProfile } from '../../src/train/profile.ts';
import { summarizeProfile } from '../../src/train/profileParts.ts';
import { makeWorld, silentWatch, type World } from './fixture.ts';

let world: World;
beforeAll(async () => {
  world = await makeWorld();
});
afterAll(() => world.remove());

async function measure(stage: string | undefined, ...overrides: string[]): Promise<StepProfile> {
  const { experiment } = await loadExperiment(world.config, overrides);
  return profileStep(experiment, { watch: silentWatch, stage, warmUps: 1, steps: 3 });
}

describe("the profile of a stage's step", () => {
  it('adds up to the step: time, arithmetic, every kernel of the forward and the backward pass', async () => {
    const profile = await measure('closed');
    const { parts, stepMs, flops } = summarizeProfile(profile);
    expect(profile.stepsMs).toHaveLength(3);
    expect(parts.reduce((total, { totalMs }) => total + totalMs, 0)).toBeCloseTo(stepMs, 3);
    expect(parts.reduce((total, { share }) => total + share, 0)).toBeCloseTo(1, 6);
    expect(flops).toBe(profile.programs.reduce((total, { program }) => total + countFlops(program), 0));
    const byName = Object.fromEntries(parts.map((part) => [part.part, part]));
    for (const name of [
      'layers.*.attention',
      'layers.*.attention.audio',
      'layers.*.feedForward',
      'streams.timbre.connector',
      'score',
      'embeddings',
    ]) {
      expect(byName[name]?.ms.forward, name).toBeGreaterThan(0);
      expect(byName[name]?.ms.backward, name).toBeGreaterThan(0);
      expect(byName[name]?.bytes.forward, name).toBeGreaterThan(0);
    }
    expect(byName.update?.ms).toMatchObject({ forward: 0, backward: 0 });
    expect(byName.update?.ms.update).toBeGreaterThan(0);
    expect(byName['not attributed']?.totalMs ?? 0).toBeLessThan(0.05 * stepMs);
    expect(parts.every(({ elsewhere }) => elsewhere === 0)).toBe(true);
  });

  it('measures the stage that is asked for: with a frozen LLM its weights have no gradient', async () => {
    const profile = await measure('1');
    expect(profile.stage).toBe('connector');
    const embeddings = summarizeProfile(profile).parts.find(({ part }) => part === 'embeddings');
    expect(embeddings?.ms.backward).toBe(0);
    await expect(measure('conector')).rejects.toThrow(
      '--stage conector: there is no such stage; there are 1 or connector',
    );
    await expect(measure('4')).rejects.toThrow('there is no such stage');
  });

  it('with accumulation counts a program as often as it runs', async () => {
    const [once, twice] = [await measure('closed'), await measure('closed', 'train.accumulate=2')];
    expect(twice.programs.map(({ runsPerStep }) => runsPerStep)).toEqual([2]);
    const flopsOf = (profile: StepProfile) =>
      summarizeProfile(profile).parts.find(({ part }) => part === 'layers.*.feedForward')?.flops;
    expect(flopsOf(twice)).toBe(2 * (flopsOf(once) as number));
  });

  it('leaves no run folder', () => {
    expect(existsSync(join(world.folder, 'run'))).toBe(false);
  });
});
