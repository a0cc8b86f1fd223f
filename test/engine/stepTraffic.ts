/**
 * What a training step takes up to the device and brings down again: `stepTraffic.ts webgpu 2` for two micro-batches.
 * Counted where ONNX Runtime is called, in the third step.
 */
import * as ort from 'onnxruntime-node';
import { onnxEngine } from '../../src/engine/onnx/engine.ts';
import type { Provider } from '../../src/engine/onnx/lower.ts';
import { trainingState } from '../../src/train/trainingState.ts';
import { batch, smallOptions } from './smallStep.ts';

export interface Traffic {
  /** Names of the batch's tensors. */
  readonly batch: string[];
  /** Names of the tensors that lay in the host's memory before a run, and after it. */
  readonly up: string[];
  readonly down: string[];
  readonly upBytes: number;
  /** Of parameters and moments. */
  readonly stateBytes: number;
  readonly runs: number;
}

const [, , provider = 'cpu', accumulate = '1'] = process.argv;
const [up, down] = [new Map<string, number>(), new Map<string, number>()];
let runs = 0;

const create = ort.InferenceSession.create.bind(ort.InferenceSession) as (
  ...given: unknown[]
) => Promise<ort.InferenceSession>;
Object.assign(ort.InferenceSession, {
  create: async (...given: unknown[]) => {
    const session = await create(...given);
    const run = session.run.bind(session) as (
      feeds: ort.InferenceSession.FeedsType,
    ) => Promise<ort.InferenceSession.OnnxValueMapType>;
    return Object.assign(session, {
      run: async (feeds: Record<string, ort.Tensor>) => {
        runs++;
        const outputs = (await run(feeds)) as Record<string, ort.Tensor>;
        for (const [side, tensors] of [
          [up, feeds],
          [down, outputs],
        ] as const) {
          for (const [name, tensor] of Object.entries(tensors))
            if (tensor.location === 'cpu') side.set(name, tensor.size * 4);
        }
        return outputs;
      },
    });
  },
});

const engine = onnxEngine({ provider: provider as Provider });
const options = smallOptions(engine, Number(accumulate));
const state = await trainingState(options);
const window = Array.from({ length: options.accumulate }, () => batch);
await state.step(window, 0.001);
await state.step(window, 0.001);
up.clear();
down.clear();
runs = 0;
await state.step(window, 0.001);
const traffic: Traffic = {
  batch: Object.keys(batch.feeds),
  up: [...up.keys()].sort(),
  down: [...down.keys()].sort(),
  upBytes: [...up.values()].reduce((total, bytes) => total + bytes, 0),
  stateBytes: [...options.trainable.values()].reduce((total, { data }) => total + 3 * data.byteLength, 0),
  runs,
};
await state.dispose();
await engine.dispose();
process.stdout.write(JSON.stringify(traffic), () => process.exit(0));
