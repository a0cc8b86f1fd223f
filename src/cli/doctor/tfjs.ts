/** Which backends of TensorFlow.js really compute on this machine. */
import { type TfjsBackend, tfjsBackends } from '../../engine/tfjs/backends.ts';
import type { Check } from './check.ts';
import { tryEngine } from './tryEngine.ts';

/** Every backend, tried. None of them is needed: the onnx engine is the default. */
export function checkTfjs(): Promise<Check[]> {
  return Promise.all(tfjsBackends.map(checkBackend));
}

async function checkBackend(backend: TfjsBackend): Promise<Check> {
  const what = `tfjs ${backend}`;
  const { ok, reason, types } = await tryEngine('tfjs', backend);
  const slow = backend === 'cpu' ? ', slowly' : '';
  const use = `--engine tfjs --set engine.backend=${backend}`;
  if (ok) return { what, status: 'ok', found: `works${slow}: ${types.join(', ')}`, advice: use };
  const [told = '', advice = told] = reason.split('\n');
  const found = /is not installed/.test(told) ? 'not installed' : 'fails';
  return { what, status: 'optional', found, advice };
}
