/**
 * AdamW over the parameters of a shape in a process of its own. Prints one JSON line.
 *
 *     tsx bench/optimizerStepOnce.ts SHAPE kernel|loop STEPS
 */
import { adamwMemory } from '../src/train/adamwMemory.ts';
import type { AdamWConfig } from '../src/train/optimizer.ts';
import { memoryMB } from './measure.ts';
import { type BenchShapeName, benchShapes, randomParameters } from './models.ts';

const [name = 'tiny', kind = 'kernel', steps = '8'] = process.argv.slice(2);
const config: AdamWConfig = { kind: 'adamw', beta1: 0.9, beta2: 0.95, epsilon: 1e-8, weightDecay: 0.01 };
const learningRate = 1e-4;
const memory = adamwMemory(randomParameters(benchShapes[name as BenchShapeName].llm));
for (const { parameter, gradient } of memory.tensors.values()) gradient.data.set(parameter.data);
const times: number[] = [];
for (let done = 0; done < Number(steps); done++) {
  const start = performance.now();
  if (kind === 'kernel') {
    const scale = 1 / Math.max(1, memory.gradientNorm());
    memory.update(config, { learningRate, done, scale });
  } else loop(done);
  times.push(performance.now() - start);
}
process.stdout.write(`${JSON.stringify({ times, peakMB: memoryMB('VmHWM') })}\n`);

/** The same without the kernel. */
function loop(done: number): void {
  const { beta1, beta2, epsilon, weightDecay } = config;
  let squares = 0;
  for (const { gradient } of memory.tensors.values())
    for (let at = 0; at < gradient.data.length; at++) squares += (gradient.data[at] as number) ** 2;
  const scale = 1 / Math.max(1, Math.sqrt(squares));
  const rate = learningRate / (1 - beta1 ** (done + 1));
  const widen = 1 / Math.sqrt(1 - beta2 ** (done + 1));
  for (const { parameter, gradient, first, second } of memory.tensors.values()) {
    const keep = parameter.shape.length >= 2 ? 1 - learningRate * weightDecay : 1;
    const [w, g, m, v] = [parameter.data, gradient.data, first.data, second.data];
    for (let at = 0; at < w.length; at++) {
      const scaled = (g[at] as number) * scale;
      m[at] = beta1 * (m[at] as number) + (1 - beta1) * scaled;
      v[at] = beta2 * (v[at] as number) + (1 - beta2) * scaled * scaled;
      const step = (m[at] as number) / (Math.sqrt(v[at] as number) * widen + epsilon);
      w[at] = keep * (w[at] as number) - rate * step;
    }
  }
}
