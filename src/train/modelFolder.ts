/** A trained audio-LLM as one folder: the LLM as Hugging Face lays it out, the streams beside it. */
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { z } from 'zod';
import { writeFileAtomic } from '../config/writeFile.ts';
import { parameterShapes } from '../llm/config.ts';
import { readSafetensors, writeSafetensors } from '../llm/safetensors.ts';
import {
  checkKeys,
  type FloatTensor,
  type LlmFrame,
  type LoadedLlm,
  loadLlm,
  saveLlm,
} from '../llm/weights.ts';
import { type AudioLlm, streamParameters } from '../pal/audioLlm.ts';
import type { ParameterTensors } from '../tensor/parameters.ts';
import { RunError } from './setup.ts';

const schema = z.strictObject({
  version: z.literal(1),
  /** Frames per clip of each stream; longer clips do not fit. */
  frames: z.record(z.string(), z.int().min(1)),
});

/** Writes the folder `model` of a run. */
export async function saveModel(
  folder: string,
  model: AudioLlm,
  llm: LlmFrame,
  parameters: ParameterTensors,
): Promise<void> {
  const ofLlm = parameterShapes(llm.config);
  const own = (wanted: boolean) => new Map([...parameters].filter(([name]) => ofLlm.has(name) === wanted));
  await saveLlm(folder, { ...llm, parameters: own(true) });
  await writeSafetensors(join(folder, 'streams.safetensors'), own(false));
  const frames = Object.fromEntries(model.streams.map((stream) => [stream.name, stream.frames]));
  await writeFileAtomic(
    join(folder, 'audio-llm.json'),
    `${JSON.stringify({ version: 1, frames }, null, 2)}\n`,
  );
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
  const path = join(folder, 'audio-llm.json');
  const text = await readFile(path, 'utf8').catch(() => {
    throw new RunError(
      `${path}: there is no trained model; \`palkit train\` writes it when the curriculum is done`,
    );
  });
  const parsed = schema.safeParse(JSON.parse(text));
  if (!parsed.success) throw new RunError(`${path}: not the description of an audio-LLM`);
  const llm = await loadLlm(folder);
  const model = assemble(llm, new Map(Object.entries(parsed.data.frames)));
  const streams = await readSafetensors(join(folder, 'streams.safetensors'));
  const expected = new Map([...streamParameters(model)].map(([name, { shape }]) => [name, shape]));
  checkKeys(streams, expected, join(folder, 'streams.safetensors'));
  return { model, llm, parameters: new Map([...llm.parameters, ...(streams as Map<string, FloatTensor>)]) };
}
