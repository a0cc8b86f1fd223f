/** palkit as a library: what the command line is made of. */
export { loadEncoder } from './audio/encoder.ts';
export { extractFeatures, type FeatureConfig } from './audio/features.ts';
export { encodeWav, readWaveform, type Waveform } from './audio/waveform.ts';
export { type LmExperiment, lmSchema } from './config/lmSchema.ts';
export { loadExperiment, loadYaml } from './config/load.ts';
export type { Experiment } from './config/schema.ts';
export { type Example, readManifest, writeManifest } from './data/manifest.ts';
export type { Engine, Executable } from './engine/engine.ts';
export { onnxEngine } from './engine/onnx/engine.ts';
export { programToOnnx } from './engine/onnx/lower.ts';
export { tfjsEngine } from './engine/tfjs/engine.ts';
export { type EvaluationRecord, evaluate } from './eval/evaluate.ts';
export { readAdapter, writeAdapter } from './llm/adapter.ts';
export { mergeLora, unmergeLora } from './llm/lora.ts';
export { loadLlm, saveLlm } from './llm/weights.ts';
export { type AudioLlm, forward } from './pal/audioLlm.ts';
export { generate, generateText } from './pal/generate.ts';
export { promptFormat } from './pal/promptFormat.ts';
export type { Stream, StreamConfig } from './pal/streams.ts';
export { choicesOf, type RoutedRows } from './probe/choices.ts';
export { layerOverlap, normalizedMutualInformation } from './probe/routing.ts';
export {
  type Geometry,
  geometryOf,
  linearCka,
  localNeighbourhoodSimilarity,
} from './probe/similarity.ts';
export { gradients } from './tensor/gradients.ts';
export { interpret } from './tensor/interpret.ts';
export * as operations from './tensor/operations.ts';
export { countFlops, printProgram } from './tensor/print.ts';
export type { Program, Value } from './tensor/program.ts';
export { dependencies, dependents, select } from './tensor/reach.ts';
export { named, scope, trace } from './tensor/trace.ts';
export { type AskResult, askClip, type LoadedAudioLlm, loadAudioLlm } from './train/ask.ts';
export { runEvaluation } from './train/evaluateRun.ts';
export { exportAudioLlm, exportLlm } from './train/export.ts';
export { exportOnnx } from './train/exportOnnx.ts';
export { perplexityOf, sequencesOf } from './train/perplexity.ts';
export { type LmResult, runLm } from './train/pretrain.ts';
export { runTraining } from './train/run.ts';
