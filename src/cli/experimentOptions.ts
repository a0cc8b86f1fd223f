/** The options that every command with an experiment takes. */
import { repeated } from './arguments.ts';

/** Short names of engines, each for a whole `engine` field: its other fields have no meaning for another engine. */
const engines = {
  cpu: '{ kind: onnx, provider: cpu }',
  webgpu: '{ kind: onnx, provider: webgpu }',
  cuda: '{ kind: onnx, provider: cuda }',
  tfjs: '{ kind: tfjs }',
} as const;

export const engineOption = {
  engine: {
    type: 'enum',
    options: Object.keys(engines),
    description: "What computes, in place of the experiment's engine; tfjs is TensorFlow.js",
  },
} as const;

export const experimentOptions = {
  ...engineOption,
  set: {
    type: 'string',
    description: 'Change a field of the experiment; may be given several times',
    valueHint: 'path.to.field=value',
  },
  'on-bad-sample': {
    type: 'string',
    description: 'error: stop at a clip that cannot be read; skip: leave it out, count and list it',
    valueHint: 'error|skip',
  },
} as const;

/** The overrides that the command line asks for. */
export function experimentOverrides(rawArgs: readonly string[]): string[] {
  const policies = repeated(rawArgs, 'on-bad-sample').map((policy) => `data.onBadSample=${policy}`);
  return [...engineOverride(rawArgs), ...repeated(rawArgs, 'set'), ...policies];
}

/** The engine that the command line asks for; `--set engine.backend=cpu` may say more about it. */
export function engineOverride(rawArgs: readonly string[]): string[] {
  const name = repeated(rawArgs, 'engine').at(-1) as keyof typeof engines | undefined;
  return name === undefined ? [] : [`engine=${engines[name]}`];
}
