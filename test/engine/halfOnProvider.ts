/** What a provider says of the half types, in a process of its own: prints how it computes in each, or why it does not. */
import { onnxEngine } from '../../src/engine/onnx/engine.ts';
import type { Provider } from '../../src/engine/onnx/lower.ts';
import { halfTypes } from '../../src/tensor/precision.ts';

const engine = onnxEngine({ provider: (process.argv[2] ?? 'cpu') as Provider });
const found: Record<string, string> = {};
for (const type of halfTypes)
  found[type] = await engine.arithmetic(type).catch((error: unknown) => `${error}`);
await engine.dispose();
process.stdout.write(JSON.stringify(found), () => process.exit(0));
