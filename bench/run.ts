/** Benchmarks: `npm run bench -- NAME [options]`. One file a benchmark, which reads its own options. */
const benchmarks: Readonly<Record<string, () => Promise<unknown>>> = {
  compile: () => import('./compile.ts'),
  matmul: () => import('./matmul.ts'),
  'train-step': () => import('./trainStep.ts'),
  'optimizer-step': () => import('./optimizerStep.ts'),
  integration: () => import('./integration.ts'),
  load: () => import('./load.ts'),
  perplexity: () => import('./perplexity.ts'),
  generate: () => import('./generate.ts'),
  ffn: () => import('./ffn.ts'),
  moc: () => import('./moc.ts'),
  lm: () => import('./lm.ts'),
};

const [name = ''] = process.argv.slice(2);
const start = Object.hasOwn(benchmarks, name) ? benchmarks[name] : undefined;
if (start === undefined) {
  process.stderr.write(`benchmark "${name}": there are ${Object.keys(benchmarks).join(', ')}\n`);
  process.exit(2);
}
await start();
