/**
 * Every primitive on a provider, in a process of its own: how far it is from the float64 reference, and which
 * operators ran on another provider.
 */
import { random } from '../../src/config/random.ts';
import { plain } from '../../src/engine/engine.ts';
import { onnxEngine } from '../../src/engine/onnx/engine.ts';
import type { Provider } from '../../src/engine/onnx/lower.ts';
import { interpret } from '../../src/tensor/interpret.ts';
import { cases } from '../tensor/arbitrary.ts';
import { drawCase } from './primitiveCase.ts';

const provider = (process.argv[2] ?? 'cpu') as Provider;
const elsewhere = new Set<string>();
const engine = onnxEngine({
  provider,
  onProfile: ({ kernels }) => {
    for (const kernel of kernels) {
      if (kernel.provider !== provider) elsewhere.add(`${kernel.operator} ${kernel.types}`);
    }
  },
});

const report: Record<string, { deviation: number; elsewhere: string[] }> = {};
for (const [primitive, draw] of Object.entries(cases)) {
  let deviation = 0;
  elsewhere.clear();
  for (let seed = 0; seed < 3; seed++) {
    const { program, feeds } = drawCase(draw, random(seed, primitive));
    const expected = interpret(program, feeds).y?.data ?? [];
    const executable = await engine.compile(program);
    const actual = plain(await executable.run(feeds), 'y').data;
    await executable.dispose();
    for (const [at, value] of expected.entries()) {
      deviation = Math.max(deviation, Math.abs(Number(actual[at]) - value) / Math.max(1, Math.abs(value)));
    }
  }
  report[primitive] = { deviation, elsewhere: [...elsewhere] };
}
await engine.dispose();
process.stdout.write(JSON.stringify(report), () => process.exit(0));
