/** From a configuration to everything that training and evaluation work on. */
import { createHash } from 'node:crypto';
import { join } from 'node:path';
import { loadEncoder } from '../audio/encoder.ts';
import type { Encoder } from '../audio/encoderManifest.ts';
import { encodeAll } from '../audio/featureCache.ts';
import { ConfigError } from '../config/configError.ts';
import { locate } from '../config/locate.ts';
import { random } from '../config/random.ts';
import type { Experiment } from '../config/schema.ts';
import type { Example } from '../data/manifest.ts';
import { type Engine, EngineError } from '../engine/engine.ts';
import { type OnnxEngineOptions, onnxEngine } from '../engine/onnx/engine.ts';
import type { Provider } from '../engine/onnx/lower.ts';
import { tfjsEngine } from '../engine/tfjs/engine.ts';
import { type FeedForwardLayer, feedForwardLayers } from '../ffn/config.ts';
import { hashTable } from '../ffn/hashTable.ts';
import { feedForwardOf } from '../ffn/layers.ts';
import { feedForwardLayerOf, feedForwardParameters, hashTableName, isReplaced } from '../ffn/parameters.ts';
import { sharedFrom } from '../ffn/wide.ts';
import type { DownloadProgress } from '../llm/hub.ts';
import { initialize } from '../llm/initialize.ts';
import { type Lora, loraOf, loraParameters, loraScale } from '../llm/lora.ts';
import { type LlmFrame, type LoadedLlm, loadLlm } from '../llm/weights.ts';
import { type AudioLlm, copiedParameters, streamParameters } from '../pal/audioLlm.ts';
import type { ClipFeatures } from '../pal/batch.ts';
import { promptFormat } from '../pal/promptFormat.ts';
import type { ParameterSpec, ParameterTensors } from '../tensor/parameters.ts';
import { adapterScale } from '../tensor/projection.ts';
import type { Tensor } from '../tensor/tensor.ts';

/** How a long-running command tells what it does. */
export interface Watch {
  note(text: string): void;
  progress(label: string, total: number): ProgressBar;
}

export interface ProgressBar {
  update(done: number, extras?: Readonly<Record<string, string>>): void;
  stop(): void;
}

export class RunError extends Error {
  override readonly name = 'RunError';
}

export interface EncodedClips {
  /** By the example's `audio`. */
  readonly clips: ReadonlyMap<string, ClipFeatures>;
  /** Samples that could not be read. */
  readonly skipped: readonly { readonly id: string; readonly reason: string }[];
}

type Feature = Tensor & { dtype: 'float32' };

/** What of a configuration an engine goes by. */
type EngineChoice = Pick<Experiment, 'engine'> & { readonly train: Pick<Experiment['train'], 'threads'> };

/**
 * What a configuration says about the ONNX engine.
 * @throws RunError when it chooses another one
 */
export function onnxOptions({ engine, train }: EngineChoice): OnnxEngineOptions & { provider: Provider } {
  if (engine.kind !== 'onnx') {
    throw new RunError(
      `engine.kind: ${engine.kind}: only the kernels of ONNX Runtime can be looked at one by one; choose --engine cpu, webgpu or cuda`,
    );
  }
  const { provider, optimization, device, tf32 } = engine;
  return { provider, optimization, threads: train.threads, device, tf32 };
}

/**
 * The engine that a configuration chooses.
 * @param note told which backend `auto` found, and why
 * @throws EngineError when the one it names is not there
 */
export async function makeEngine(experiment: EngineChoice, note?: Watch['note']): Promise<Engine> {
  const { engine } = experiment;
  if (engine.kind === 'onnx') return onnxEngine(onnxOptions(experiment));
  const made = await tfjsEngine({ backend: engine.backend });
  if (engine.backend === 'auto') note?.(`engine: ${made.description}`);
  return made;
}

/**
 * Tries the precision that training is to have, before anything is spent on it.
 * @param note told when it is only emulated
 * @throws EngineError saying what to choose when the engine does not compute in it
 */
