/** Patterns on dotted names of parameters and modules, in which numbers stand for layers. */
import { distance } from 'fastest-levenshtein';
import { ConfigError } from './configError.ts';

const rangeForm = /\{(\d{1,6})\.\.(\d{1,6})\}/g;

/** What a pattern is made of: any text, one character whatever it is or a certain one, a whole number in a range. */
type Token = 'text' | 'character' | { readonly is: string } | { readonly from: number; readonly to: number };

/**
 * Reads a pattern: `*` is any text, `?` any character, `{4..7}` a whole number from 4 to 7.
 * @param where how error messages name the pattern's place
 * @returns whether a name fits; it takes no longer than pattern times name, whatever they are
 * @throws ConfigError for a range that is empty or malformed
 */
export function patternTest(pattern: string, where: string): (name: string) => boolean {
  const tokens = tokensOf(pattern, where);
  return (name) => fits(tokens, name);
}

function tokensOf(pattern: string, where: string): Token[] {
  const plain = (text: string) => {
    if (/[{}]/.test(text))
      throw new ConfigError(
        `${where}: "${pattern}": braces hold a range of layers, {4..7}, and nothing else`,
      );
    return [...text].map((is): Token => (is === '*' ? 'text' : is === '?' ? 'character' : { is }));
  };
  const tokens: Token[] = [];
  let end = 0;
  for (const found of pattern.matchAll(rangeForm)) {
    const [from, to] = [Number(found[1]), Number(found[2])];
    if (from > to)
      throw new ConfigError(`${where}: "${pattern}": ${to} is below ${from}: a range rises, {4..7}`);
    tokens.push(...plain(pattern.slice(end, found.index)), { from, to });
    end = found.index + found[0].length;
  }
  return [...tokens, ...plain(pattern.slice(end))];
}

/** Where what matches a token at a place ends; undefined where it does not match. */
function endOf(token: Exclude<Token, 'text'>, name: string, at: number): number | undefined {
  if (token === 'character') return at < name.length ? at + 1 : undefined;
  if ('is' in token) return name.startsWith(token.is, at) ? at + token.is.length : undefined;
  const digits = /^\d*/.exec(name.slice(at))?.[0] ?? '';
  // Not the end of a longer number.
  const isWhole = digits !== '' && !/\d/.test(name.charAt(at - 1));
  return isWhole && Number(digits) >= token.from && Number(digits) <= token.to
    ? at + digits.length
    : undefined;
}

/** The first match of what stands between two stars is as good as any later one, so only the last star moves. */
function fits(tokens: readonly Token[], name: string): boolean {
  let [token, at] = [0, 0];
  let star: { readonly token: number; at: number } | undefined;
  while (at < name.length || token < tokens.length) {
    const next = tokens[token];
    if (next === 'text') {
      star = { token: token + 1, at };
      token++;
      continue;
    }
    const end = next === undefined ? undefined : endOf(next, name, at);
    if (end !== undefined) {
      at = end;
      token++;
    } else if (star !== undefined && star.at < name.length) {
      star.at++;
      at = star.at;
      token = star.token;
    } else return false;
  }
  return true;
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
