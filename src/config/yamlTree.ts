/** YAML read as data from a stranger: a tree of plain values that knows where each of them stands. */
import { readdir, readFile, stat } from 'node:fs/promises';
import { basename, dirname, join } from 'node:path';
import { type Document, isAlias, isMap, isScalar, isSeq, type ParsedNode, parseDocument } from 'yaml';
import { ConfigError, clip, configError, type Place, type Problem, type Source } from './configError.ts';
import { nearest } from './nearest.ts';

/** A value of a YAML text. */
export type Tree = {
  /** Where the value begins. */
  readonly place: Place;
  /** Where its name begins, for the value of a map. */
  readonly namePlace?: Place;
} & (
  | { readonly kind: 'map'; readonly entries: ReadonlyMap<string, Tree> }
  | { readonly kind: 'list'; readonly items: readonly Tree[] }
  | { readonly kind: 'scalar'; readonly value: unknown }
);

const limits = { bytes: 1_000_000, depth: 64, nodes: 100_000, aliases: 100 };

/** Names that JavaScript objects give a meaning to. */
const prototypeNames = new Set(['__proto__', 'constructor', 'prototype']);

/** What is wrong with a name of a field, wherever it came from; undefined for a good one. */
export function refusal(name: string): string | undefined {
  return prototypeNames.has(name) ? `"${name}" is not allowed as a name` : undefined;
}

/**
 * Reads a file as UTF-8.
 * @throws ConfigError when it is missing (with the names that are there), too large, or not text
 */
export async function readSource(path: string): Promise<Source> {
  const fail = (what: string) => new ConfigError(`${path}: ${what}`);
  try {
    const status = await stat(path);
    if (status.isDirectory()) throw fail(`is a folder${await namesIn(path)}`);
    if (!status.isFile()) throw fail('is not a regular file');
    if (status.size > limits.bytes) {
      throw fail(`has ${status.size} bytes; a YAML file may have ${limits.bytes}`);
    }
    const text = new TextDecoder('utf-8', { fatal: true }).decode(await readFile(path));
    return { label: path, text };
  } catch (error) {
    if (error instanceof ConfigError) throw error;
    const code = (error as NodeJS.ErrnoException).code;
    if (code === 'ERR_ENCODING_INVALID_ENCODED_DATA') throw fail('is not UTF-8 text');
    if (code !== 'ENOENT' && code !== 'ENOTDIR') throw fail(`cannot be read (${code ?? error})`);
    throw fail(`there is no such file${await namesNear(path)}`);
  }
}

/** The YAML files beside a missing one. */
async function namesNear(path: string): Promise<string> {
  const folder = dirname(path);
  const names = await yamlNames(folder);
  const near = nearest(basename(path).replace(/\.ya?ml$/, ''), names.map(withoutEnding));
  const full = names.find((name) => withoutEnding(name) === near);
  if (full !== undefined) return ` (did you mean "${join(folder, full)}"?)`;
  return namesIn(folder);
}

async function namesIn(folder: string): Promise<string> {
  const names = await yamlNames(folder);
  if (names.length === 0) return '';
  const more = names.length > 20 ? ', ...' : '';
  return `; ${folder} has ${names.slice(0, 20).join(', ')}${more}`;
}

const withoutEnding = (name: string) => name.replace(/\.ya?ml$/, '');

async function yamlNames(folder: string): Promise<string[]> {
  const names = await readdir(folder).catch((): string[] => []);
  return names
    .filter((name) => /\.ya?ml$/.test(name))
    .map((name) => clip(name, 100))
    .sort();
}

/**
 * Parses YAML 1.2 (core schema). Custom tags, duplicate and prototype names, and texts that grow under expansion
 * are refused.
 * @returns null for an empty text
 * @throws ConfigError listing every problem
 */