export async function checkPrecision(
  { train }: Experiment,
  engine: Pick<Engine, 'description' | 'arithmetic'>,
  note: Watch['note'],
): Promise<void> {
  const { precision } = train;
  if (precision === 'float32') return;
  const arithmetic = await engine.arithmetic(precision).catch((error: unknown) => {
    const reason = error instanceof Error ? error.message : String(error);
    throw new EngineError(
      `train.precision: ${precision}: ${engine.description} does not compute in it.\n` +
        'Choose train.precision: float32, or another engine; `palkit doctor` says what each of them takes here.\n' +
        `The reason: ${reason}`,
      { cause: error },
    );
  });
  if (arithmetic === 'emulated') {
    note(
      `${precision} on ${engine.description} is computed in float32 with rounding: for checking, not for speed`,
    );
  }
}

/** Loads the encoders that the streams name, each once. */
export async function loadEncoders({ streams, train }: Experiment): Promise<Map<string, Encoder>> {
  const encoders = new Map<string, Encoder>();
  for (const { encoder } of streams) {
    if (!encoders.has(encoder)) encoders.set(encoder, await loadEncoder(encoder, { threads: train.threads }));
  }
  return encoders;
}

/**
 * Encodes the clips of some examples with every encoder. Features are cached beside the dataset.
 * @throws the reading error of a bad sample, naming it, unless the policy is to skip
 */
export async function encodeClips(
  experiment: Experiment,
  encoders: ReadonlyMap<string, Encoder>,
  examples: readonly Example[],
  watch: Watch,
): Promise<EncodedClips> {
  const { dir, onBadSample } = experiment.data;
  const firstOf = new Map<string, Example>();
  for (const example of examples) if (!firstOf.has(example.audio)) firstOf.set(example.audio, example);
  const items = [...firstOf.values()].map(({ id, audio }) => ({ id, path: join(dir, audio) }));
  const audioOf = new Map([...firstOf.values()].map(({ id, audio }) => [id, audio]));
  const clips = new Map<string, Map<string, Feature>>();
  const badAudio = new Map<string, string>();
  for (const [name, encoder] of encoders) {
    const bar = watch.progress(`listening with "${name}"`, items.length);
    try {
      const { features, skipped } = await encodeAll(encoder, items, {
        cacheFolder: join(dir, 'features'),
        onProgress: (done) => bar.update(done),
        onBadSample,
      });
      for (const { id, reason } of skipped) badAudio.set(audioOf.get(id) as string, reason);
      for (const [id, tensor] of features) {
        const audio = audioOf.get(id) as string;
        const own = clips.get(audio) ?? new Map<string, Feature>();
        own.set(name, tensor as Feature);
        clips.set(audio, own);
      }
    } finally {
      bar.stop();
    }
  }
  for (const audio of badAudio.keys()) clips.delete(audio);
  const skipped = examples.flatMap(({ id, audio }) => {
    const reason = badAudio.get(audio);
    return reason === undefined ? [] : [{ id, reason }];
  });
  return { clips, skipped };
}

/** Frames that each stream must hold: those of the longest clip. */
export function longestClips(experiment: Experiment, clips: Iterable<ClipFeatures>): Map<string, number> {
  const frames = new Map<string, number>();
  for (const clip of clips) {
    for (const { name, encoder } of experiment.streams) {
      frames.set(name, Math.max(frames.get(name) ?? 1, clip.get(encoder)?.shape[0] ?? 1));
    }
  }
  return frames;
}

/** Loads the LLM; `watch` shows what comes from the hub meanwhile, file by file. */
export async function loadExperimentLlm({ llm }: Experiment, watch?: Watch): Promise<LoadedLlm> {
  const path = locate(llm.from);
  if (watch === undefined) return loadLlm(path);
  let shown: { readonly file: string; readonly bar: ProgressBar } | undefined;
  const onProgress = ({ file, receivedBytes, bytes }: DownloadProgress) => {
    if (shown?.file !== file) {
      shown?.bar.stop();
      shown = { file, bar: watch.progress(`downloading ${file} (MB)`, Math.ceil(bytes / 1e6)) };
    }
    shown.bar.update(Math.ceil(receivedBytes / 1e6));
  };
  try {
    return await loadLlm(path, { onProgress });
  } finally {
    shown?.bar.stop();
  }
}

