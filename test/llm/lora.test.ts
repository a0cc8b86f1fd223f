import { spawnSync } from 'node:child_process';
import { existsSync, mkdtempSync, readFileSync } from 'node:fs';
import { copyFile, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, describe, expect, it } from 'vitest';
import { random } from '../../src/config/random.ts';
import { plain } from '../../src/engine/engine.ts';
import { onnxEngine } from '../../src/engine/onnx/engine.ts';
import { tfjsEngine } from '../../src/engine/tfjs/engine.ts';
import { allDense } from '../../src/ffn/feedForward.ts';
import { readAdapter, writeAdapter } from '../../src/llm/adapter.ts';
import type { DecoderConfig } from '../../src/llm/config.ts';
import { languageModel, logits } from '../../src/llm/decoder.ts';
import { initialize } from '../../src/llm/initialize.ts';
import {
  type Lora,
  type LoraConfig,
  loraOf,
  loraParameters,
  loraScale,
  mergeLora,
  unmergeLora,
} from '../../src/llm/lora.ts';
import { mergeError } from '../../src/llm/mergeError.ts';
import { readSafetensors, writeSafetensors } from '../../src/llm/safetensors.ts';
import { loadTokenizer } from '../../src/llm/tokenizer.ts';
import { saveLlm } from '../../src/llm/weights.ts';
import { reshape } from '../../src/tensor/operations.ts';
import { frozen, type ParameterTensors } from '../../src/tensor/parameters.ts';
import type { Value } from '../../src/tensor/program.ts';
import { adapterScale, project } from '../../src/tensor/projection.ts';
import { float32, int32 } from '../../src/tensor/tensor.ts';
import { trace, withDropout } from '../../src/tensor/trace.ts';
import { answerBatch, answerObjective } from '../../src/train/loss.ts';
import { gradientProgram } from '../../src/train/step.ts';
import { fill, filledParameters, smallLlama } from './formula.ts';

const engine = onnxEngine();
const folder = mkdtempSync(join(tmpdir(), 'palkit-lora-'));
afterAll(async () => {
  await engine.dispose();
  await rm(folder, { recursive: true });
});

const golden = JSON.parse(readFileSync('test/golden/lora/logits.json', 'utf8')) as {
  readonly ids: number[][];
  readonly logits: number[];
  readonly loss: number;
  /** By PEFT's names. */
  readonly gradients: Record<string, { readonly norm: number; readonly every7: number[] }>;
};
const base = filledParameters(smallLlama);
const config: LoraConfig = { rank: 4, alpha: 8, dropout: 0, targets: ['*'], layers: null };

/** Adapters whose B is not zero. */
function filledAdapters(lora: Lora): ParameterTensors {
  const tensors = [...loraParameters(smallLlama, lora)].map(([name, { shape }]) => [name, fill(name, shape)]);
  return new Map([...(tensors as [string, ReturnType<typeof fill>][]), [adapterScale, loraScale(lora)]]);
}

async function logitsOf(parameters: ParameterTensors, on = engine): Promise<Float32Array> {
  const { ids } = golden;
  const [rows, length] = [ids.length, ids[0]?.length as number];
  const program = trace({ ids: { dtype: 'int32', shape: [rows, length] } }, (inputs) => {
    const weights = frozen(parameters);
    const hidden = languageModel(smallLlama, weights, inputs.ids as Value, allDense);
    return { logits: logits(smallLlama, weights, reshape(hidden, [rows * length, smallLlama.hiddenSize])) };
  });
  const executable = await on.compile(program);
  const outputs = await executable.run({ ids: int32([rows, length], ids.flat()) });
  await executable.dispose();
  return plain(outputs, 'logits').data as Float32Array;
}

function largestDifference(a: ArrayLike<number>, b: ArrayLike<number>): number {
  expect(a).toHaveLength(b.length);
  return Array.from(a).reduce((most, value, at) => Math.max(most, Math.abs(value - (b[at] as number))), 0);
}

describe('the projections that have adapters', () => {
  it('are found by their last part, by patterns on whole names, and in a range of layers', () => {
    const of = (targets: string[], layers: string | null = null) =>
      loraOf(smallLlama, { ...config, targets, layers }).modules;
    expect(of(['q_proj'])).toEqual([0, 1, 2].map((layer) => `model.layers.${layer}.self_attn.q_proj`));
    expect(of(['*.mlp.*'], '1..1')).toEqual(
      ['gate_proj', 'up_proj', 'down_proj'].map((name) => `model.layers.1.mlp.${name}`),
    );
    expect(of(['self_attn.?_proj', 'down_proj'], '0..1')).toHaveLength(10);
    expect(of(['model.layers.{1..2}.mlp.up_proj'])).toHaveLength(2);
    expect(of(['*'])).toHaveLength(21);
  });

  it('must be there', () => {
    const of = (over: Partial<LoraConfig>) => () => loraOf(smallLlama, { ...config, ...over });
    expect(of({ targets: ['q_prj'] })).toThrow('"q_prj" matches no projection (did you mean "q_proj"?)');
    expect(of({ targets: ['embed_tokens'] })).toThrow('llm.lora.targets');
    expect(of({ layers: '1..3' })).toThrow('llm.lora.layers: 1..3: the LLM has layers 0 to 2');
    expect(of({ layers: '2..1' })).toThrow('1 is below 2');
  });
});

