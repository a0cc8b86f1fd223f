/** What this process holds in memory, as Linux accounts for it. */
import { readFileSync } from 'node:fs';

/** Megabytes that are resident now, and at the most so far. */
export function residentMB(): { now: number; peak: number } {
  const status = readFileSync('/proc/self/status', 'utf8');
  const read = (field: string) => {
    const found = new RegExp(`${field}:\\s*(\\d+) kB`).exec(status);
    if (found === null) throw new Error(`/proc/self/status has no ${field}: this benchmark needs Linux`);
    return Math.round((Number(found[1]) * 1024) / 1e6);
  };
  return { now: read('VmRSS'), peak: read('VmHWM') };
}
