/**
 * A program on WebGPU whose output stays there, run over and over, and read back: `deviceTrouble.ts 1000 20` for
 * 1000 numbers and 20 runs. Prints the error that it ends with; null where it ends well.
 */
import type { Feed } from '../../src/engine/engine.ts';
import { type DeviceTensor, EngineError } from '../../src/engine/engine.ts';
import { onnxEngine } from '../../src/engine/onnx/engine.ts';
import { add, sum } from '../../src/tensor/operations.ts';
import { float32 } from '../../src/tensor/tensor.ts';
import { trace } from '../../src/tensor/trace.ts';

const [size = 0, runs = 0] = process.argv.slice(2).map(Number);

async function provoke(): Promise<string | null> {
  const engine = onnxEngine({ provider: 'webgpu' });
  try {
    const program = trace({ x: { dtype: 'float32', shape: [size] } }, ({ x }) => ({
      next: add(x, 1),
      total: sum(x),
    }));
    const executable = await engine.compile(program, { keepOnDevice: ['next'] });
    let x: Feed = float32([size], new Float32Array(size));
    for (let run = 0; run < runs; run++) x = (await executable.run({ x })).next as Feed;
    await engine.read({ x: x as DeviceTensor });
    return null;
  } catch (error) {
    if (!(error instanceof EngineError)) throw error;
    return error.message;
  }
}

// A device that failed may crash when it is freed; what is tested is what was said before.
process.stdout.write(JSON.stringify(await provoke()), () => process.kill(process.pid, 'SIGKILL'));
