/** Patterns on dotted names of parameters and modules, in which numbers stand for layers. */
import { distance } from 'fastest-levenshtein';
import { ConfigError } from './configError.ts';

const rangeForm = /\{(\d{1,6})\.\.(\d{1,6})\}/g;

/**
 * Reads a pattern: `*` is any text, `?` any character, `{4..7}` a whole number from 4 to 7.
 * @param where how error messages name the pattern's place
 * @returns whether a name fits
 * @throws ConfigError for a range that is empty or malformed
 */
export function patternTest(pattern: string, where: string): (name: string) => boolean {
  const ranges: (readonly [number, number])[] = [];
  const marked = pattern.replace(rangeForm, (_, from: string, to: string) => {
    if (Number(from) > Number(to))
      throw new ConfigError(`${where}: "${pattern}": ${to} is below ${from}: a range rises, {4..7}`);
    ranges.push([Number(from), Number(to)]);
    return '\0';
  });
  if (/[{}]/.test(marked))
    throw new ConfigError(`${where}: "${pattern}": braces hold a range of layers, {4..7}, and nothing else`);
  const source = marked
    .replace(/[.+^$()|[\]\\]/g, '\\$&')
    .replaceAll(/\*+/g, '.*')
    .replaceAll('?', '.')
    .replaceAll('\0', '(\\d{1,6})');
  const expression = new RegExp(`^${source}$`);
  return (name) => {
    const found = expression.exec(name);
    return (
      found !== null &&
      ranges.every(([from, to], at) => Number(found[at + 1]) >= from && Number(found[at + 1]) <= to)
    );
  };
}

/**
 * The names that patterns choose, in the order of `names`: what any of them matches, less what those that begin with
 * `!` match.
 * @param where how error messages name the list: `train.stages "all".trainable`
 * @param what a name is: `parameter`
 * @throws ConfigError for a pattern that matches nothing (with the nearest ones that would), an exclusion that takes
 *   nothing away, and a list that leaves nothing
 */
export function selectNames(
  patterns: readonly string[],
  names: Iterable<string>,
  { where, what }: { readonly where: string; readonly what: string },
): Set<string> {
  const all = [...names];
  const isExclusion = (pattern: string) => pattern.startsWith('!');
  const matching = (pattern: string) => {
    const matches = all.filter(patternTest(isExclusion(pattern) ? pattern.slice(1) : pattern, where));
    if (matches.length > 0) return matches;
    throw new ConfigError(`${where}: "${pattern}" matches no ${what}; ${suggestions(pattern, all)}`);
  };
  const chosen = new Set(patterns.filter((pattern) => !isExclusion(pattern)).flatMap(matching));
  const exclusions = patterns.filter(isExclusion);
  if (exclusions.length === patterns.length) {
    throw new ConfigError(
      `${where}: every pattern takes something away, and nothing is chosen; begin with "*", say`,
    );
  }
  const taken = new Set<string>();
  for (const pattern of exclusions) {
    const matches = matching(pattern).filter((name) => chosen.has(name));
    if (matches.length === 0)
      throw new ConfigError(
        `${where}: "${pattern}" takes nothing away: no other pattern chooses what it matches`,
      );
    for (const name of matches) taken.add(name);
  }
  const left = all.filter((name) => chosen.has(name) && !taken.has(name));
  if (left.length === 0) throw new ConfigError(`${where}: the patterns leave no ${what}`);
  return new Set(left);
}

/** What a pattern that matches nothing may have meant. */
function suggestions(pattern: string, names: readonly string[]): string {
  const wanted = pattern.replace(/^!/, '').replace(rangeForm, '*');
  const fitting = names.filter(patternTest(wanted, ''));
  if (wanted !== pattern.replace(/^!/, '') && fitting.length > 0) {
    const layers = fitting.flatMap((name) => /\.(\d+)\./.exec(name)?.[1] ?? []).map(Number);
    return `its layers are ${Math.min(...layers)} to ${Math.max(...layers)}`;
  }
  const candidates = new Set(names.flatMap(waysToName));
  const nearest = [...candidates]
    .map((candidate) => ({ candidate, away: distance(wanted.slice(0, 200), candidate) }))
    .sort((a, b) => a.away - b.away)
    .slice(0, 3);
  return `near to it: ${nearest.map(({ candidate }) => candidate).join(', ')}`;
}

/** `model.layers.*.mlp.up_proj.weight`, and what stands above it: `model.layers.*.mlp.*`. */
function waysToName(name: string): string[] {
  const steps = name.split('.').map((step) => (/^\d+$/.test(step) ? '*' : step));
  return steps.map((_, at) =>
    at === steps.length - 1 ? steps.join('.') : [...steps.slice(0, at + 1), '*'].join('.'),
  );
}
