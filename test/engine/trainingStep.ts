/**
 * One training step of a small audio-LLM on a provider, in a process of its own: a GPU provider that fails can
 * take the process with it. Prints loss, gradients and, after three resident steps, the parameters.
 * `tsx trainingStep.ts PROVIDER [PRECISION]`
 */
import { onnxEngine } from '../../src/engine/onnx/engine.ts';
import type { Provider } from '../../src/engine/onnx/lower.ts';
import type { Precision } from '../../src/tensor/precision.ts';
import { smallStep } from './smallStep.ts';

const engine = onnxEngine({ provider: (process.argv[2] ?? 'cpu') as Provider });
const result = JSON.stringify(await smallStep(engine, (process.argv[3] ?? 'float32') as Precision));
await engine.dispose();
// Leaving before the pipe has taken everything would cut the result off.
process.stdout.write(result, () => process.exit(0));
