import { distance } from 'fastest-levenshtein';

/** Spelling without what people mix up: `start_layer`, `start-layer` and `startlayer` are `startLayer`. */
const simplified = (name: string) => name.toLowerCase().replace(/[-_ ]/g, '');

/** The candidate that a misspelt name most likely meant; undefined when none is near. */
export function nearest(name: string, candidates: Iterable<string>): string | undefined {
  const wanted = simplified(name.slice(0, 200));
  let best: string | undefined;
  // A third of the letters may be wrong, and two of them in any but the shortest names.
  let bestDistance = Math.max(Math.min(2, wanted.length - 2), Math.floor(wanted.length / 3)) + 1;
  for (const candidate of candidates) {
    const away = distance(wanted, simplified(candidate));
    if (away < bestDistance) {
      best = candidate;
      bestDistance = away;
    }
  }
  return best;
}

/** ` (did you mean "x"?)`, or nothing where no candidate is near. */
export function didYouMean(name: string, candidates: Iterable<string>): string {
  const found = nearest(name, candidates);
  return found === undefined ? '' : ` (did you mean "${found}"?)`;
}
