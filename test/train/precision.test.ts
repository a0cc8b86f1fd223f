import { describe, expect, it } from 'vitest';
import { loadExperiment } from '../../src/config/load.ts';
import { type Engine, EngineError } from '../../src/engine/engine.ts';
import { onnxEngine } from '../../src/engine/onnx/engine.ts';
import { tfjsEngine } from '../../src/engine/tfjs/engine.ts';
import { checkPrecision } from '../../src/train/setup.ts';

async function check(precision: string, engine: Engine): Promise<string[]> {
  const { experiment } = await loadExperiment('configs/default.yaml', [`train.precision=${precision}`]);
  const notes: string[] = [];
  await checkPrecision(experiment, engine, (text) => notes.push(text)).finally(() => engine.dispose());
  return notes;
}

describe('before training, the precision is tried', () => {
  it('the cpu only emulates half types, and that is said', async () => {
    expect(await check('bfloat16', onnxEngine())).toEqual([
      'bfloat16 on onnx (cpu, 2 threads) is computed in float32 with rounding: for checking, not for speed',
    ]);
  });

  it('float32 needs no trial', async () => {
    const untried: Engine = {
      ...onnxEngine(),
      arithmetic: () => Promise.reject(new Error('tried in vain')),
    };
    expect(await check('float32', untried)).toEqual([]);
  });

  it('an engine without the type is refused, with what to choose and the reason', async () => {
    const refused = await check('float16', await tfjsEngine({ backend: 'cpu' })).catch(
      (error: unknown) => error,
    );
    expect(refused).toBeInstanceOf(EngineError);
    const { message } = refused as EngineError;
    expect(message).toContain('train.precision: float16: tfjs (cpu: as asked for) does not compute in it');
    expect(message).toContain('Choose train.precision: float32, or another engine');
    expect(message).toContain('TensorFlow.js does not have float16');
  });
});
