/**
 * Greedy decoding of one shape in a process of its own. Prints one JSON line: the time of the prompt and of each new
 * token after it, the process's peak resident memory.
 *
 *     tsx bench/generateOnce.ts SHAPE PROMPT TOKENS
 *
 * The weights are random, which does not change the work.
 */
import { random } from '../src/config/random.ts';
import { onnxEngine } from '../src/engine/onnx/engine.ts';
import { generate } from '../src/pal/generate.ts';
import { memoryMB } from './measure.ts';
import { type BenchShapeName, benchModel, benchShapes, randomParameters } from './models.ts';

const [name = 'smollm2-135m', prompt = '64', tokens = '64'] = process.argv.slice(2);
const { llm } = benchShapes[name as BenchShapeName];
const draw = random('tokens');
const ids = Array.from({ length: Number(prompt) }, () => draw.integer(llm.vocabularySize));
const times: number[] = [];
const engine = onnxEngine({ threads: 2 });
const began = performance.now();
let last = began;
await generate({
  engine,
  model: benchModel({ ...llm, eosTokenIds: [] }),
  parameters: randomParameters(llm),
  rows: [{ id: 'prompt', ids, clip: undefined }],
  maxNewTokens: Number(tokens) + 1,
  decoding: { decoding: 'greedy' },
  onToken: () => {
    const now = performance.now();
    times.push(now - last);
    last = now;
    return false;
  },
});
await engine.dispose();
process.stdout.write(`${JSON.stringify({ times, peakMB: memoryMB('VmHWM') })}\n`);
