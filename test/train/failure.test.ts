/** An engine that fails in the middle of training: the error says why, what was saved, and how to go on. */
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { loadExperiment } from '../../src/config/load.ts';
import { type Engine, EngineError } from '../../src/engine/engine.ts';
import { runError } from '../../src/engine/onnx/failure.ts';
import { runTraining } from '../../src/train/run.ts';
import { makeEngine } from '../../src/train/setup.ts';
import { makeWorld, noProgress, type World } from './fixture.ts';

let world: World;
beforeAll(async () => {
  world = await makeWorld();
});
afterAll(() => world.remove());

/** An engine whose device is lost in run number `after`. */
function losing(inner: Engine, after: number): Engine {
  let runs = 0;
  return {
    ...inner,
    async compile(program, options) {
      const executable = await inner.compile(program, options);
      return {
        run: (feeds) =>
          ++runs >= after
            ? Promise.reject(runError(new Error('message: [Device] is lost.'), { values: new Map() }))
            : executable.run(feeds),
        dispose: () => executable.dispose(),
      };
    },
  };
}

async function train(name: string, options: { failAt?: number; resume?: boolean } = {}) {
  const { experiment } = await loadExperiment(world.config, [`run.dir=${join(world.folder, name)}`]);
  const notes: string[] = [];
  const inner = await makeEngine(experiment);
  try {
    const result = await runTraining(experiment, {
      watch: {
        note: (text) => notes.push(text),
        progress: noProgress,
      },
      resume: options.resume ?? true,
      evaluate: false,
      engine: options.failAt === undefined ? inner : losing(inner, options.failAt),
    });
    return { result, notes };
  } finally {
    await inner.dispose();
  }
}

describe('an engine that fails in the middle of training', () => {
  it('names the step, the cause and the newest whole checkpoint, from which the same command goes on', async () => {
    const failure = await train('lost', { failAt: 6 }).catch((error: unknown) => error);
    expect(failure).toBeInstanceOf(EngineError);
    const { message } = failure as EngineError;
    expect(message).toContain('step 6, stage "connector"');
    expect(message).toContain('the GPU device was lost');
    expect(message).toContain(
      `The newest whole checkpoint is ${join(world.folder, 'lost/checkpoints/step-000004')}; run the same command: it resumes from there.`,
    );
    const { result, notes } = await train('lost');
    expect(notes).toContain('resuming after step 4');
    expect(result.finished).toBe(true);
  });

  it('says how to resume when the command would start over', async () => {
    await expect(train('never', { failAt: 4, resume: false })).rejects.toThrow(
      'step-000002; run the same command with --resume auto: it resumes from there',
    );
  });

  it('says so when there is no checkpoint yet', async () => {
    await expect(train('early', { failAt: 2 })).rejects.toThrow('There is no checkpoint yet');
  });
});