it('a projection with an adapter is W x + scale B A (x with its mask)', async () => {
  const [inputs, outputs, rank, rows] = [3, 2, 2, 4];
  const [w, a, b] = [fill('w', [outputs, inputs]), fill('a', [rank, inputs]), fill('b', [outputs, rank])];
  const tensors = new Map([
    ['f.weight', w],
    ['lora.f.A', a],
    ['lora.f.B', b],
    [adapterScale, float32([], [0.5])],
  ]);
  const program = trace({ x: { dtype: 'float32', shape: [rows, inputs] } }, ({ x }) => {
    const parameters = frozen(tensors);
    const first = withDropout(() => project(x as Value, parameters, 'f'));
    const second = withDropout(() => project(x as Value, parameters, 'f'));
    return { first, second, evaluated: project(x as Value, parameters, 'f') };
  });
  expect([...program.inputs.keys()]).toEqual(['x', 'dropout.f', 'dropout.f_2']);
  const x = fill('x', [rows, inputs]);
  const draw = random(1);
  const mask = () =>
    float32(
      [rows, inputs],
      Float32Array.from({ length: rows * inputs }, () => (draw.uniform() < 0.5 ? 0 : 2)),
    );
  const masks = { 'dropout.f': mask(), 'dropout.f_2': mask() };
  const made = await (await engine.compile(program)).run({ x, ...masks });
  const ones = float32([rows, inputs], new Float32Array(rows * inputs).fill(1));
  for (const [name, kept] of [
    ['first', masks['dropout.f']],
    ['second', masks['dropout.f_2']],
    ['evaluated', ones],
  ] as const) {
    const expected = Array.from({ length: rows * outputs }, (_, at) => {
      const [row, output] = [Math.floor(at / outputs), at % outputs];
      let sum = 0;
      for (let i = 0; i < inputs; i++) {
        const xi = x.data[row * inputs + i] as number;
        sum += (w.data[output * inputs + i] as number) * xi;
        for (let r = 0; r < rank; r++) {
          const dropped = xi * (kept.data[row * inputs + i] as number);
          sum += 0.5 * (b.data[output * rank + r] as number) * (a.data[r * inputs + i] as number) * dropped;
        }
      }
      return sum;
    });
    expect(largestDifference(plain(made, name).data as Float32Array, expected)).toBeLessThan(1e-6);
  }
});

it('begins as PEFT begins: A uniform within 1 / sqrt(inputs), B zero, and nothing is changed', async () => {
  const lora = loraOf(smallLlama, config);
  const begun = initialize(loraParameters(smallLlama, lora), (name) => random(1, name));
  for (const [name, { shape, data }] of begun) {
    const values = Array.from(data as Float32Array);
    const [rows, columns] = shape as [number, number];
    if (name.endsWith('.A')) {
      expect(rows).toBe(4);
      expect(Math.max(...values.map(Math.abs))).toBeLessThanOrEqual(columns ** -0.5);
      expect(Math.max(...values)).toBeGreaterThan(0.8 * columns ** -0.5);
      expect(Math.min(...values)).toBeLessThan(-0.8 * columns ** -0.5);
    } else expect(values.every((value) => value === 0)).toBe(true);
  }
  const adapted = new Map([...base, ...begun, [adapterScale, loraScale(lora)] as const]);
  expect(await logitsOf(adapted)).toEqual(await logitsOf(base));
});

