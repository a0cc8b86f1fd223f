/**
 * `npm run bench -- optimizer-step [--shape SHAPE] [--steps N] [--rounds N] [--peers] [--python FILE] [--json]`: the norm
 * of all gradients and one AdamW update, by the WebAssembly kernel, by a plain loop, and in PyTorch.
 */
import { parseArgs } from 'node:util';
import { formatTable } from '../src/cli/terminal/table.ts';
import { parameterShapes } from '../src/llm/config.ts';
import { sizeOf } from '../src/tensor/tensor.ts';
import { alternate, type Contender, formatRatio, palkit } from './alternate.ts';
import { benchShapeName } from './measure.ts';
import { benchShapes } from './models.ts';

const { values } = parseArgs({
  allowPositionals: true,
  options: {
    shape: { type: 'string', default: 'smollm2-135m' },
    steps: { type: 'string', default: '8' },
    rounds: { type: 'string', default: '2' },
    python: { type: 'string', default: 'python3' },
    peers: { type: 'boolean', default: false },
    json: { type: 'boolean', default: false },
  },
});
const shape = benchShapeName(values.shape);
const { llm } = benchShapes[shape];
const parameters = [...parameterShapes(llm).values()].reduce((total, shape) => total + sizeOf(shape), 0);
const own = (kind: string) =>
  palkit(`palkit, ${kind}`, ['bench/optimizerStepOnce.ts', shape, kind, values.steps]);
const torch = (kind: string): Contender => ({
  name: `PyTorch, ${kind}`,
  command: values.python,
  script: ['bench/peers/optimizer_step.py', '--shape', shape, '--kind', kind, '--steps', values.steps],
});
const results = alternate(
  [own('kernel'), own('loop'), ...(values.peers ? [torch('foreach'), torch('fused')] : [])],
  Number(values.rounds),
).map(({ runs, ...measured }) => ({ ...measured, nsPerParameter: (measured.medianMs * 1e6) / parameters }));
const [kernel] = results as [(typeof results)[number]];
const ratios = Object.fromEntries(
  results.slice(1).map((peer) => [peer.name, peer.medianMs / kernel.medianMs]),
);
if (values.json)
  process.stdout.write(
    `${JSON.stringify({ benchmark: 'optimizer-step', ...values, parameters, results, ratios })}\n`,
  );
else {
  const table = formatTable(
    ['optimizer-step', 'median ms', 'best ms', 'ns a parameter', 'peak MB', 'throughput of the kernel'],
    results.map(({ name, medianMs, bestMs, nsPerParameter, peakMB }) => [
      name,
      Math.round(medianMs),
      Math.round(bestMs),
      nsPerParameter.toFixed(2),
      Math.round(peakMB),
      ratios[name] === undefined ? '' : formatRatio(ratios[name]),
    ]),
  );
  process.stdout.write(`${shape}: ${(parameters / 1e6).toFixed(1)} M parameters, float32\n\n${table}\n`);
}
