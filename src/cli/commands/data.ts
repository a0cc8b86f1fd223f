/** `palkit data`: what datasets there are, building the embedded ones, and what training makes of them. */
import { existsSync } from 'node:fs';
import { readdir, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { defineCommand } from 'citty';
import { z } from 'zod';
import { loadYaml } from '../../config/load.ts';
import { locate } from '../../config/locate.ts';
import { didYouMean } from '../../config/nearest.ts';
import { readDatasetManifest, splits } from '../../data/dataset.ts';
import type { DatasetSummary } from '../../data/manifest.ts';
import { buildSoundWorld, soundWorldSettings } from '../../data/soundWorld/build.ts';
import { buildSpokenPrompts, spokenPromptsSettings } from '../../data/spokenPrompts/build.ts';
import { repeated } from '../arguments.ts';
import { UsageError } from '../run.ts';
import { progressBar } from '../terminal/progress.ts';
import { formatTable } from '../terminal/table.ts';
import { show } from './dataShow.ts';

type Build = (folder: string, onProgress: (fraction: number) => void) => Promise<DatasetSummary>;

const common = { description: z.string(), licence: z.string() };

/** By the builder that datasets/<name>.yaml names: its settings checked, ready to run. */
const builders: Readonly<Record<string, (path: string, overrides: readonly string[]) => Promise<Build>>> = {
  'sound-world': async (path, overrides) => {
    const schema = z.strictObject({
      ...common,
      builder: z.literal('sound-world'),
      settings: soundWorldSettings.prefault({}),
    });
    const { settings } = await loadYaml(path, schema, overrides);
    return (folder, onProgress) => buildSoundWorld(folder, settings, onProgress);
  },
  'spoken-prompts': async (path, overrides) => {
    const schema = z.strictObject({
      ...common,
      builder: z.literal('spoken-prompts'),
      settings: spokenPromptsSettings.prefault({}),
    });
    const { settings } = await loadYaml(path, schema, overrides);
    return (folder, onProgress) => buildSpokenPrompts(folder, settings, onProgress);
  },
};

const json = { type: 'boolean', description: 'Print one JSON document on standard output' } as const;

const build = defineCommand({
  meta: { name: 'build', description: 'Build an embedded dataset' },
  args: {
    name: { type: 'positional', required: true, description: 'Its name; `palkit data list` shows them' },
    dir: {
      type: 'string',
      description: 'Folder that is written; data/<name> when left out',
      valueHint: 'folder',
    },
    set: {
      type: 'string',
      description: 'Change a field of datasets/<name>.yaml; may be given several times',
      valueHint: 'settings.field=value',
    },
    json,
  },
  async run({ args, rawArgs }) {
    const { name } = args;
    const names = await datasetNames();
    if (!names.includes(name)) {
      throw new UsageError(
        `there is no dataset "${name}"${didYouMean(name, names)}\nDatasets: ${names.join(', ')}`,
      );
    }
    const { builder } = await readDatasetManifest(name);
    const prepare = builders[builder];
    if (prepare === undefined)
      throw new UsageError(`dataset "${name}": the builder "${builder}" is not there`);
    const buildInto = await prepare(locate(`datasets/${name}.yaml`), repeated(rawArgs, 'set'));
    const folder = args.dir ?? join('data', name);
    await refuseOthers(folder, name);
    const progress = progressBar({ label: `building ${name}`, total: 100, json: args.json === true });
    const summary = await buildInto(folder, (fraction) =>
      progress.update(Math.floor(100 * fraction)),
    ).finally(progress.stop);
    process.stdout.write(args.json ? `${JSON.stringify(summary)}\n` : `${describe(summary)}\n`);
  },
});

/** Building replaces the folder, so that it must not be anything but an earlier build. */
async function refuseOthers(folder: string, name: string): Promise<void> {
  if (!existsSync(folder)) return;
  const inside = await readdir(folder).catch(() => ['?']);
  if (inside.length === 0) return;
  const text = await readFile(join(folder, 'dataset.json'), 'utf8').catch(() => '');
  if (text.includes(`"name": ${JSON.stringify(name)}`)) return;
  throw new UsageError(
    `${folder} is there already and is not a build of ${name}, so it is left alone; choose another --dir`,
  );
}

function describe({ name, folder, counts }: DatasetSummary): string {
  const categories = [...new Set(Object.values(counts).flatMap((own) => Object.keys(own)))];
  const rows = Object.entries(counts).map(([split, own]) => [
    split,
    ...categories.map((category) => own[category] ?? 0),
    Object.values(own).reduce((total, count) => total + count, 0),
  ]);
  return `${name} stands in ${folder}: questions\n\n${formatTable(['split', ...categories, 'all'], rows)}`;
}

const list = defineCommand({
  meta: { name: 'list', description: 'Show the datasets' },
  args: { json },
  async run({ args }) {
    const names = await datasetNames();
    const datasets = await Promise.all(
      names.map(async (name) => {
        const { description, licence } = await readDatasetManifest(name);
        const folder = join('data', name);
        const built = splits.every((split) => existsSync(join(folder, `${split}.jsonl`)));
        return { name, description, licence, folder: built ? folder : null };
      }),
    );
    if (args.json) {
      process.stdout.write(`${JSON.stringify(datasets)}\n`);
      return;
    }
    const rows = datasets.map(({ name, description, licence, folder }) => [
      name,
      folder ?? `palkit data build ${name}`,
      licence,
      description,
    ]);
    process.stdout.write(`${formatTable(['dataset', 'where, or how to get it', 'licence', 'what'], rows)}\n`);
  },
});

/** The manifests in the working folder and those that palkit ships. */
async function datasetNames(): Promise<string[]> {
  const shipped = fileURLToPath(new URL('../../../datasets', import.meta.url));
  const files = await Promise.all(
    ['datasets', shipped].map((folder) => readdir(folder).catch((): string[] => [])),
  );
  const names = files
    .flat()
    .filter((file) => file.endsWith('.yaml'))
    .map((file) => file.slice(0, -'.yaml'.length));
  return [...new Set(names)].sort();
}

export const data = defineCommand({
  meta: { name: 'data', description: 'List the datasets, build the embedded ones, show examples of one' },
  subCommands: { build, list, show },
});