describe('merging', () => {
  const lora = loraOf(smallLlama, config);
  const adapters = filledAdapters(lora);
  const adapted = new Map([...base, ...adapters]);

  it('keeps the logits, on both engines', async () => {
    const merged = mergeLora(adapted);
    expect([...merged.keys()]).toEqual([...base.keys()]);
    const apart = await logitsOf(adapted);
    expect(largestDifference(apart, await logitsOf(base))).toBeGreaterThan(0.1);
    expect(largestDifference(apart, await logitsOf(merged))).toBeLessThan(1e-5);
    const tfjs = await tfjsEngine({ backend: 'cpu' });
    try {
      expect(largestDifference(await logitsOf(adapted, tfjs), apart)).toBeLessThan(1e-4);
    } finally {
      await tfjs.dispose();
    }
  });

  it('keeps the logits of families with biases and norms of queries and keys', async () => {
    const families: DecoderConfig[] = [
      { ...smallLlama, family: 'qwen2', biases: { ...smallLlama.biases, queryKeyValue: true } },
      { ...smallLlama, family: 'qwen3', queryKeyNorm: true },
    ];
    for (const family of families) {
      const all = new Map([...filledParameters(family), ...adapters]);
      const pair = { config: family, feedForward: allDense, apart: all };
      expect(await mergeError({ ...pair, merged: mergeLora(all) }, engine)).toBeLessThan(1e-5);
      expect(loraOf(family, config).modules).toEqual(lora.modules);
    }
  });

  it('is measured by the logits, and by nothing but rounding', async () => {
    const pair = { config: smallLlama, feedForward: allDense, apart: adapted };
    expect(await mergeError({ ...pair, merged: mergeLora(adapted) }, engine)).toBeLessThan(1e-5);
    expect(await mergeError({ ...pair, merged: base }, engine)).toBeGreaterThan(1e-2);
  });

  it('is undone by unmerging', async () => {
    const back = unmergeLora(mergeLora(adapted), adapters);
    expect([...back.keys()].sort()).toEqual([...adapted.keys()].sort());
    for (const [name, { data }] of adapted)
      expect(largestDifference(back.get(name)?.data as Float32Array, data as Float32Array)).toBeLessThan(
        1e-6,
      );
    expect(largestDifference(await logitsOf(back), await logitsOf(adapted))).toBeLessThan(1e-5);
  });

  it('leaves what it is given as it was', () => {
    const name = 'model.layers.0.mlp.up_proj.weight';
    const before = base.get(name)?.data.slice();
    mergeLora(adapted);
    expect(adapted.get(name)?.data).toEqual(before);
  });

  it('needs the weight that an adapter belongs to', () => {
    const without = new Map(adapted);
    without.delete('model.layers.0.mlp.up_proj.weight');
    expect(() => mergeLora(without)).toThrow('no model.layers.0.mlp.up_proj.weight');
  });
});

