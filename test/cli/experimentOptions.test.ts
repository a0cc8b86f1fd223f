import { describe, expect, it } from 'vitest';
import { experimentOverrides } from '../../src/cli/experimentOptions.ts';
import { loadExperiment } from '../../src/config/load.ts';

const config = 'configs/default.yaml';

describe('--engine', () => {
  it.each([
    ['cpu', { kind: 'onnx', provider: 'cpu', optimization: 'disabled' }],
    ['webgpu', { kind: 'onnx', provider: 'webgpu', optimization: 'disabled' }],
    ['cuda', { kind: 'onnx', provider: 'cuda', optimization: 'disabled' }],
    ['tfjs', { kind: 'tfjs', backend: 'auto' }],
  ])('%s', async (name, engine) => {
    const { experiment } = await loadExperiment(config, experimentOverrides(['--engine', name]));
    expect(experiment.engine).toEqual(engine);
  });

  it('leaves the rest of the engine to --set, wherever that stands', async () => {
    const given = ['--set', 'engine.backend=wasm', '--engine=tfjs', '--set', 'seed=8'];
    const { experiment } = await loadExperiment(config, experimentOverrides(given));
    expect(experiment).toMatchObject({ engine: { kind: 'tfjs', backend: 'wasm' }, seed: 8 });
    await expect(
      loadExperiment(config, experimentOverrides(['--engine', 'tfjs', '--set', 'engine.provider=cuda'])),
    ).rejects.toThrow('engine.provider: has no effect with kind: tfjs; only with kind: onnx');
  });

  it('changes nothing when it is not given', async () => {
    expect(experimentOverrides(['--set', 'seed=8'])).toEqual(['seed=8']);
  });
});
