/**
 * Multiplies two matrices on an engine, and tries a training step's arithmetic in the half types, in a process of its
 * own: `node tryProvider.js onnx webgpu`, `node tryProvider.js tfjs wasm`. A GPU provider that fails can take the whole
 * process with it, so float32 is answered before the half types are tried, and then all of it.
 */
import { type Engine, plain } from '../../engine/engine.ts';
import { onnxEngine } from '../../engine/onnx/engine.ts';
import type { Provider } from '../../engine/onnx/lower.ts';
import type { TfjsBackend } from '../../engine/tfjs/backends.ts';
import { tfjsEngine } from '../../engine/tfjs/engine.ts';
import { matmul } from '../../tensor/operations.ts';
import { halfTypes } from '../../tensor/precision.ts';
import { float32 } from '../../tensor/tensor.ts';
import { trace } from '../../tensor/trace.ts';

/** The types that a step's matrix products may have, in words for people. */
async function typesOf(engine: Engine): Promise<string[]> {
  const types = ['float32'];
  for (const type of halfTypes) {
    const arithmetic = await engine.arithmetic(type).catch(() => null);
    if (arithmetic !== null) types.push(arithmetic === 'native' ? type : `${type} (${arithmetic})`);
  }
  return types;
}

/** Done when the message has left this process, which may end at whatever comes next. */
async function answer(message: { ok: true; types: string[] } | { ok: false; reason: string }): Promise<void> {
  const { send } = process;
  if (send !== undefined) await new Promise<void>((resolve) => send.call(process, message, () => resolve()));
}

const shape = [2, 2] as const;
const [kind, name] = process.argv.slice(2);
try {
  const engine =
    kind === 'tfjs'
      ? await tfjsEngine({ backend: name as TfjsBackend })
      : onnxEngine({ provider: name as Provider });
  const inputs = { a: { dtype: 'float32', shape }, b: { dtype: 'float32', shape } } as const;
  const program = await engine.compile(trace(inputs, ({ a, b }) => ({ product: matmul(a, b) })));
  const matrix = float32(shape, new Float32Array([1, 2, 3, 4]));
  const { data } = plain(await program.run({ a: matrix, b: matrix }), 'product');
  const product = Array.from(data, Number);
  const right = [7, 10, 15, 22].every((value, index) => Math.abs(value - (product[index] ?? 0)) < 1e-3);
  if (right) {
    // What counts when no second answer comes.
    await answer({
      ok: true,
      types: ['float32 (the half types could not be tried: the process ended at it)'],
    });
    await answer({ ok: true, types: await typesOf(engine) });
  } else {
    await answer({ ok: false, reason: `[1 2; 3 4]^2 came out as ${product.join(' ')}` });
  }
  await engine.dispose();
} catch (error) {
  await answer({ ok: false, reason: error instanceof Error ? error.message : String(error) });
}
