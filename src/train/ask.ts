/** Questions about clips, to a trained model. */
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { loadEncoder } from '../audio/encoder.ts';
import type { Encoder } from '../audio/encoderManifest.ts';
import { readWaveform, type Waveform } from '../audio/waveform.ts';
import { loadExperiment } from '../config/load.ts';
import { random } from '../config/random.ts';
import type { Experiment } from '../config/schema.ts';
import type { Engine } from '../engine/engine.ts';
import { onnxEngine } from '../engine/onnx/engine.ts';
import { scoreChoices } from '../eval/choice.ts';
import { decodingOf } from '../eval/decoding.ts';
import type { LlmFrame } from '../llm/weights.ts';
import type { AudioLlm } from '../pal/audioLlm.ts';
import type { ClipFeatures } from '../pal/batch.ts';
import { generateText } from '../pal/generate.ts';
import { promptFormat } from '../pal/promptFormat.ts';
import type { ParameterTensors } from '../tensor/parameters.ts';
import { encoderOf, experimentFile, loadModel } from './modelFolder.ts';
import { assemble, makeEngine, RunError } from './setup.ts';
import { textLimit } from './textLength.ts';

export interface AskResult {
  readonly question: string;
  readonly answer: string;
  /** Options with the probability of each among them, likeliest first; null when none were given. */
  readonly options: readonly { readonly option: string; readonly probability: number }[] | null;
}

export interface AskOptions {
  /** Answers to choose from; generated freely when left out. */
  readonly options?: readonly string[] | undefined;
  /** Is told of every piece of a generated answer as soon as it is certain. */
  readonly onText?: ((piece: string) => void) | undefined;
}

/** A trained audio-LLM, ready to be asked. */
export interface LoadedAudioLlm {
  /** What it was made by, resolved. */
  readonly experiment: Experiment;
  readonly model: AudioLlm;
  readonly llm: LlmFrame;
  readonly parameters: ParameterTensors;
  /**
   * Answers by generation or, given options, by their likelihood.
   * @param clip a WAV file, or a waveform
   * @throws AudioError or EncoderError naming what is wrong with the clip
   */
  answer(clip: string | Waveform, question: string, options?: AskOptions): Promise<AskResult>;
  /** A question as the experiment words it: the ids of a row of `generate`. */
  prompt(question: string, options?: readonly string[]): readonly number[];
  /** What its encoders make of a clip: the clip of a row of `generate`. */
  listen(clip: string | Waveform): Promise<ClipFeatures>;
  /** Ends its encoders and, unless it was given, its engine. */
  dispose(): Promise<void>;
}

/**
 * Loads an audio-LLM from its folder: `model` of a run, or one that `palkit export` wrote.
 * @param engine what computes; the CPU when left out. Whoever gives one ends it.
 * @throws RunError, ModelError, ConfigError or EncoderError naming the file and what is wrong with it
 */
export async function loadAudioLlm(
  folder: string,
  { engine }: { readonly engine?: Engine } = {},
): Promise<LoadedAudioLlm> {
  const path = join(folder, experimentFile);
  if (!existsSync(path)) throw new RunError(`${path}: no such file, so ${folder} is no audio-LLM's folder`);
  const { experiment } = await loadExperiment(path);
  if (engine !== undefined) return openAudioLlm(folder, experiment, engine);
  const own = onnxEngine({ threads: experiment.train.threads });
  const opened = await openAudioLlm(folder, experiment, own).catch(async (error: unknown) => {
    await own.dispose();
    throw error;
  });
  return {
    ...opened,
    dispose: async () => {
      await opened.dispose();
      await own.dispose();
    },
  };
}

/**
 * Asks one question about one clip, on the engine that an experiment names.
 * @param folder the model's
 * @throws as `loadAudioLlm` and its `answer`
 */
export async function askClip(
  experiment: Experiment,
  folder: string,
  clip: string,
  question: string,
  options: AskOptions = {},
): Promise<AskResult> {
  const waveform = await readWaveform(clip);
  const engine = await makeEngine(experiment);
  try {
    const opened = await openAudioLlm(folder, experiment, engine);
    try {
      return await opened.answer(waveform, question, options);
    } finally {
      await opened.dispose();
    }
  } finally {
    await engine.dispose();
  }
}

async function openAudioLlm(folder: string, experiment: Experiment, engine: Engine): Promise<LoadedAudioLlm> {
  const encoders = await encodersOf(folder, experiment);
  const end = async () => {
    for (const encoder of encoders.values()) await encoder.dispose();
  };
  const { model, llm, parameters } = await loadModel(folder, (loaded, frames) =>
    assemble(experiment, loaded, encoders, frames),
  ).catch(async (error: unknown) => {
    await end();
    throw error;
  });
  const listen = async (clip: string | Waveform): Promise<ClipFeatures> => {
    const waveform = typeof clip === 'string' ? await readWaveform(clip) : clip;
    const heard = [...encoders].map(
      async ([name, encoder]) => [name, await encoder.encode(waveform)] as const,
    );
    return new Map(await Promise.all(heard));
  };
  const format = promptFormat(experiment.prompt, llm);
  const limit = textLimit(experiment, model);
  const prompt = (question: string, options?: readonly string[]) => {
    const ids = format.promptIds({ question, options });
    if (ids.length > limit)
      throw new RunError(`the question has ${ids.length} text tokens, the model takes at most ${limit}`);
    return ids;
  };
  const answer = async (
    clip: string | Waveform,
    question: string,
    { options, onText }: AskOptions = {},
  ): Promise<AskResult> => {
    const id = typeof clip === 'string' ? clip : 'the clip';
    const heard = await listen(clip);
    const asked = prompt(question, options);
    if (options !== undefined) {
      const item = {
        id,
        promptIds: asked,
        options: options.map((option) => format.answerIds(option)),
        clip: heard,
      };
      const [scores = []] = await scoreChoices([item], { engine, model, parameters, batchSize: 8 });
      const ranked = ranking(options, scores);
      return { question, answer: ranked[0]?.option ?? '', options: ranked };
    }
    const { maxNewTokens, stop } = experiment.eval.open;
    const [text = ''] = await generateText({
      engine,
      model,
      parameters,
      tokenizer: llm.tokenizer,
      rows: [{ id, ids: asked, clip: heard }],
      maxNewTokens,
      stop,
      decoding: decodingOf(experiment.eval.open, random(experiment.seed, 'ask', question)),
      onText: (_, piece) => onText?.(piece),
    });
    return { question, answer: text.trim(), options: null };
  };
  return { experiment, model, llm, parameters, answer, prompt, listen, dispose: end };
}

/** The options with their probabilities among themselves, from log-likelihoods. */
function ranking(options: readonly string[], scores: readonly number[]) {
  const top = Math.max(...scores);
  const weights = scores.map((score) => Math.exp(score - top));
  const total = weights.reduce((sum, weight) => sum + weight, 0);
  return options
    .map((option, at) => ({ option, probability: (weights[at] as number) / total }))
    .sort((a, b) => b.probability - a.probability);
}

/** The encoders that the folder holds, and by their names those that it does not. */
async function encodersOf(folder: string, experiment: Experiment): Promise<Map<string, Encoder>> {
  const { streams, train } = experiment;
  const encoders = new Map<string, Encoder>();
  for (const { encoder } of streams) {
    if (encoders.has(encoder)) continue;
    const from = encoderOf(folder, experiment, encoder);
    encoders.set(encoder, await loadEncoder(from, { threads: train.threads }));
  }
  return encoders;
}
