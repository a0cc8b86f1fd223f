/** The options that every command with an experiment takes. */
import { repeated } from './arguments.ts';

export const experimentOptions = {
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
  return [...repeated(rawArgs, 'set'), ...policies];
}