describe("an adapter's folder", () => {
  it('that PEFT wrote gives the logits that PEFT computes', async () => {
    const { lora, parameters } = await readAdapter('test/golden/lora', smallLlama);
    expect(lora).toMatchObject({ rank: 3, alpha: 12, dropout: 0.1 });
    expect(lora.modules).toHaveLength(6);
    const every7 = (await logitsOf(new Map([...base, ...parameters]))).filter((_, at) => at % 7 === 0);
    expect(largestDifference(every7, golden.logits)).toBeLessThan(1e-4);
  });

  it('that PEFT wrote has the loss and the gradients that PyTorch computes', async () => {
    const { lora, parameters } = await readAdapter('test/golden/lora', smallLlama);
    const { ids } = golden;
    const length = ids[0]?.length as number;
    const shape = { rows: ids.length, textRows: length, targets: ids.length * (length - 1) };
    const model = {
      llm: smallLlama,
      feedForward: allDense,
      lora,
      streams: [],
      integration: { positions: 'reserve', attentionOnlyVisibleToPrefix: true } as const,
      slot: 1,
    };
    const trainable = new Map([...parameters].filter(([name]) => name !== adapterScale));
    const scale = [adapterScale, parameters.get(adapterScale) as ReturnType<typeof fill>] as const;
    const program = gradientProgram({
      objective: answerObjective(model, shape),
      trainable,
      frozen: new Map([...base, scale]),
    });
    const rows = ids.map((row, index) => ({
      id: String(index),
      ids: row,
      clip: undefined,
      targets: row.slice(1).map((id, position) => ({ position, id })),
    }));
    const outputs = await (await engine.compile(program)).run({
      ...Object.fromEntries(trainable),
      ...answerBatch(model, shape, rows).feeds,
    });
    expect(Number(plain(outputs, 'loss').data[0]) / golden.loss).toBeCloseTo(1, 5);
    expect(Object.keys(golden.gradients)).toHaveLength(trainable.size);
    for (const [name, { norm, every7 }] of Object.entries(golden.gradients)) {
      const [, module, kind] = /^base_model\.model\.(.+)\.lora_(A|B)\./.exec(name) ?? [];
      const own = Array.from(plain(outputs, `gradient.lora.${module}.${kind}`).data as Float32Array);
      expect(Math.hypot(...own) / norm).toBeCloseTo(1, 4);
      const found = own.filter((_, at) => at % 7 === 0);
      expect(largestDifference(found, every7) / norm, name).toBeLessThan(1e-5);
    }
  });

  it('is read as it was written', async () => {
    const lora = loraOf(smallLlama, {
      ...config,
      dropout: 0.1,
      targets: ['q_proj', '*.mlp.*'],
      layers: '0..1',
    });
    const adapters = filledAdapters(lora);
    await writeAdapter(join(folder, 'written'), lora, new Map([...base, ...adapters]));
    const read = await readAdapter(join(folder, 'written'), smallLlama);
    expect(read.lora).toEqual(lora);
    expect(read.parameters).toEqual(new Map(adapters));
  });

  const refused: Record<string, [over: Record<string, unknown>, message: string]> = {
    'with weight decomposition': [{ use_dora: true }, 'use_dora'],
    'with biases': [{ bias: 'all' }, 'bias'],
    'with modules of its own': [{ modules_to_save: ['lm_head'] }, 'modules_to_save'],
    'with ranks that differ': [{ rank_pattern: { q_proj: 2 } }, 'rank_pattern'],
    'that changes the base model': [{ init_lora_weights: 'pissa' }, 'init_lora_weights'],
    'with a field of tomorrow': [{ use_sigmoid: true }, 'use_sigmoid'],
    'of another kind': [{ peft_type: 'IA3' }, 'peft_type'],
  };
  for (const [what, [over, message]] of Object.entries(refused)) {
    it(`${what} is refused by name`, async () => {
      const own = mkdtempSync(join(folder, 'refused-'));
      const json = JSON.parse(await readFile('test/golden/lora/adapter_config.json', 'utf8'));
      await writeFile(join(own, 'adapter_config.json'), JSON.stringify({ ...json, ...over }));
      await copyFile('test/golden/lora/adapter_model.safetensors', join(own, 'adapter_model.safetensors'));
      await expect(readAdapter(own, smallLlama)).rejects.toThrow(message);
    });
  }

  it('of another model, or with half of an adapter, lists what does not fit', async () => {
    await expect(readAdapter('test/golden/lora', { ...smallLlama, layers: 2 })).rejects.toThrow(
      'model.layers.2.self_attn.q_proj',
    );
    await expect(readAdapter('test/golden/lora', { ...smallLlama, hiddenSize: 64 })).rejects.toThrow(
      'of another shape',
    );
    const own = mkdtempSync(join(folder, 'half-'));
    await copyFile('test/golden/lora/adapter_config.json', join(own, 'adapter_config.json'));
    const tensors = await readSafetensors('test/golden/lora/adapter_model.safetensors');
    tensors.delete('base_model.model.model.layers.0.mlp.down_proj.lora_B.weight');
    await writeSafetensors(join(own, 'adapter_model.safetensors'), tensors);
    await expect(readAdapter(own, smallLlama)).rejects.toThrow('lora.model.layers.0.mlp.down_proj.B');
  });

  it('with rank-stabilised scaling is scaled by the root of the rank', async () => {
    const own = mkdtempSync(join(folder, 'stabilised-'));
    const json = JSON.parse(await readFile('test/golden/lora/adapter_config.json', 'utf8'));
    await writeFile(join(own, 'adapter_config.json'), JSON.stringify({ ...json, use_rslora: true }));
    await copyFile('test/golden/lora/adapter_model.safetensors', join(own, 'adapter_model.safetensors'));
    const { parameters } = await readAdapter(own, smallLlama);
    expect(parameters.get(adapterScale)?.data[0]).toBeCloseTo(12 / Math.sqrt(3), 5);
  });
});

/** PALKIT_PYTHON names a Python with torch, transformers and peft: then they read what palkit writes. */
const python = process.env.PALKIT_PYTHON;
it.skipIf(python === undefined || !existsSync(python))(
  'transformers and PEFT load what palkit writes, and compute the same logits',
  async () => {
    const lora = loraOf(smallLlama, { ...config, targets: ['q_proj', 'o_proj', '*.mlp.*'], layers: '1..2' });
    const adapted = new Map([...base, ...filledAdapters(lora)]);
    const tokenizer = await loadTokenizer('models/sound-world');
    await saveLlm(join(folder, 'check', 'llm'), { config: smallLlama, parameters: base, tokenizer });
    await saveLlm(join(folder, 'check', 'merged'), {
      config: smallLlama,
      parameters: mergeLora(adapted),
      tokenizer,
    });
    await writeAdapter(join(folder, 'check', 'adapter'), lora, adapted, join(folder, 'check', 'llm'));
    const expected = { ids: golden.ids, logits: Array.from(await logitsOf(adapted)) };
    await writeFile(join(folder, 'check', 'logits.json'), JSON.stringify(expected));
    const command = ['test/golden/lora.py', 'check', join(folder, 'check')];
    const { status, stdout, stderr } = spawnSync(python as string, command, { encoding: 'utf8' });
    expect(status, stdout + stderr).toBe(0);
  },
  120_000,
);
