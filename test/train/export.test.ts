/** A trained audio-LLM leaves its run: as one folder that answers the same, and as an LLM for other programs. */
import { spawnSync } from 'node:child_process';
import { existsSync } from 'node:fs';
import { mkdir, readdir, readFile, rename, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { loadExperiment } from '../../src/config/load.ts';
import type { Experiment } from '../../src/config/schema.ts';
import { readManifest } from '../../src/data/manifest.ts';
import { plain } from '../../src/engine/engine.ts';
import { onnxEngine } from '../../src/engine/onnx/engine.ts';
import { allDense } from '../../src/ffn/feedForward.ts';
import { generate, loadAudioLlm, loadLlm, readAdapter } from '../../src/index.ts';
import { languageModel, logits } from '../../src/llm/decoder.ts';
import { mergeLora } from '../../src/llm/lora.ts';
import type { LoadedLlm } from '../../src/llm/weights.ts';
import { reshape } from '../../src/tensor/operations.ts';
import { frozen, type ParameterTensors } from '../../src/tensor/parameters.ts';
import type { Value } from '../../src/tensor/program.ts';
import { int32 } from '../../src/tensor/tensor.ts';
import { trace } from '../../src/tensor/trace.ts';
import { askClip } from '../../src/train/ask.ts';
import { exportAudioLlm, exportLlm } from '../../src/train/export.ts';
import { runTraining } from '../../src/train/run.ts';
import { makeWorld, silentWatch, type World } from './fixture.ts';

const engine = onnxEngine();
let world: World;
let experiment: Experiment;
let run: string;
let clip: string;
const question = 'Which sound comes first?';
const options = ['bell', 'drum', 'siren'];

beforeAll(async () => {
  world = await makeWorld();
  run = join(world.folder, 'run');
  ({ experiment } = await loadExperiment(world.config, [
    'llm.lora={ rank: 2, alpha: 4, targets: ["*"] }',
    'train.stages=[{ name: only, steps: 8, learningRate: 0.02, trainable: ["lora.*", "connector.*"] }]',
    'eval.limit=6',
  ]));
  await runTraining(experiment, { watch: silentWatch, resume: false, evaluate: true });
  const [example] = await readManifest(join(world.dataset, 'test.jsonl'));
  clip = join(world.dataset, example?.audio ?? '');
});
afterAll(async () => {
  await engine.dispose();
  await world.remove();
});

function palkit(...given: string[]): string {
  const command = ['--import', 'tsx', 'src/cli/main.ts', ...given];
  const { status, stdout, stderr } = spawnSync(process.execPath, command, { encoding: 'utf8' });
  expect(status, stderr).toBe(0);
  return stdout;
}

const out = (name: string) => join(world.folder, 'out', name);
const lora = (how: 'merge' | 'keep') => ({ lora: how, half: false });

async function logitsOf({ config }: LoadedLlm, parameters: ParameterTensors, ids: readonly number[]) {
  const program = trace({ ids: { dtype: 'int32', shape: [1, ids.length] } }, (inputs) => {
    const weights = frozen(parameters);
    const hidden = languageModel(config, weights, inputs.ids as Value, allDense);
    return { logits: logits(config, weights, reshape(hidden, [ids.length, config.hiddenSize])) };
  });
  const executable = await engine.compile(program);
  return plain(await executable.run({ ids: int32([1, ids.length], ids) }), 'logits').data as Float32Array;
}

function largestDifference(a: ArrayLike<number>, b: ArrayLike<number>): number {
  expect(a).toHaveLength(b.length);
  return Array.from(a).reduce((most, value, at) => Math.max(most, Math.abs(value - (b[at] as number))), 0);
}

describe('one folder', () => {
  it.each(['merge', 'keep'] as const)(
    'with adapters to %s loads in one call and answers as its run',
    async (how) => {
      await mkdir(out(''), { recursive: true });
      const folder = out(`audio-llm-${how}`);
      await exportAudioLlm(run, folder, lora(how));
      expect(existsSync(join(folder, 'adapter'))).toBe(how === 'keep');
      const card = await readFile(join(folder, 'README.md'), 'utf8');
      expect(card.includes('are merged into the weights')).toBe(how === 'merge');
      expect(existsSync(join(folder, 'encoders', 'timbre', 'encoder.yaml'))).toBe(true);
      const [asked, chosen] = [
        await askClip(experiment, join(run, 'model'), clip, question),
        await askClip(experiment, join(run, 'model'), clip, question, { options }),
      ];
      const audioLlm = await loadAudioLlm(folder);
      try {
        expect(await audioLlm.answer(clip, question)).toEqual(asked);
        const again = await audioLlm.answer(clip, question, { options });
        expect(again.answer).toBe(chosen.answer);
        for (const [at, { option, probability }] of (chosen.options ?? []).entries()) {
          expect(again.options?.[at]?.option).toBe(option);
          expect(again.options?.[at]?.probability).toBeCloseTo(probability, 5);
        }
      } finally {
        await audioLlm.dispose();
      }
    },
  );

  it('gives what generate takes', async () => {
    const audioLlm = await loadAudioLlm(join(run, 'model'), { engine });
    const { model, parameters, llm } = audioLlm;
    const rows = [{ id: clip, ids: audioLlm.prompt(question), clip: await audioLlm.listen(clip) }];
    const [made = []] = await generate({
      engine,
      model,
      parameters,
      rows,
      maxNewTokens: experiment.eval.open.maxNewTokens,
      decoding: { decoding: 'greedy' },
    });
    expect(llm.tokenizer.decode(made).trim()).toBe((await audioLlm.answer(clip, question)).answer);
    await audioLlm.dispose();
  });

  it('comes by the command, needs its run no longer, and listens with encoders of its own', async () => {
    const folder = out('alone');
    const given = [run, '--format', 'audio-llm', '--lora', 'keep', '--out', folder, '--json'];
    expect(JSON.parse(palkit('export', ...given))).toEqual({
      out: folder,
      format: 'audio-llm',
      ...lora('keep'),
    });
    const before = await askClip(experiment, join(run, 'model'), clip, question, { options });
    await rename(run, `${run}-away`);
    await rename(folder, out('elsewhere'));
    try {
      const asked = [clip, question, '--options', options.join(', '), '--run', out('elsewhere'), '--json'];
      expect(JSON.parse(palkit('ask', ...asked))).toEqual(before);
      const manifest = join(out('elsewhere'), 'encoders', 'timbre', 'encoder.yaml');
      await writeFile(manifest, 'kind: none');
      await expect(loadAudioLlm(out('elsewhere'))).rejects.toThrow(`${manifest}: not an encoder`);
    } finally {
      await rename(`${run}-away`, run);
    }
  });

  it('goes on with its own encoders', async () => {
    await exportAudioLlm(run, out('first'), lora('keep'));
    const path = join('encoders', 'timbre', 'encoder.yaml');
    const own = (await readFile(join(out('first'), path), 'utf8')).replace(
      /description: .*/,
      'description: Mine',
    );
    await writeFile(join(out('first'), path), own);
    await exportAudioLlm(out('first'), out('second'), lora('keep'));
    expect(await readFile(join(out('second'), path), 'utf8')).toBe(own);
  });

  it('names the LLM beside them as the base of its adapters: it may have been trained too', async () => {
    await exportAudioLlm(run, out('base'), lora('keep'));
    for (const folder of [join(run, 'model'), out('base')]) {
      const config = JSON.parse(await readFile(join(folder, 'adapter', 'adapter_config.json'), 'utf8'));
      expect(config.base_model_name_or_path).toBe(folder);
    }
  });

  it('has a card that says what it is, how it was made and how it did', async () => {
    await exportAudioLlm(join(run, 'model'), out('card'), lora('keep'));
    for (const folder of [join(run, 'model'), out('card')]) {
      const card = await readFile(join(folder, 'README.md'), 'utf8');
      expect(card).toContain('library_name: palkit');
      expect(card).toContain('| timbre | timbre | mlp | attention-only | 1 to 3 | 30 |');
      expect(card).toContain('rank 2, alpha 4');
      expect(card).toContain('| only | 8 | 0.02 | `lora.*`, `connector.*` |');
      expect(card).toMatch(/\| audio \| \d+ \| [\d.]+ % \|/);
      expect(card).toContain('| shuffledAudio |');
      expect(card).toContain('loadAudioLlm');
    }
  });

  it('that is none, or is damaged, is named', async () => {
    await expect(loadAudioLlm(world.folder)).rejects.toThrow("no audio-LLM's folder");
    await expect(exportLlm(world.dataset, out('nothing'), lora('merge'))).rejects.toThrow(
      "neither a trained model's folder nor a run's",
    );
    const damaged = out('damaged');
    await exportAudioLlm(run, damaged, lora('keep'));
    await rm(join(damaged, 'adapter', 'adapter_config.json'));
    await expect(loadAudioLlm(damaged)).rejects.toThrow('adapter_config.json: no such file');
    const other = { version: 1, frames: { bells: 30 }, lora: 'kept' };
    await writeFile(join(damaged, 'audio-llm.json'), JSON.stringify(other));
    await expect(loadAudioLlm(damaged)).rejects.toThrow(
      'audio-llm.json: frames of the streams bells, the experiment has timbre',
    );
    const none = { version: 1, frames: { timbre: 30 } };
    await writeFile(join(damaged, 'audio-llm.json'), JSON.stringify(none));
    await expect(loadAudioLlm(damaged)).rejects.toThrow(
      "has no adapters, the experiment's llm.lora says otherwise",
    );
    await writeFile(join(damaged, 'audio-llm.json'), '{');
    await expect(loadAudioLlm(damaged)).rejects.toThrow(
      'audio-llm.json: not the description of an audio-LLM',
    );
  });
});

describe('the LLM alone', () => {
  it('has the adapters merged: the logits of the run', async () => {
    const notes: string[] = [];
    await exportLlm(run, out('merged'), { ...lora('merge'), note: (text) => notes.push(text) });
    expect(notes).toHaveLength(1);
    expect(notes[0]).toMatch(/^merged 28 adapters: logits change by [\d.]+e-[6-9] of the largest$/);
    expect((await readdir(out('merged'))).sort()).toEqual([
      'config.json',
      'generation_config.json',
      'model.safetensors',
      'tokenizer.json',
      'tokenizer_config.json',
    ]);
    const merged = await loadLlm(out('merged'));
    const { parameters } = await loadAudioLlm(join(run, 'model'), { engine });
    const expected = mergeLora(parameters);
    for (const [name, { data }] of merged.parameters) expect(data, name).toEqual(expected.get(name)?.data);
    const ids = merged.tokenizer.encode('Which sound comes first?');
    const apart = await logitsOf(merged, parameters, ids);
    expect(largestDifference(apart, await logitsOf(merged, merged.parameters, ids))).toBeLessThan(1e-5);
  });

  it('has the adapters beside it, and is as it was before training', async () => {
    await exportLlm(run, out('kept'), lora('keep'));
    const kept = await loadLlm(out('kept'));
    expect(kept.hash).toBe((await loadLlm(experiment.llm.from)).hash);
    const { parameters } = await readAdapter(join(out('kept'), 'adapter'), kept.config);
    const all = (await loadAudioLlm(join(run, 'model'), { engine })).parameters;
    for (const [name, { data }] of parameters) expect(data, name).toEqual(all.get(name)?.data);
  });

  it('is half as large in half precision', async () => {
    await exportLlm(run, out('half'), { lora: 'merge', half: true });
    const { parameters } = await loadLlm(out('half'));
    const exact = (await loadLlm(out('merged'))).parameters;
    for (const [name, { data }] of parameters)
      expect(largestDifference(data, exact.get(name)?.data as Float32Array), name).toBeLessThan(2e-3);
  });

  it('is never written over what is there', async () => {
    await expect(exportLlm(run, world.dataset, lora('merge'))).rejects.toThrow('holds files already');
    await expect(exportLlm(run, world.config, lora('merge'))).rejects.toThrow('is a file, not a folder');
  });

  /** PALKIT_PYTHON names a Python with torch, transformers and peft. */
  const python = process.env.PALKIT_PYTHON;
  it.skipIf(python === undefined || !existsSync(python))(
    'is loaded by transformers and PEFT, which compute the same logits',
    async () => {
      const folder = out('check');
      await mkdir(folder, { recursive: true });
      await exportLlm(run, join(folder, 'merged'), lora('merge'));
      await exportLlm(run, join(folder, 'kept'), lora('keep'));
      const llm = await loadLlm(join(folder, 'merged'));
      const text = 'Which sound comes first? The bell, twice.';
      const textIds = llm.tokenizer.encode(text);
      const { parameters } = await loadAudioLlm(join(run, 'model'), { engine });
      const own = Array.from(await logitsOf(llm, parameters, textIds));
      await writeFile(
        join(folder, 'expected.json'),
        JSON.stringify({ ids: [textIds], logits: own, text, textIds }),
      );
      const { status, stdout, stderr } = spawnSync(python as string, ['test/golden/export.py', folder], {
        encoding: 'utf8',
      });
      expect(status, stdout + stderr).toBe(0);
    },
    120_000,
  );
});
