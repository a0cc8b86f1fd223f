/** What the schema complains about, in words for the person who wrote the file. */
import type { z } from 'zod';
import { clip, type Problem } from './configError.ts';
import { descriptionAt, kindOf, kindsWith, namesAt, schemasAt, takes } from './fields.ts';
import { didYouMean } from './nearest.ts';
import { locate, plainValue, type Tree } from './yamlTree.ts';

type Issue = z.core.$ZodIssue;

/** The problems behind an issue, each with its place in the tree. */
export function explainIssue(schema: z.core.$ZodType, tree: Tree, issue: Issue): Problem[] {
  if (issue.code === 'unrecognized_keys') {
    return issue.keys.map((name) => {
      const path = [...issue.path, name];
      return { path, place: placeOf(tree, path, true), what: unknownField(schema, tree, issue.path, name) };
    });
  }
  const meant = issue.code === 'invalid_union' ? meantBranch(issue) : undefined;
  if (meant !== undefined) {
    return meant.flatMap((inner) =>
      explainIssue(schema, tree, { ...inner, path: [...issue.path, ...inner.path] }),
    );
  }
  const { path } = issue;
  const { steps } = locate(tree, path);
  if (steps < path.length) return [{ path, place: placeOf(tree, path, true), what: missing(schema, issue) }];
  const what = explainValue(schema, issue, plainValue(locate(tree, path).tree));
  return [{ path, place: placeOf(tree, path, issue.code === 'custom'), what }];
}

/** What is wrong with the alternative of a union that was meant: the one that is of the value's shape, a map, a list or a number. */
function meantBranch({ errors }: Extract<Issue, { code: 'invalid_union' }>): Issue[] | undefined {
  const isOtherShape = ({ code, path }: Issue) =>
    (code === 'invalid_type' || code === 'invalid_value') && path.length === 0;
  return errors.find((branch) => branch.length > 0 && !branch.some(isOtherShape));
}

/** Where a path stands, or the deepest part of it that does. */
function placeOf(tree: Tree, path: readonly PropertyKey[], byName: boolean): Problem['place'] {
  const { tree: found, steps } = locate(tree, path);
  return (byName || steps < path.length ? found.namePlace : undefined) ?? found.place;
}

/** Says which names there are where one is unknown, or which kind it belongs to where it would be ignored. */
export function unknownField(
  schema: z.core.$ZodType,
  tree: Tree,
  path: readonly PropertyKey[],
  name: string,
): string {
  const holder = plainValue(locate(tree, path).tree);
  const names = namesAt(schema, path, holder);
  const kinds = kindsWith(schema, path, name, holder);
  if (kinds.length > 0) {
    const [field = ''] = kinds[0]?.split(':') ?? [];
    const own = (holder as Readonly<Record<string, unknown>>)[field];
    const kind = kindOf(schema, path, holder) ?? `${field}: ${own}`;
    return `has no effect with ${kind}; only with ${kinds.join(' or ')}`;
  }
  const suggestion = didYouMean(name, names);
  return suggestion === '' ? `unknown field; known here: ${names.join(', ')}` : `unknown field${suggestion}`;
}

function missing(schema: z.core.$ZodType, issue: Issue): string {
  const about = descriptionAt(schema, issue.path);
  const choices = issue.code === 'invalid_union' ? optionsOf(issue) : [];
  if (choices.length > 0) return `is missing; one of ${choices.join(', ')}`;
  return about === undefined ? 'is missing' : `is missing (${about})`;
}

function explainValue(schema: z.core.$ZodType, issue: Issue, value: unknown): string {
  const found = `found ${describe(value)}`;
  switch (issue.code) {
    case 'invalid_type': {
      const wanted = schemasAt(schema, issue.path)[0];
      const expected = { int: 'whole number', object: 'map', record: 'map', array: 'list', string: 'text' }[
        issue.expected as string
      ];
      const named = wanted === undefined ? undefined : takes(wanted);
      const hint =
        typeof value === 'string' && value.trim() !== '' && Number.isFinite(Number(value))
          ? '; without quotes?'
          : '';
      return `expected ${withArticle(named ?? expected ?? issue.expected)}, ${found}${hint}`;
    }
    case 'invalid_value':
      return notAmong(issue.values.map(String), value);
    case 'invalid_union': {
      const [wanted] = schemasAt(schema, issue.path);
      const options = optionsOf(issue);
      if (options.length === 0 && wanted !== undefined)
        return `expected ${withArticle(takes(wanted))}, ${found}`;
      return notAmong(options, value);
    }
    case 'too_small':
      return `${bound(issue.origin, issue.minimum, issue.inclusive !== false ? 'at least' : 'more than')}, ${found}`;
    case 'too_big':
      return `${bound(issue.origin, issue.maximum, issue.inclusive !== false ? 'at most' : 'less than')}, ${found}`;
    case 'invalid_format':
      return `${issue.message}, ${found}`;
    default:
      return issue.message;
  }
}

function optionsOf(issue: Issue): string[] {
  if (issue.code !== 'invalid_union') return [];
  if (!('options' in issue) || !Array.isArray(issue.options)) return [];
  // A kind that may be left out is among them as undefined.
  return issue.options.filter((option) => option !== undefined).map(String);
}

function notAmong(options: readonly string[], value: unknown): string {
  const suggestion = typeof value === 'string' ? didYouMean(value, options) : '';
  const expected = options.length === 1 ? options[0] : `one of ${options.join(', ')}`;
  return `expected ${expected}; found ${describe(value)}${suggestion}`;
}

function bound(origin: string, limit: number | bigint, relation: string): string {
  const unit = {
    array: limit === 1 ? ' entry' : ' entries',
    string: limit === 1 ? ' character' : ' characters',
  }[origin];
  return `expected ${relation} ${limit}${unit ?? ''}`;
}

function withArticle(noun: string): string {
  return noun === 'text' || noun.includes('|') ? noun : `a ${noun}`;
}

/** A value as the error quotes it. */
function describe(value: unknown): string {
  if (value === null) return 'nothing';
  if (typeof value === 'string') return clip(JSON.stringify(value), 60);
  if (Array.isArray(value)) return value.length === 0 ? 'an empty list' : 'a list';
  return typeof value === 'object' ? 'a map' : String(value);
}
