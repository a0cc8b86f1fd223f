/**
 * `npm run bench -- matmul [--shape SHAPE] [--runs N] [--rounds N] [--peers] [--python PATH] [--json]`: GFLOP/s of
 * the products that a training step multiplies, each alone. Rounds alternate between palkit and PyTorch (A B A B).
 */
import { parseArgs } from 'node:util';
import { formatTable } from '../src/cli/terminal/table.ts';
import { benchShapeName, measure, measureOwn, median } from './measure.ts';
import { type Product, productsOf } from './products.ts';

const { values } = parseArgs({
  allowPositionals: true,
  options: {
    shape: { type: 'string', default: 'smollm2-135m' },
    runs: { type: 'string', default: '5' },
    rounds: { type: 'string', default: '2' },
    python: { type: 'string', default: 'python3' },
    peers: { type: 'boolean', default: false },
    json: { type: 'boolean', default: false },
  },
});

const products = productsOf(benchShapeName(values.shape));
const rounds = Number(values.rounds);
const own: number[][] = products.map(() => []);
const torch: number[][] = products.map(() => []);
for (let round = 0; round < rounds; round++) {
  process.stderr.write(`round ${round + 1}/${rounds}\n`);
  collect(own, measureOwn('matmulOnce.ts', values.shape, values.runs));
  if (!values.peers) continue;
  const asked = ['--runs', values.runs, '--products', JSON.stringify(products)];
  collect(torch, measure(values.python, ['bench/peers/matmul.py', ...asked]));
}

const least = (numbers: readonly number[]) => Math.min(...numbers);
const arithmetic = products.reduce((sum, { count, flops }) => sum + count * flops, 0);
/** GFLOP/s of one product, or of all of a step's. */
function speeds(times: readonly (readonly number[])[], of: readonly Product[], once: boolean) {
  const flops = of.reduce((sum, product) => sum + (once ? 1 : product.count) * product.flops, 0);
  const by = (middle: (numbers: readonly number[]) => number) =>
    flops / of.reduce((sum, { count }, at) => sum + (once ? 1 : count) * middle(times[at] ?? []), 0) / 1e6;
  return { median: by(median), best: by(least) };
}
const compare = (of: readonly Product[], at: (times: number[][]) => number[][], once: boolean) => {
  const palkit = speeds(at(own), of, once);
  if (!values.peers) return { palkit };
  const peer = speeds(at(torch), of, once);
  return { palkit, torch: peer, ratio: palkit.median / peer.median, ratioOfBest: palkit.best / peer.best };
};
const rows = products.map((product, at) => ({
  ...product,
  ...compare([product], (times) => [times[at] ?? []], true),
}));
const whole = compare(products, (times) => times, false);

if (values.json) process.stdout.write(`${JSON.stringify({ benchmark: 'matmul', ...values, rows, whole })}\n`);
else {
  const peers = values.peers ? ['PyTorch: median', 'best', 'palkit : PyTorch', 'of best'] : [];
  const figures = ({ palkit, torch: peer, ratio, ratioOfBest }: ReturnType<typeof compare>) => [
    ...[palkit.median, palkit.best, peer?.median, peer?.best].flatMap((speed) => speed?.toFixed(0) ?? []),
    ...[ratio, ratioOfBest].flatMap((factor) => (factor === undefined ? [] : `${factor.toFixed(2)} x`)),
  ];
  const table = formatTable(
    ['product', 'in a step', 'share', 'palkit: median', 'best', ...peers],
    [
      ...rows.map((row) => [
        formatProduct(row),
        row.count,
        `${((100 * row.count * row.flops) / arithmetic).toFixed(1)} %`,
        ...figures(row),
      ]),
      ['all, one after the other', '', '', ...figures(whole)],
    ],
  );
  process.stdout.write(`${values.shape}, float32, 2 threads, GFLOP/s\n\n${table}\n`);
}

function collect(into: number[][], times: readonly (readonly number[])[]): void {
  for (const [at, more] of times.entries()) into[at]?.push(...more);
}

/** `[512, 576] x [1536, 576]^T` */
function formatProduct({ a, b, transposeA, transposeB }: Product): string {
  const factor = (shape: readonly number[], transposed: boolean) =>
    `[${shape.join(', ')}]${transposed ? '^T' : ''}`;
  return `${factor(a, transposeA)} x ${factor(b, transposeB)}`;
}