export function parseTree(source: Source, text: string): Tree | null {
  const at = (offset: number): Place => ({ source, offset });
  let document: Document.Parsed;
  try {
    document = parseDocument(text, {
      version: '1.2',
      schema: 'core',
      resolveKnownTags: false,
      stringKeys: true,
      prettyErrors: false,
      logLevel: 'error',
    });
  } catch (error) {
    // The parser is recursive.
    if (error instanceof RangeError) throw new ConfigError(`${source.label}: is nested too deeply`);
    throw error;
  }
  const problems: Problem[] = [...document.errors, ...document.warnings].map(({ message, code, pos }) => ({
    place: at(pos[0]),
    path: [],
    what: code === 'TAG_RESOLVE_FAILED' ? `tags are not allowed (${message})` : `not YAML: ${message}`,
  }));
  if (problems.length > 0) throw configError(problems);
  if (document.contents === null) return null;
  const tree = convert(document, at, problems);
  if (problems.length > 0) throw configError(problems);
  return isEmpty(tree) ? null : tree;
}

const isEmpty = (tree: Tree) => tree.kind === 'scalar' && tree.value === null;

function convert(document: Document.Parsed, at: (offset: number) => Place, problems: Problem[]): Tree {
  let nodes = 0;
  let aliases = 0;

  function visit(node: ParsedNode | null, path: readonly string[], namePlace: Place | undefined): Tree {
    const place = node === null && namePlace !== undefined ? namePlace : at(node?.range[0] ?? 0);
    const common = { place, ...(namePlace && { namePlace }) };
    const stop = (what: string) => configError([{ place, path, what }]);
    if (++nodes > limits.nodes) throw stop(`more than ${limits.nodes} values`);
    if (path.length > limits.depth) throw stop(`more than ${limits.depth} levels`);
    if (isAlias(node)) {
      if (++aliases > limits.aliases) throw stop(`more than ${limits.aliases} aliases`);
      const target = node.resolve(document);
      if (target === undefined) throw stop(`the alias *${node.source} has no anchor`);
      return visit(target as ParsedNode, path, namePlace);
    }
    if (isMap(node)) {
      const entries = new Map<string, Tree>();
      for (const { key, value } of node.items) {
        const name = isScalar(key) ? String(key.value) : '';
        const ownPlace = at(key.range[0]);
        const what = refusal(name);
        if (what !== undefined) problems.push({ place: ownPlace, path: [...path, name], what });
        else entries.set(name, visit(value, [...path, name], ownPlace));
      }
      return { ...common, kind: 'map', entries };
    }
    if (isSeq(node)) {
      const items = node.items.map((item, index) =>
        visit(item as ParsedNode, [...path, String(index)], undefined),
      );
      return { ...common, kind: 'list', items };
    }
    return { ...common, kind: 'scalar', value: isScalar(node) ? node.value : null };
  }

  return visit(document.contents, [], undefined);
}

/** The tree as plain objects, arrays and scalars. */
export function plainValue(tree: Tree): unknown {
  switch (tree.kind) {
    case 'map':
      return Object.fromEntries([...tree.entries].map(([name, entry]) => [name, plainValue(entry)]));
    case 'list':
      return tree.items.map(plainValue);
    case 'scalar':
      return tree.value;
  }
}

/** The deepest value on a path, and how many steps of the path lead to it. */
export function locate(tree: Tree, path: readonly PropertyKey[]): { tree: Tree; steps: number } {
  let found = tree;
  for (const [steps, step] of path.entries()) {
    const next =
      found.kind === 'map'
        ? found.entries.get(String(step))
        : found.kind === 'list'
          ? found.items[Number(step)]
          : undefined;
    if (next === undefined) return { tree: found, steps };
    found = next;
  }
  return { tree: found, steps: path.length };
}

/**
 * Puts one map over another: maps merge, everything else replaces. A map of another `kind` or `mode` replaces as
 * well, because the fields of the old kind would mean nothing in it.
 */
export function mergeTrees(base: Tree, over: Tree): Tree {
  if (base.kind !== 'map' || over.kind !== 'map') return over;
  const differs = ['kind', 'mode'].some((name) => {
    const [a, b] = [base.entries.get(name), over.entries.get(name)];
    return a?.kind === 'scalar' && b?.kind === 'scalar' && a.value !== b.value;
  });
  if (differs) return over;
  const entries = new Map(base.entries);
  for (const [name, entry] of over.entries) {
    const below = entries.get(name);
    entries.set(name, below === undefined ? entry : mergeTrees(below, entry));
  }
  return { ...over, entries };
}