/** The audio-LLM that a configuration describes. */
export function assemble(
  experiment: Experiment,
  llm: LlmFrame,
  encoders: ReadonlyMap<string, Pick<Encoder, 'width'>>,
  frames: ReadonlyMap<string, number>,
): AudioLlm {
  const { front, endId } = promptFormat(experiment.prompt, llm);
  const ffn = feedForwardLayers(experiment.llm.ffn, llm.config);
  return {
    // What ends an answer in training stops it in generation.
    llm: { ...llm.config, eosTokenIds: [...new Set([endId, ...llm.config.eosTokenIds])] },
    feedForward: feedForwardOf(ffn),
    ffn,
    lora: experiment.llm.lora === null ? undefined : loraBeside(ffn, loraOf(llm.config, experiment.llm.lora)),
    streams: experiment.streams.map((stream) => ({
      ...stream,
      frames: frames.get(stream.name) ?? 1,
      width: encoders.get(stream.encoder)?.width ?? 0,
    })),
    integration: experiment.integration,
    slot: front.length,
  };
}

const withoutAdapters: Partial<Record<FeedForwardLayer['kind'], string>> = {
  sparse: 'is sparse',
  wide: 'is a shared one',
  none: 'is dropped',
};

/** @throws ConfigError for an adapter in a layer without projections that are whole and its own */
function loraBeside(ffn: readonly FeedForwardLayer[], lora: Lora): Lora {
  for (const module of lora.modules) {
    const reason = withoutAdapters[ffn[feedForwardLayerOf(module)]?.kind ?? 'dense'];
    if (reason !== undefined)
      throw new ConfigError(
        `llm.lora.targets: they choose ${module}, whose feed-forward layer ${reason} (llm.ffn); adapters go on whole ` +
          "projections of a layer's own: leave its mlp out of targets, or the layer out of llm.lora.layers",
      );
  }
  return lora;
}

/**
 * Initial parameters: the LLM's, and new ones for streams, feed-forward layers and adapters that only the seed and
 * their names decide.
 * @param frequencies how often tokens occur in training: asked by hash layers, which are balanced by it
 */
export function initialParameters(
  model: AudioLlm,
  llm: ParameterTensors,
  seed: number,
  frequencies: () => ReadonlyMap<number, number> = () => new Map(),
): Map<string, Feature> {
  const begin = (specs: ReadonlyMap<string, ParameterSpec>) =>
    initialize(specs, (name) => random(seed, 'initial', name));
  const { ffn = [] } = model;
  const all = new Map<string, Feature>([
    ...[...llm].filter(([name]) => !isReplaced(ffn, name)),
    ...begin(streamParameters(model)),
  ]);
  for (const [name, own] of begin(feedForwardParameters(ffn, model.llm)))
    all.set(name, sharedFrom(ffn, llm, name) ?? own);
  let counted: ReadonlyMap<number, number> | undefined;
  for (const [at, layer] of ffn.entries()) {
    if (layer.kind !== 'sparse' || layer.select !== 'hash') continue;
    counted ??= frequencies();
    const name = hashTableName(at);
    const draws = random(seed, 'initial', name);
    all.set(name, hashTable(layer, model.llm.vocabularySize, counted, draws));
  }
  if (model.lora !== undefined) {
    for (const [name, tensor] of begin(loraParameters(model.llm, model.lora))) all.set(name, tensor);
    all.set(adapterScale, loraScale(model.lora));
  }
  for (const [name, source] of copiedParameters(model)) {
    const copied = llm.get(source) as Feature;
    all.set(name, { ...copied, data: copied.data.slice() });
  }
  return all;
}

/** A hash of what decides a run's numbers; a checkpoint of another configuration is not resumed. */
export function configHash(experiment: Experiment): string {
  const { run: _, eval: __, name: ___, train, ...rest } = experiment;
  const { maxSteps: ____, checkpoint: _____, recompute: ______, ...training } = train;
  return createHash('sha256')
    .update(JSON.stringify({ ...rest, train: training }))
    .digest('hex');
}
