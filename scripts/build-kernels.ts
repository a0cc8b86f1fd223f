/** Assembles the WebAssembly kernels: `npm run build:kernels`. What comes out is committed; a test compares. */
import { readFileSync, writeFileSync } from 'node:fs';
import { pathToFileURL } from 'node:url';
import loadWabt from 'wabt';

const source = 'src/train/adamw.wat';
const target = 'src/train/adamwBinary.ts';

/** The generated module's text. */
export async function kernelModule(): Promise<string> {
  const wabt = await loadWabt();
  const parsed = wabt.parseWat(source, readFileSync(source, 'utf8'), { simd: true });
  const base64 = Buffer.from(parsed.toBinary({}).buffer).toString('base64');
  const lines = base64.match(/.{1,100}/g) ?? [];
  return `/** Assembled from adamw.wat by \`npm run build:kernels\`. */\nexport const adamwBinary =\n${lines
    .map((line) => `  '${line}'`)
    .join(' +\n')};\n`;
}

if (import.meta.url === pathToFileURL(process.argv[1] ?? '').href)
  writeFileSync(target, await kernelModule());
