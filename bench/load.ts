/**
 * `npm run bench -- load FILE.gguf`: time and memory of loading an LLM from its GGUF file, and from the folders that
 * palkit writes of it, float32 and float16. Measured on the compiled code, which `npm run build` makes, since the
 * compiler of `tsx` is 30 MB by itself.
 */
import { existsSync } from 'node:fs';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { parseArgs } from 'node:util';
import { formatTable } from '../src/cli/terminal/table.ts';
import { loadLlm, saveLlm } from '../src/llm/weights.ts';
import { fail, measure } from './measure.ts';

interface Loading {
  readonly ms: number;
  /** Of the parameters in float32, of the process at its peak, and of the process before anything was loaded. */
  readonly weightsMB: number;
  readonly peakMB: number;
  readonly beforeMB: number;
}

const { positionals, values } = parseArgs({
  allowPositionals: true,
  options: { json: { type: 'boolean', default: false } },
});
const [, model] = positionals;
if (model === undefined || !existsSync(model)) fail('usage: npm run bench -- load FILE.gguf');
if (!existsSync('dist/index.js')) fail('dist is not there: npm run build');

const script = `
  import { readFileSync } from 'node:fs';
  import { loadLlm } from ${JSON.stringify(resolve('dist/index.js'))};
  const peakMB = () => Number(/VmHWM:\\s*(\\d+)/.exec(readFileSync('/proc/self/status', 'utf8'))[1]) * 1024 / 1e6;
  const beforeMB = peakMB();
  const start = performance.now();
  const { parameters } = await loadLlm(process.argv[1]);
  const ms = performance.now() - start;
  let bytes = 0;
  for (const { data } of parameters.values()) bytes += data.byteLength;
  console.log(JSON.stringify({ ms, weightsMB: bytes / 1e6, peakMB: peakMB(), beforeMB }));
`;
const load = (path: string) => measure<Loading>('node', ['--input-type=module', '--eval', script, path]);

const folder = await mkdtemp(join(tmpdir(), 'palkit-load-'));
try {
  const llm = await loadLlm(model);
  await saveLlm(join(folder, 'float32'), llm);
  await saveLlm(join(folder, 'float16'), llm, { half: true });
  const results = [
    { from: 'GGUF', ...load(model) },
    { from: 'safetensors, float32', ...load(join(folder, 'float32')) },
    { from: 'safetensors, float16', ...load(join(folder, 'float16')) },
  ].map((result) => ({
    ...result,
    ratio: result.peakMB / result.weightsMB,
    ratioOfGrowth: (result.peakMB - result.beforeMB) / result.weightsMB,
  }));
  const rows = results.map(({ from, ms, weightsMB, peakMB, ratio, ratioOfGrowth }) => [
    from,
    Math.round(ms),
    Math.round(weightsMB),
    Math.round(peakMB),
    ratio.toFixed(2),
    ratioOfGrowth.toFixed(2),
  ]);
  const header = ['from', 'ms', 'weights MB', 'peak MB', 'peak / weights', 'growth / weights'];
  const table = values.json
    ? JSON.stringify({ benchmark: 'load', model, results })
    : formatTable(header, rows);
  process.stdout.write(`${table}\n`);
} finally {
  await rm(folder, { recursive: true });
}
