/** Loads and prints configuration files. */
import { dirname, isAbsolute, join, normalize } from 'node:path';
import { stringify } from 'yaml';
import type { z } from 'zod';
import { ConfigError, configError } from './configError.ts';
import { explainIssue } from './explain.ts';
import type { LmExperiment } from './lmSchema.ts';
import { locate as locateFile } from './locate.ts';
import { applyOverrides } from './overrides.ts';
import { type Experiment, experimentSchema } from './schema.ts';
import { mergeTrees, parseTree, plainValue, readSource, type Tree } from './yamlTree.ts';

/** How many files may stand behind one another by `extends`. */
const longestChain = 10;

/**
 * Loads an experiment: the file, the files it extends, the overrides, the defaults.
 * @param path a YAML file; `extends: ./other.yaml` in it merges maps over the other's and replaces lists
 * @param overrides `path.to.field=value`, applied in order
 * @returns the experiment, and for people where it came from: the files and overrides
 * @throws ConfigError listing every problem with file, line and column
 */
export async function loadExperiment(
  path: string,
  overrides: readonly string[] = [],
): Promise<{ experiment: Experiment; source: string }> {
  const { tree, files } = await readExtended(locateFile(path), []);
  const [file = path, ...extended] = files;
  const notes = [
    ...extended.map((base) => `extends ${base}`),
    ...overrides.map((override) => `--set ${override}`),
  ];
  return {
    experiment: validate(experimentSchema, applyOverrides(experimentSchema, tree, overrides)),
    source: notes.length === 0 ? file : `${file} (${notes.join('; ')})`,
  };
}

/**
 * Loads any other YAML file.
 * @param overrides `path.to.field=value`, applied in order
 * @throws ConfigError listing every problem with file, line and column
 */
export async function loadYaml<S extends z.ZodType>(
  path: string,
  schema: S,
  overrides: readonly string[] = [],
): Promise<z.output<S>> {
  return validate(schema, applyOverrides(schema, await readTree(path), overrides));
}

/** The experiment as YAML with every default written out. Loading it gives the same experiment. */
export function formatExperiment(experiment: Experiment | LmExperiment): string {
  return stringify(experiment, { lineWidth: 0, aliasDuplicateObjects: false });
}

async function readTree(path: string): Promise<Tree> {
  const source = await readSource(path);
  const tree = parseTree(source, source.text ?? '');
  if (tree === null) throw new ConfigError(`${path}: is empty`);
  return tree;
}

/** The file merged over what it extends; the files, the first one first. */
async function readExtended(
  path: string,
  chain: readonly string[],
): Promise<{ tree: Tree; files: string[] }> {
  const tree = await readTree(path);
  const base = tree.kind === 'map' ? tree.entries.get('extends') : undefined;
  if (tree.kind !== 'map' || base === undefined) return { tree, files: [path] };
  const fail = (what: string) => configError([{ place: base.place, path: ['extends'], what }]);
  if (
    base.kind !== 'scalar' ||
    typeof base.value !== 'string' ||
    base.value === '' ||
    isAbsolute(base.value)
  ) {
    throw fail('expected the path of another file, relative to this one');
  }
  const files = [...chain, normalize(path)];
  const basePath = join(dirname(path), base.value);
  if (files.includes(basePath)) throw fail(`goes in a circle: ${[...files, basePath].join(' -> ')}`);
  if (files.length >= longestChain) throw fail(`more than ${longestChain} files extend each other`);
  const below = await readExtended(basePath, files).catch((error: unknown) => {
    const missing = error instanceof ConfigError && error.message.startsWith(`${basePath}: `);
    throw missing ? fail(error.message) : error;
  });
  const entries = new Map(tree.entries);
  entries.delete('extends');
  return { tree: mergeTrees(below.tree, { ...tree, entries }), files: [path, ...below.files] };
}

function validate<S extends z.ZodType>(schema: S, tree: Tree): z.output<S> {
  const result = schema.safeParse(plainValue(tree));
  if (result.success) return result.data;
  throw configError(result.error.issues.flatMap((issue) => explainIssue(schema, tree, issue)));
}
