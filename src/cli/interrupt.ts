/** Ctrl-C on long work. */
import { exitCodes } from './run.ts';

/** The first Ctrl-C finishes the step and saves; the second ends at once. */
export function onInterrupt(note: (text: string) => void): { asked: () => boolean; remove: () => void } {
  let asked = false;
  const listen = () => {
    if (asked) process.exit(exitCodes.interrupted);
    asked = true;
    note('finishing the step, then saving; interrupt again to stop at once');
  };
  for (const signal of ['SIGINT', 'SIGTERM'] as const) process.on(signal, listen);
  return {
    asked: () => asked,
    remove: () => {
      for (const signal of ['SIGINT', 'SIGTERM'] as const) process.off(signal, listen);
    },
  };
}
