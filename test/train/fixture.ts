/** A world small enough to be trained in seconds: a few clips, a random LLM with the embedded tokenizer. */
import { mkdtempSync } from 'node:fs';
import { mkdir, rm, writeFile } from 'node:fs/promises';
import { createRequire } from 'node:module';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { stringify } from 'yaml';
import { random } from '../../src/config/random.ts';
import { readManifest, writeManifest } from '../../src/data/manifest.ts';
import { buildSoundWorld } from '../../src/data/soundWorld/build.ts';
import { type DecoderConfig, parameterShapes } from '../../src/llm/config.ts';
import { plainLlama } from '../../src/llm/families.ts';
import { initialize } from '../../src/llm/initialize.ts';
import { loadTokenizer } from '../../src/llm/tokenizer.ts';
import { saveLlm } from '../../src/llm/weights.ts';
import type { ParameterSpec } from '../../src/tensor/parameters.ts';
import type { Watch } from '../../src/train/setup.ts';

/** Progress that nobody sees. */
export const noProgress: Watch['progress'] = () => ({ update: () => undefined, stop: () => undefined });

/** Tells nothing. */
export const silentWatch: Watch = { note: () => undefined, progress: noProgress };

export interface World {
  readonly folder: string;
  readonly dataset: string;
  readonly config: string;
  remove(): Promise<void>;
}

/**
 * Arguments of Node that train in a process of its own. The loader is imported: the command of tsx starts a second
 * process, which lives on when the first is killed.
 */
export const trainingChild: readonly string[] = [
  '--import',
  pathToFileURL(createRequire(import.meta.url).resolve('tsx')).href,
  'test/train/child.ts',
];

/** Writes dataset, LLM and configuration into a new folder. */
export async function makeWorld(over: Readonly<Record<string, unknown>> = {}): Promise<World> {
  const folder = mkdtempSync(join(tmpdir(), 'palkit-'));
  const dataset = join(folder, 'data');
  const small = { rounds: 1, presencePerClass: 1, describe: 4 };
  await buildSoundWorld(dataset, { seed: 3, splits: { train: small, validation: small, test: small } });
  await keepFew(dataset);
  const tokenizer = await loadTokenizer('models/sound-world');
  const config: DecoderConfig = {
    ...plainLlama,
    hiddenSize: 32,
    intermediateSize: 48,
    layers: 4,
    heads: 4,
    keyValueHeads: 2,
    headWidth: 8,
    vocabularySize: tokenizer.size,
    tieWordEmbeddings: true,
    maxPositions: 256,
    bosTokenId: 0,
    eosTokenIds: [1],
    padTokenId: 2,
  };
  const specs = new Map(
    [...parameterShapes(config)].map(([name, shape]): [string, ParameterSpec] => [
      name,
      shape.length === 1 ? { shape, initial: 'ones' } : { shape, initial: 'normal', deviation: 0.1 },
    ]),
  );
  const llm = join(folder, 'llm');
  await saveLlm(llm, { config, parameters: initialize(specs, (name) => random(1, name)), tokenizer });
  const stage = { steps: 6, learningRate: 0.003, warmupSteps: 2 };
  const experiment = {
    name: 'small',
    seed: 5,
    run: { dir: join(folder, 'run') },
    llm: { from: llm },
    data: { dataset: 'sound-world', dir: dataset },
    streams: [
      {
        name: 'timbre',
        encoder: 'timbre',
        connector: { kind: 'mlp', hidden: 16, perLayer: true },
        integration: { mode: 'attention-only', startLayer: 1 },
      },
    ],
    train: {
      batchSize: 4,
      checkpoint: { everySteps: 2, keep: 2 },
      stages: [
        { name: 'connector', trainable: ['connector.*'], data: { kinds: ['choice'] }, ...stage },
        { name: 'closed', trainable: ['connector.*', 'model.*'], data: { kinds: ['choice'] }, ...stage },
        { name: 'all', trainable: ['connector.*', 'model.*'], ...stage },
      ],
    },
    eval: { open: { maxNewTokens: 4 } },
    ...over,
  };
  const path = join(folder, 'config.yaml');
  await mkdir(folder, { recursive: true });
  await writeFile(path, stringify(experiment));
  return { folder, dataset, config: path, remove: () => rm(folder, { recursive: true, force: true }) };
}

/** A dozen clips a split: features take time. */
async function keepFew(dataset: string): Promise<void> {
  for (const split of ['train', 'validation', 'test']) {
    const path = join(dataset, `${split}.jsonl`);
    const examples = await readManifest(path);
    const clips = new Set(
      examples.filter((example) => example.kind === 'open').map((example) => example.audio),
    );
    for (const example of examples) if (clips.size < 12) clips.add(example.audio);
    await writeManifest(
      path,
      examples.filter((example) => clips.has(example.audio)),
    );
  }
}
