/**
 * Compiles the training step of one shape in a process of its own, so that its memory is its own. Prints one JSON
 * line: nodes, milliseconds by phase, MiB of weights and of resident memory.
 *
 *     tsx bench/compileOnce.ts SHAPE [--frozen]
 *
 * With --frozen all but the first norm is frozen: every weight is a constant, read going forward and back.
 */

import { externalFromBytes } from '../src/engine/onnx/engine.ts';
import { lowerProgram } from '../src/engine/onnx/lower.ts';
import { InferenceSession } from '../src/engine/onnx/runtime.ts';
import { programKey } from '../src/engine/programKey.ts';
import { simplify } from '../src/tensor/passes.ts';
import { schedule } from '../src/tensor/schedule.ts';
import { answerObjective } from '../src/train/loss.ts';
import { gradientProgram } from '../src/train/step.ts';
import { benchShapeName, memoryMB } from './measure.ts';
import { benchModel, benchShapes, randomParameters } from './models.ts';

const [name = 'tiny', frozen] = process.argv.slice(2);
const { llm, batch: rows, rows: textRows } = benchShapes[benchShapeName(name)];
const parameters = randomParameters(llm);
const trains = (parameter: string) =>
  frozen !== '--frozen' || parameter === 'model.layers.0.input_layernorm.weight';
const objective = answerObjective(benchModel(llm), { rows, textRows, targets: rows * textRows });
const beforeMB = memoryMB('VmRSS');

const phasesMs: Record<string, number> = {};
async function phase<T>(what: string, work: () => T | Promise<T>): Promise<T> {
  const began = performance.now();
  const result = await work();
  phasesMs[what] = performance.now() - began;
  return result;
}

const program = await phase('trace and gradients', () =>
  gradientProgram({
    objective,
    trainable: new Map([...parameters].filter(([parameter]) => trains(parameter))),
    frozen: new Map([...parameters].filter(([parameter]) => !trains(parameter))),
  }),
);
await phase('key', () => programKey(program));
const simple = await phase('simplify', () => simplify(program));
await phase('schedule', () => schedule(simple));
// What engine.compile does, in its parts; lowering simplifies and schedules by itself.
const { model, external } = await phase('lower', () =>
  lowerProgram(program, 'cpu', { ending: true, externalFrom: externalFromBytes }),
);
for (const part of ['simplify', 'schedule'])
  phasesMs.lower = Math.max(0, (phasesMs.lower ?? 0) - (phasesMs[part] ?? 0));
const session = await phase('session', () =>
  InferenceSession.create(model, {
    executionProviders: ['cpu'],
    intraOpNumThreads: 2,
    interOpNumThreads: 1,
    graphOptimizationLevel: 'disabled',
    enableMemPattern: false,
    logSeverityLevel: 3,
    ...(external.length > 0 && { externalData: external }),
  }),
);
const afterMB = memoryMB('VmRSS');
await session.release();
const inMB = (bytes: number) => Math.round(bytes / 1e6);
const constants = simple.nodes.reduce(
  (total, node) => total + (node.primitive === 'constant' ? node.attributes.tensor.data.byteLength : 0),
  0,
);
const weights = [...parameters.values()].reduce((total, { data }) => total + data.byteLength, 0);
process.stdout.write(
  `${JSON.stringify({
    nodes: simple.nodes.length,
    phasesMs,
    weightsMB: inMB(weights),
    constantsMB: inMB(constants),
    beforeMB,
    afterMB,
    peakMB: memoryMB('VmHWM'),
  })}\n`,
);
