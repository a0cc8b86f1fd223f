/** Which command is meant, and whether its arguments are what it takes. */
import { parseArgs } from 'node:util';
import type { ArgsDef, SubCommandsDef } from 'citty';
import { didYouMean } from '../config/nearest.ts';
import { UsageError } from './run.ts';

/** A command whatever its arguments. */
export type AnyCommand = Awaited<Exclude<SubCommandsDef[string], (...given: never[]) => unknown>>;

export interface Found {
  readonly command: AnyCommand;
  /** The names that led to it: `data`, `build`. */
  readonly names: readonly string[];
  /** What follows the names. */
  readonly rest: readonly string[];
  /** The names of its commands; empty for one that runs. */
  readonly subCommands: readonly string[];
}

/** What citty lets a command give as a value, a promise, or a function that imports it. */
export const resolved = async <T>(value: T | Promise<T> | (() => T) | (() => Promise<T>)): Promise<T> =>
  typeof value === 'function' ? (value as () => T | Promise<T>)() : value;

/**
 * Follows the names at the beginning of the arguments.
 * @throws UsageError for a name that is none, with the nearest one
 */
export async function findCommand(root: AnyCommand, given: readonly string[]): Promise<Found> {
  let command = root;
  const names: string[] = [];
  for (;;) {
    const subCommands: SubCommandsDef = (await resolved(command.subCommands)) ?? {};
    const known = Object.keys(subCommands);
    const rest = given.slice(names.length);
    const [next] = rest;
    if (known.length === 0 || next === undefined || next.startsWith('-')) {
      return { command, names, rest, subCommands: known };
    }
    if (!known.includes(next)) {
      const prefix = ['palkit', ...names].join(' ');
      const suggestion = didYouMean(next, known);
      throw new UsageError(
        `${prefix}: there is no command "${next}"${suggestion}\nCommands: ${known.join(', ')}`,
      );
    }
    command = (await resolved(subCommands[next])) as AnyCommand;
    names.push(next);
  }
}

/** The hint of a positional argument that stands for any number of them: the command finds all in `args._`. */
export const repeatable = '...';

/**
 * Checks the arguments of a command against what it declares.
 * @throws UsageError for an unknown option (with the nearest one), a missing value, or too many arguments
 */
export function checkArguments(name: string, given: readonly string[], declared: ArgsDef): void {
  const fail = (what: string) =>
    new UsageError(`palkit ${name}: ${what}\n\`palkit ${name} --help\` shows what it takes`);
  const options = Object.entries(declared).filter(([, { type }]) => type !== 'positional');
  const positionals = Object.entries(declared).filter(([, { type }]) => type === 'positional');
  const spellings = new Map(
    options.flatMap(([option, definition]) => {
      const alias = 'alias' in definition ? (definition.alias ?? []) : [];
      const negated = definition.type === 'boolean' && definition.default === true ? [`no-${option}`] : [];
      return [option, ...negated, ...(typeof alias === 'string' ? [alias] : alias)].map(
        (spelling): [string, ArgsDef[string]] => [spelling, definition],
      );
    }),
  );
  const { tokens } = parseArgs({
    args: [...given],
    options: Object.fromEntries(
      [...spellings].map(([spelling, { type }]) => [
        spelling,
        {
          type: type === 'boolean' ? ('boolean' as const) : ('string' as const),
          ...(spelling.length === 1 && { short: spelling }),
        },
      ]),
    ),
    strict: false,
    tokens: true,
    allowPositionals: true,
  });
  const repeats = positionals.some(([, definition]) => definition.valueHint === repeatable);
  let seen = 0;
  for (const token of tokens) {
    if (token.kind === 'positional' && ++seen > positionals.length && !repeats) {
      throw fail(`"${token.value}" is one argument too many`);
    }
    if (token.kind !== 'option') continue;
    const definition = spellings.get(token.name);
    if (definition === undefined) {
      const known = [...spellings.keys()]
        .filter((spelling) => spelling.length > 1)
        .map((option) => `--${option}`);
      throw fail(`there is no option ${token.rawName}${didYouMean(token.rawName, known)}`);
    }
    if (definition.type === 'boolean') {
      if (token.value !== undefined) throw fail(`${token.rawName} takes no value`);
    } else if (token.value === undefined || (!token.inlineValue && token.value.startsWith('-'))) {
      throw fail(`${token.rawName} needs a value`);
    } else if (definition.type === 'enum' && !(definition.options ?? []).includes(token.value)) {
      const choices = definition.options ?? [];
      const suggestion = didYouMean(token.value, choices);
      throw fail(`${token.rawName} takes one of ${choices.join(', ')}, not "${token.value}"${suggestion}`);
    }
  }
  const missing = positionals
    .slice(seen)
    .find(([, { required, default: own }]) => required !== false && own === undefined);
  if (missing !== undefined) throw fail(`${missing[0].toUpperCase()} is missing`);
  const named = new Set(tokens.flatMap((token) => (token.kind === 'option' ? [token.name] : [])));
  const absent = options.find(([name, { required }]) => required === true && !named.has(name));
  if (absent !== undefined) throw fail(`--${absent[0]} is missing`);
}

/** Every value of an option that may be given more than once: `--set a=1 --set b=2`. */
export function repeated(given: readonly string[], option: string): string[] {
  const { values } = parseArgs({
    args: [...given],
    options: { [option]: { type: 'string', multiple: true } },
    strict: false,
    allowPositionals: true,
  });
  const found = values[option];
  return Array.isArray(found) ? found.filter((value) => typeof value === 'string') : [];
}
