/** Trained models on their way out: a whole audio-LLM that needs nothing else, or its LLM for other programs. */
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { readEncoderManifest } from '../audio/encoder.ts';
import { loadExperiment } from '../config/load.ts';
import { mustBeEmpty, writeFolderAtomic } from '../config/writeFile.ts';
import { onnxEngine } from '../engine/onnx/engine.ts';
import type { FeedForwardLayer } from '../ffn/config.ts';
import { feedForwardOf, withoutChoice } from '../ffn/layers.ts';
import { isFeedForward } from '../ffn/parameters.ts';
import { untied } from '../ffn/wide.ts';
import { writeAdapter } from '../llm/adapter.ts';
import { parameterShapes } from '../llm/config.ts';
import { isAdapter, mergeLora } from '../llm/lora.ts';
import { mergeError } from '../llm/mergeError.ts';
import { saveLlm } from '../llm/weights.ts';
import type { ParameterTensors } from '../tensor/parameters.ts';
import type { TrainedModel } from './modelCard.ts';
import { encoderOf, experimentFile, loadModel, modelMarker, readResults, saveModel } from './modelFolder.ts';
import { assemble, RunError } from './setup.ts';

export interface ExportOptions {
  /** Adapters go into the weights, or stay beside them. */
  readonly lora: 'merge' | 'keep';
  /** Store the LLM's weights as float16. */
  readonly half: boolean;
  /** Told what merging adapters changed. */
  readonly note?: (text: string) => void;
}

/**
 * Writes an audio-LLM with its encoders: `loadAudioLlm` needs this folder alone. Weights that an encoder has in an npm
 * package stay there.
 * @param from a run's folder, or a model's
 * @throws RunError or ModelError naming what is wrong with the model; OccupiedFolderError for a folder with files in it
 */
export async function exportAudioLlm(from: string, to: string, options: ExportOptions): Promise<void> {
  await mustBeEmpty(to);
  const { folder, ...read } = await readTrained(from);
  const trained = await withLora(read, options);
  const encoderAt = (encoder: string) => encoderOf(folder, trained.experiment, encoder);
  await saveModel(to, trained, { encoderAt, half: options.half });
}

/**
 * Writes the LLM of an audio-LLM as a folder that transformers loads; adapters that are kept stand in `adapter/`, as
 * PEFT loads them. How the LLM hears is no part of it.
 * @throws as `exportAudioLlm`
 */
export async function exportLlm(from: string, to: string, options: ExportOptions): Promise<void> {
  await mustBeEmpty(to);
  const trained = await readTrained(from);
  const { ffn = [] } = trained.model;
  checkFeedForward(from, ffn, trained.model.llm.intermediateSize);
  const { model, llm, parameters } = await withLora(trained, options);
  const shapes = parameterShapes(llm.config);
  const own = new Map([...untied(ffn, parameters)].filter(([name]) => shapes.has(name)));
  await writeFolderAtomic(to, async (aside) => {
    await saveLlm(aside, { ...llm, config: model.llm, parameters: own }, { half: options.half });
    if (model.lora !== undefined) await writeAdapter(join(aside, 'adapter'), model.lora, parameters, to);
  });
}

/** @throws RunError for a layer that transformers has no name for */
function checkFeedForward(from: string, ffn: readonly FeedForwardLayer[], intermediateSize: number): void {
  for (const [at, layer] of ffn.entries()) {
    const what =
      layer.kind === 'sparse' || layer.kind === 'moc'
        ? 'has a sparse feed-forward'
        : layer.kind === 'none'
          ? 'has no feed-forward'
          : layer.kind === 'wide' && layer.width !== intermediateSize
            ? `has a feed-forward of ${layer.width} units, the LLM's own have ${intermediateSize}`
            : undefined;
    if (what !== undefined)
      throw new RunError(
        `${from}: layer ${at} ${what} (llm.ffn), which transformers has no name for; choose --format audio-llm or onnx`,
      );
  }
}

/** Rounding is far below this share of the largest logit. */
const largestMergeError = 1e-4;

/**
 * The model with adapters as asked for. Merged, it must give the same logits.
 * @throws RunError where there are none to keep, and where merging changes the model
 */
export async function withLora(
  trained: TrainedModel,
  { lora, note }: Pick<ExportOptions, 'lora' | 'note'>,
): Promise<TrainedModel> {
  const { model, experiment, parameters } = trained;
  if (model.lora === undefined && lora === 'keep')
    throw new RunError('--lora keep: the model has no low-rank adapters beside its weights');
  if (model.lora === undefined || lora === 'keep') return trained;
  const merged = mergeLora(parameters);
  const shapes = parameterShapes(model.llm);
  const ofLlm = (tensors: ParameterTensors) =>
    new Map([...tensors].filter(([name]) => shapes.has(name) || isAdapter(name) || isFeedForward(name)));
  // Where scores are close, rounding decides a choice; what is compared is weights.
  const feedForward = model.ffn ? feedForwardOf(model.ffn.map(withoutChoice)) : model.feedForward;
  const engine = onnxEngine({ threads: experiment.train.threads });
  const error = await mergeError(
    { config: model.llm, feedForward, apart: ofLlm(parameters), merged: ofLlm(merged) },
    engine,
  ).finally(() => engine.dispose());
  // Neither is true of what is no number.
  if (!(error <= largestMergeError)) {
    throw new RunError(
      `merging the adapters changes the logits by ${error.toExponential(1)} of the largest one, more than rounding does; --lora keep leaves them beside the weights`,
    );
  }
  note?.(
    `merged ${model.lora.modules.length} adapters: logits change by ${error.toExponential(1)} of the largest`,
  );
  return {
    ...trained,
    model: { ...model, lora: undefined },
    parameters: merged,
  };
}

/**
 * What a run's folder, or a model's, holds, and where the model stands.
 * @param overrides of its experiment: `path.to.field=value`
 */
export async function readTrained(
  from: string,
  overrides: readonly string[] = [],
): Promise<TrainedModel & { readonly folder: string }> {
  const folder = existsSync(join(from, modelMarker)) ? from : join(from, 'model');
  const path = join(folder, experimentFile);
  if (!existsSync(path)) {
    throw new RunError(
      `${from}: neither a trained model's folder nor a run's; \`palkit train\` writes ${join(folder, modelMarker)} when the curriculum is done`,
    );
  }
  const { experiment } = await loadExperiment(path, overrides);
  const widths = new Map<string, { width: number }>();
  for (const { encoder } of experiment.streams) {
    const { manifest } = await readEncoderManifest(encoderOf(folder, experiment, encoder));
    widths.set(encoder, { width: manifest.width });
  }
  const { model, llm, parameters } = await loadModel(folder, (loaded, frames) =>
    assemble(experiment, loaded, widths, frames),
  );
  return { folder, experiment, model, llm, parameters, results: await readResults(folder) };
}
