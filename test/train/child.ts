/** Trains a configuration in a process of its own, to be killed. Prints the hash of the trained weights. */
import { createHash } from 'node:crypto';
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { loadExperiment } from '../../src/config/load.ts';
import { runTraining } from '../../src/train/run.ts';

const [path = '', ...overrides] = process.argv.slice(2);
const { experiment } = await loadExperiment(path, overrides);
const notes: string[] = [];
await runTraining(experiment, {
  watch: {
    note: (text) => notes.push(text),
    progress: () => ({ update: () => undefined, stop: () => undefined }),
  },
  resume: true,
  evaluate: false,
});
const hash = createHash('sha256');
for (const file of ['model.safetensors', 'streams.safetensors']) {
  hash.update(await readFile(join(experiment.run.dir, 'model', file)));
}
console.log(JSON.stringify({ hash: hash.digest('hex'), notes }));
