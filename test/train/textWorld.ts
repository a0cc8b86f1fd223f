/** A folder of sentences from a small grammar, and a language model that learns them in seconds. */
import { mkdtempSync } from 'node:fs';
import { mkdir, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { stringify } from 'yaml';
import { lmSchema } from '../../src/config/lmSchema.ts';
import { loadYaml } from '../../src/config/load.ts';
import { random } from '../../src/config/random.ts';

const does = { cat: 'sleeps', dog: 'barks', bird: 'sings', horse: 'runs', fish: 'swims' } as const;
const nouns = Object.keys(does) as (keyof typeof does)[];
const places = ['in the garden', 'by the river', 'under the roof', 'near the old mill', 'at the market'];
const colours = ['white', 'brown', 'grey', 'small', 'quick', 'quiet'];

function sentence(draws: ReturnType<typeof random>): string {
  const noun = draws.pick(nouns);
  return `The ${draws.pick(colours)} ${noun} ${does[noun]} ${draws.pick(places)} ${draws.integer(100)} times.`;
}

export interface TextWorld {
  readonly folder: string;
  readonly text: string;
  /** A configuration of `palkit lm`. */
  readonly config: string;
  experiment(...overrides: string[]): ReturnType<typeof loadYaml<typeof lmSchema>>;
  remove(): Promise<void>;
}

/** Writes text and configuration into a new folder. */
export async function makeTextWorld(): Promise<TextWorld> {
  const folder = mkdtempSync(join(tmpdir(), 'palkit-lm-'));
  const text = join(folder, 'text');
  await mkdir(text);
  for (let file = 0; file < 24; file++) {
    const draws = random(3, 'text', file);
    const paragraphs = Array.from({ length: 6 }, () =>
      Array.from({ length: 4 }, () => sentence(draws)).join(' '),
    );
    await writeFile(join(text, `${file}.txt`), `${paragraphs.join('\n\n')}\n`);
  }
  const config = join(folder, 'lm.yaml');
  await writeFile(
    config,
    stringify({
      name: 'small',
      run: { dir: join(folder, 'run') },
      corpus: { folders: [text], heldOut: 0.2, cache: join(folder, 'cache') },
      llm: {
        kind: 'new',
        vocabularySize: 320,
        hiddenSize: 16,
        intermediateSize: 32,
        layers: 2,
        heads: 2,
        initialDeviation: 0.1,
      },
      train: { sequenceLength: 16, batchSize: 4, steps: 3, learningRate: 0.01, threads: 1 },
      evaluate: { tokens: 600 },
    }),
  );
  return {
    folder,
    text,
    config,
    experiment: (...overrides) => loadYaml(config, lmSchema, overrides),
    remove: () => rm(folder, { recursive: true, force: true }),
  };
}
