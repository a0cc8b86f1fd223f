/** Freeing memory at a moment of our choice. */
import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';

/**
 * Collects what nobody can reach any more. The collector does not hurry by itself: it counts objects, and a stage's
 * parameters and moments are gigabytes behind a few of them; the next stage's would come on top.
 */
export function collectGarbage(): void {
  setFlagsFromString('--expose-gc');
  (runInNewContext('gc') as () => void)();
}
