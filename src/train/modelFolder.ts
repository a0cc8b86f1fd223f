/**
 * An audio-LLM as one folder: the LLM as Hugging Face lays it out, and beside it the streams, the adapters, the
 * experiment it comes from, a model card, and, where they are asked for, the encoders.
 */
import { existsSync } from 'node:fs';
import { copyFile, mkdir, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { z } from 'zod';
import { readEncoderManifest } from '../audio/encoder.ts';
import { formatExperiment } from '../config/load.ts';
import type { Experiment } from '../config/schema.ts';
import { writeFileAtomic, writeFolderAtomic } from '../config/writeFile.ts';
import type { FeedForwardLayer } from '../ffn/config.ts';
import { hashTableShapes } from '../ffn/hashTable.ts';
import {
  feedForwardLayerOf,
  feedForwardNormOf,
  feedForwardParameters,
  hasOtherWeights,
} from '../ffn/parameters.ts';
import { readAdapter, writeAdapter } from '../llm/adapter.ts';
import { parameterShapes } from '../llm/config.ts';
import { isAdapter } from '../llm/lora.ts';
import { readSafetensors, writeSafetensors } from '../llm/safetensors.ts';
import {
  checkKeys,
  type FloatTensor,
  type LoadedLlm,
  loadLlm,
  type SaveOptions,
  saveLlm,
} from '../llm/weights.ts';
import { type AudioLlm, streamParameters } from '../pal/audioLlm.ts';
import type { ParameterTensors } from '../tensor/parameters.ts';
import type { Shape } from '../tensor/tensor.ts';
import { modelCard, resultsSchema, type TrainedModel } from './modelCard.ts';
import { RunError } from './setup.ts';

/** What tells that a folder is an audio-LLM, and what no other file of it says. */
export const modelMarker = 'audio-llm.json';
/** The experiment that a model comes from, resolved. */
export const experimentFile = 'experiment.yaml';
const resultsFile = 'evaluation.json';

const schema = z.strictObject({
  version: z.literal(1),
  /** Frames per clip of each stream; longer clips do not fit. */
  frames: z.record(z.string(), z.int().min(1).max(1_000_000)),
  /** Where the adapters of the experiment's `llm.lora` are: it has none, beside the LLM, in its weights. */
  lora: z.enum(['none', 'kept', 'merged']).default('none'),
  /** Layers of the LLM (0-based) without feed-forward weights of their own: the experiment's `llm.ffn` replaced them. */
  replaced: z.array(z.int().min(0)).default([]),
  /** Of those, the layers that have no feed-forward at all, and no norm in front of it. */
  dropped: z.array(z.int().min(0)).default([]),
});

export interface SaveModelOptions extends SaveOptions {
  /** Where each encoder is found, to copy them in, so that the folder needs no other; left where they are without. */
  readonly encoderAt?: (encoder: string) => string;
}

/** Writes the folder, whole or not at all. */
export async function saveModel(
  folder: string,
  trained: TrainedModel,
  { encoderAt, half = false }: SaveModelOptions = {},
): Promise<void> {
  const { experiment, model, llm, parameters } = trained;
  const ofLlm = parameterShapes(llm.config);
  const those = (wanted: (name: string) => boolean) =>
    new Map([...parameters].filter(([name]) => wanted(name)));
  const frames = Object.fromEntries(model.streams.map((stream) => [stream.name, stream.frames]));
  const lora = model.lora !== undefined ? 'kept' : experiment.llm.lora === null ? 'none' : 'merged';
  const description = { version: 1, frames, lora, ...layersWithoutOwn(model) };
  await writeFolderAtomic(folder, async (aside) => {
    const own = those((name) => ofLlm.has(name));
    // Its config: whoever generates with it must stop where training ended answers.
    await saveLlm(aside, { ...llm, config: model.llm, parameters: own }, { half });
    if (model.lora !== undefined) await writeAdapter(join(aside, 'adapter'), model.lora, parameters, folder);
    await writeSafetensors(
      join(aside, 'streams.safetensors'),
      those((name) => !ofLlm.has(name) && !isAdapter(name)),
    );
    if (encoderAt !== undefined) await copyEncoders(experiment, aside, encoderAt);
    await writeFileAtomic(join(aside, experimentFile), formatExperiment(experiment));
    await saveResults(aside, trained);
    await writeFileAtomic(join(aside, modelMarker), `${JSON.stringify(description, null, 2)}\n`);
  });
}

/** Writes how a saved model did, and the card that tells of it. */
export async function saveResults(folder: string, trained: TrainedModel): Promise<void> {
  if (trained.results !== undefined) {
    const text = `${JSON.stringify(trained.results, null, 2)}\n`;
    await writeFileAtomic(join(folder, resultsFile), text);
  }
  await writeFileAtomic(join(folder, 'README.md'), modelCard(trained));
}

/** How a saved model did; undefined where nobody asked it. @throws RunError for a file that says something else */
export async function readResults(folder: string): Promise<TrainedModel['results']> {
  const path = join(folder, resultsFile);
  if (!existsSync(path)) return undefined;
  const text = await readFile(path, 'utf8');
  const parsed = resultsSchema.safeParse(parseJson(text));
  if (!parsed.success) throw new RunError(`${path}: not the record of an evaluation`);
  return parsed.data;
}

/** Where a model folder keeps an encoder: under the first stream that listens with it. */
function encoderFolder(folder: string, { streams }: Experiment, encoder: string): string {
  return join(folder, 'encoders', streams.find((stream) => stream.encoder === encoder)?.name ?? '');
}

/** Where an encoder is found: in a model's folder, or by its name. */
export function encoderOf(folder: string, experiment: Experiment, encoder: string): string {
  const own = encoderFolder(folder, experiment, encoder);
  return existsSync(join(own, 'encoder.yaml')) ? own : encoder;
}

async function copyEncoders(
  experiment: Experiment,
  folder: string,
  encoderAt: (encoder: string) => string,
): Promise<void> {
  for (const encoder of new Set(experiment.streams.map((stream) => stream.encoder))) {
    const target = encoderFolder(folder, experiment, encoder);
    const { manifest, folder: source } = await readEncoderManifest(encoderAt(encoder));
    await mkdir(target, { recursive: true });
    const files = ['encoder.yaml', ...(manifest.kind === 'features' ? [manifest.model] : [])];
    for (const file of files) await copyFile(join(source, file), join(target, file));
  }
}

/**
 * Reads what `saveModel` wrote.
 * @param assemble the audio-LLM for the frames of each stream
 * @throws ModelError or RunError naming the file and what is wrong with it
 */
export async function loadModel(
  folder: string,
  assemble: (llm: LoadedLlm, frames: ReadonlyMap<string, number>) => AudioLlm,
): Promise<{ model: AudioLlm; llm: LoadedLlm; parameters: ParameterTensors }> {
  const path = join(folder, modelMarker);
  const text = await readFile(path, 'utf8').catch(() => {
    throw new RunError(
      `${path}: there is no trained model; \`palkit train\` writes it when the curriculum is done`,
    );
  });
  const parsed = schema.safeParse(parseJson(text));
  if (!parsed.success) throw new RunError(`${path}: not the description of an audio-LLM`);
  const { frames, lora, replaced, dropped } = parsed.data;
  const isAbsent = (name: string) =>
    replaced.includes(feedForwardLayerOf(name)) || dropped.includes(feedForwardNormOf(name));
  const llm = await loadLlm(folder, { isAbsent });
  const assembled = assemble(llm, new Map(Object.entries(frames)));
  const [described, named] = [Object.keys(frames), assembled.streams.map(({ name }) => name)];
  if (described.sort().join() !== named.sort().join()) {
    throw new RunError(
      `${path}: frames of the streams ${described.join(', ')}, the experiment has ${named.join(', ')}`,
    );
  }
  if ((lora === 'none') !== (assembled.lora === undefined)) {
    const what = lora === 'none' ? 'has no adapters' : `has adapters (${lora})`;
    throw new RunError(`${path}: the model ${what}, the experiment's llm.lora says otherwise`);
  }
  if (JSON.stringify(layersWithoutOwn(assembled)) !== JSON.stringify({ replaced, dropped }))
    throw new RunError(
      `${path}: the model's feed-forward layers are not those that the experiment's llm.ffn describes`,
    );
  const model = lora === 'kept' ? assembled : { ...assembled, lora: undefined };
  const streams = await readSafetensors(join(folder, 'streams.safetensors'));
  const expected = new Map<string, Shape>(
    [...streamParameters(model), ...feedForwardParameters(model.ffn ?? [], model.llm)].map(
      ([name, { shape }]) => [name, shape],
    ),
  );
  for (const [name, shape] of hashTableShapes(model.ffn ?? [], model.llm.vocabularySize))
    expected.set(name, shape);
  checkKeys(streams, expected, join(folder, 'streams.safetensors'));
  const adapters = model.lora === undefined ? [] : await adaptersOf(join(folder, 'adapter'), model);
  const parameters = new Map([...llm.parameters, ...(streams as Map<string, FloatTensor>), ...adapters]);
  return { model, llm, parameters };
}

/** The layers that `replaced` and `dropped` name. */
function layersWithoutOwn({ ffn = [] }: AudioLlm): { replaced: number[]; dropped: number[] } {
  const those = (wanted: (layer: FeedForwardLayer) => boolean) =>
    ffn.flatMap((layer, at) => (wanted(layer) ? [at] : []));
  return { replaced: those(hasOtherWeights), dropped: those(({ kind }) => kind === 'none') };
}

async function adaptersOf(folder: string, { llm, lora }: AudioLlm): Promise<Map<string, FloatTensor>> {
  const read = await readAdapter(folder, llm);
  const described = ({ rank, alpha, modules }: NonNullable<AudioLlm['lora']>) =>
    JSON.stringify({ rank, alpha, modules });
  if (lora !== undefined && described(read.lora) === described(lora)) return read.parameters;
  throw new RunError(`${folder}: the adapters are not those that the experiment's llm.lora describes`);
}

function parseJson(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}
