/** `--set path.to.field=value`: single fields changed from the command line. */
import type { z } from 'zod';
import { configError, type Problem, type Source } from './configError.ts';
import { unknownField } from './explain.ts';
import { namesAt, schemasAt, shapeOf } from './fields.ts';
import { parseTree, refusal, type Tree } from './yamlTree.ts';

/**
 * Applies assignments to a tree; later ones win. A value is YAML and replaces what was there.
 * @param assignments `train.stages.0.steps=10` or `train.stages[0].steps=10`
 * @throws ConfigError listing every assignment with a path that the schema does not have
 */
export function applyOverrides(schema: z.core.$ZodType, tree: Tree, assignments: readonly string[]): Tree {
  const problems: Problem[] = [];
  let result = tree;
  for (const assignment of assignments) {
    const source: Source = { label: `--set ${assignment}`, text: null };
    const fail = (path: readonly PropertyKey[], what: string) => {
      problems.push({ place: { source, offset: 0 }, path, what });
    };
    const split = assignment.indexOf('=');
    if (split <= 0) {
      fail([], 'expected path.to.field=value');
      continue;
    }
    const path = parsePath(assignment.slice(0, split));
    if (path === null) {
      fail([], 'the path is not of the form path.to.field or path.0.field or path[0].field');
      continue;
    }
    const refused = path.map(refusal).find((what) => what !== undefined);
    if (refused !== undefined) {
      fail(path, refused);
      continue;
    }
    const place = { source, offset: 0 };
    const value =
      parseTree(source, assignment.slice(split + 1)) ?? ({ kind: 'scalar', value: null, place } as const);
    const outcome = assign(schema, result, path, 0, value);
    if ('what' in outcome) fail(outcome.path, outcome.what);
    else result = outcome;
  }
  if (problems.length > 0) throw configError(problems);
  return result;
}

/** The steps of a path; null for one that is malformed. */
function parsePath(text: string): string[] | null {
  const steps = text
    .trim()
    .replace(/\[(\d{1,9})\]/g, '.$1')
    .split('.');
  return steps.every((step) => /^[A-Za-z0-9_-]{1,200}$/.test(step)) ? steps : null;
}

interface Refused {
  /** The path up to the step that is wrong. */
  readonly path: readonly string[];
  readonly what: string;
}

/** The tree with the value at `path[depth ...]`, or what is wrong with the path. */
function assign(
  schema: z.core.$ZodType,
  tree: Tree,
  path: readonly string[],
  depth: number,
  value: Tree,
): Tree | Refused {
  const name = path[depth];
  if (name === undefined) return value;
  const walked = path.slice(0, depth);
  const here = schemasAt(schema, walked)[0];
  const shape = here === undefined ? 'value' : shapeOf(here, tree.kind);
  const where = walked.join('.');
  const refuse = (what: string): Refused => ({ path: path.slice(0, depth + 1), what });
  if (shape === 'value') return refuse(`${where} is a single value without fields`);
  if (shape === 'list') {
    const items = tree.kind === 'list' ? tree.items : [];
    const item = /^\d+$/.test(name) ? items[Number(name)] : undefined;
    if (item === undefined) {
      const entries =
        items.length === 1 ? '1 entry (0)' : `${items.length} entries (0 to ${items.length - 1})`;
      return refuse(items.length === 0 ? `${where} is an empty list` : `${where} has ${entries}`);
    }
    const changed = assign(schema, item, path, depth + 1, value);
    if ('what' in changed) return changed;
    const next = items.map((other, index) => (index === Number(name) ? changed : other));
    return { place: tree.place, kind: 'list', items: next };
  }
  const entries = tree.kind === 'map' ? tree.entries : new Map<string, Tree>();
  if (!namesAt(schema, walked).includes(name)) {
    return refuse(unknownField(schema, { place: tree.place, kind: 'map', entries }, walked, name));
  }
  const below: Tree = entries.get(name) ?? { place: value.place, kind: 'scalar', value: null };
  const changed = assign(schema, below, path, depth + 1, value);
  if ('what' in changed) return changed;
  const namePlace = tree.namePlace && { namePlace: tree.namePlace };
  return { place: tree.place, ...namePlace, kind: 'map', entries: new Map(entries).set(name, changed) };
}
