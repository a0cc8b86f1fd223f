/** Controls: what the model scores when it cannot listen, or listens to something else. */
import type { Random } from '../config/random.ts';

export const controlNames = ['silence', 'shuffledAudio', 'noAudio'] as const;
export type ControlName = (typeof controlNames)[number];

/**
 * For every item the audio of an item with another clip: clips are permuted in one random cycle, so none stays
 * with its question.
 * @param clipIds the clip of each item
 * @returns the clip that each item hears instead
 */
export function shuffleClips(clipIds: readonly string[], random: Random): string[] {
  const order = random.shuffle([...new Set(clipIds)]);
  const next = new Map(order.map((clip, at) => [clip, order[(at + 1) % order.length] as string]));
  return clipIds.map((clip) => next.get(clip) as string);
}
