/**
 * Every matrix product of a training step, alone, on the onnx engine. Prints one JSON line: milliseconds of each.
 *
 *     tsx bench/matmulOnce.ts SHAPE RUNS
 */
import { random } from '../src/config/random.ts';
import { onnxEngine } from '../src/engine/onnx/engine.ts';
import { matmul } from '../src/tensor/operations.ts';
import { float32, type Shape, sizeOf, zeros } from '../src/tensor/tensor.ts';
import { trace } from '../src/tensor/trace.ts';
import { benchShapeName } from './measure.ts';
import { productsOf } from './products.ts';

const [shape = 'tiny', runs = '5'] = process.argv.slice(2);
const engine = onnxEngine({ threads: 2 });
const draw = random('matmul');
const numbers = Float32Array.from({ length: 65_536 }, () => draw.normal());
const drawn = (of: Shape) =>
  float32(
    of,
    new Float32Array(sizeOf(of)).map((_, at) => numbers[at & 0xffff] as number),
  );
const times: number[][] = [];
for (const { a, b, transposeA, transposeB } of productsOf(benchShapeName(shape))) {
  const types = { a: { dtype: 'float32', shape: a }, b: { dtype: 'float32', shape: b } } as const;
  const program = trace(types, (inputs) => ({
    y: matmul(inputs.a, inputs.b, { transposeA, transposeB }),
  }));
  const executable = await engine.compile(program);
  const feeds = { a: drawn(a), b: drawn(b) };
  const into = { y: zeros('float32', program.outputs.get('y')?.shape ?? []) };
  const own: number[] = [];
  // The first run warms up.
  for (let run = 0; run <= Number(runs); run++) {
    const began = performance.now();
    await executable.run(feeds, into);
    if (run > 0) own.push(performance.now() - began);
  }
  times.push(own);
  await executable.dispose();
}
await engine.dispose();
process.stdout.write(`${JSON.stringify(times)}\n`);
