import { readFileSync } from 'node:fs';
import { describe, expect, it } from 'vitest';
import { kernelModule } from '../../scripts/build-kernels.ts';
import { random } from '../../src/config/random.ts';
import { interpret } from '../../src/tensor/interpret.ts';
import { float32, type Shape, sizeOf, type Tensor, tensor } from '../../src/tensor/tensor.ts';
import { trace } from '../../src/tensor/trace.ts';
import { adamwMemory } from '../../src/train/adamwMemory.ts';
import { type AdamWConfig, adamW } from '../../src/train/optimizer.ts';

const config: AdamWConfig = { kind: 'adamw', beta1: 0.9, beta2: 0.95, epsilon: 1e-8, weightDecay: 0.1 };
/** Shapes that do and do not fill the kernels' sixteens; decay spares vectors. */
const shapes: Readonly<Record<string, Shape>> = { one: [1], vector: [37], matrix: [16, 33], even: [64, 16] };

function draw(name: string, shape: Shape): Float32Array {
  const { normal } = random(name);
  return Float32Array.from({ length: sizeOf(shape) }, normal);
}

/** The same update by the primitives of the tensor program, in float64. */
function reference(shape: Shape, state: readonly Float64Array[], gradient: Float32Array, step: number) {
  const type = { dtype: 'float64', shape } as const;
  const scalar = { dtype: 'float64', shape: [] } as const;
  const program = trace(
    {
      parameter: type,
      gradient: type,
      first: type,
      second: type,
      learningRate: scalar,
      correction1: scalar,
      correction2: scalar,
    },
    ({ parameter, gradient: g, first, second, ...scalars }) => {
      const next = adamW(config, parameter, g, { first, second }, scalars);
      return { parameter: next.parameter, ...next.state };
    },
  );
  const [parameter, first, second] = state as [Float64Array, Float64Array, Float64Array];
  const number = (value: number) => tensor('float64', [], Float64Array.of(value));
  const outputs = interpret(program, {
    parameter: tensor('float64', shape, parameter),
    gradient: tensor('float64', shape, Float64Array.from(gradient)),
    first: tensor('float64', shape, first),
    second: tensor('float64', shape, second),
    learningRate: number(0.01),
    correction1: number(1 - config.beta1 ** step),
    correction2: number(1 - config.beta2 ** step),
  });
  return ['parameter', 'first', 'second'].map((name) => (outputs[name] as Tensor).data as Float64Array);
}

describe('AdamW in memory', () => {
  it('is the update of the tensor program, over steps, for every size', () => {
    const parameters = new Map(
      Object.entries(shapes).map(([name, shape]) => [name, float32(shape, draw(name, shape))]),
    );
    const memory = adamwMemory(parameters);
    const states = new Map<string, Float64Array[]>(
      [...parameters].map(([name, { data }]) => [
        name,
        [Float64Array.from(data), new Float64Array(data.length), new Float64Array(data.length)],
      ]),
    );
    for (let step = 1; step <= 5; step++) {
      for (const [name, { gradient }] of memory.tensors)
        gradient.data.set(draw(`${name}${step}`, gradient.shape));
      memory.update(config, { learningRate: 0.01, done: step - 1, scale: 0.25 });
      for (const [name, own] of memory.tensors) {
        const scaled = own.gradient.data.map((value) => value * 0.25);
        const next = reference(own.gradient.shape, states.get(name) as Float64Array[], scaled, step);
        states.set(name, next);
        for (const [kind, expected] of (['parameter', 'first', 'second'] as const).map(
          (kind, at) => [kind, next[at] as Float64Array] as const,
        )) {
          for (const [at, value] of own[kind].data.entries()) {
            const right = expected[at] as number;
            expect(Math.abs(value - right), `${name} ${kind}[${at}] step ${step}`).toBeLessThan(
              2e-6 * Math.max(1, Math.abs(right)),
            );
          }
        }
      }
    }
  });

  it('sums the squares of all gradients', () => {
    const parameters = new Map(
      Object.entries(shapes).map(([name, shape]) => [name, float32(shape, new Float32Array(sizeOf(shape)))]),
    );
    const memory = adamwMemory(parameters);
    let squares = 0;
    for (const [name, { gradient }] of memory.tensors) {
      gradient.data.set(draw(name, gradient.shape));
      for (const value of gradient.data) squares += value * value;
    }
    expect(memory.gradientNorm()).toBeCloseTo(Math.sqrt(squares), 12);
  });

  it('refuses a tensor that its kernels cannot address', () => {
    const huge = { dtype: 'float32', shape: [2 ** 20, 2 ** 9], data: new Float32Array(0) } as const;
    expect(() => adamwMemory(new Map([['embeddings', huge]]))).toThrow(
      '"embeddings" has 536870912 elements: AdamW on the CPU takes tensors of up to 268435456',
    );
  });

  it('runs the kernels that adamw.wat says', async () => {
    expect(readFileSync('src/train/adamwBinary.ts', 'utf8')).toBe(await kernelModule());
  });
});
