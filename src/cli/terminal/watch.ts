import type { Watch } from '../../train/setup.ts';
import { progressBar } from './progress.ts';
import { sanitize } from './sanitize.ts';

/** Shows on standard error what a long-running command does; nothing under --json. */
export function terminalWatch(json: boolean): Watch {
  return {
    note: (text) => {
      if (!json) process.stderr.write(`${sanitize(text)}\n`);
    },
    progress: (label, total) => progressBar({ label, total, json }),
  };
}
