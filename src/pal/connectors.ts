/**
 * Connectors: from encoder frames to the LLM's hidden width.
 *
 * Shape suffixes: B batch, F encoder frames, E encoder width, A audio tokens, D LLM hidden width, M latents.
 */
import { masked } from '../llm/decoder.ts';
import {
  add,
  constant,
  divide,
  erf,
  expand,
  filled,
  linear,
  matmul,
  mean,
  multiply,
  reshape,
  softmax,
  sqrt,
  subtract,
  transpose,
} from '../tensor/operations.ts';
import { type ParameterSpec, type Parameters, parameter } from '../tensor/parameters.ts';
import type { Value } from '../tensor/program.ts';
import { float32 } from '../tensor/tensor.ts';
import { scope } from '../tensor/trace.ts';
import { layersOf, type Stream } from './streams.ts';

/**
 * The connector's own parameters by name, with how they start. The trunk is shared; with `perLayer` every layer
 * has its own last projection, otherwise all layers share one.
 */
export function connectorParameters(
  stream: Stream,
  hiddenSize: number,
  layerCount: number,
): Map<string, ParameterSpec> {
  const specs = new Map<string, ParameterSpec>();
  const prefix = `connector.${stream.name}`;
  const weight = (name: string, out: number, into: number) =>
    specs.set(`${prefix}.${name}.weight`, { shape: [out, into], initial: 'normal', deviation: into ** -0.5 });
  const bias = (name: string, size: number) =>
    specs.set(`${prefix}.${name}.bias`, { shape: [size], initial: 'zeros' });
  const { connector } = stream;
  if (connector.kind === 'mlp') {
    weight('in_proj', connector.hidden, stream.width);
    bias('in_proj', connector.hidden);
  } else {
    specs.set(`${prefix}.latents`, {
      shape: [connector.tokens, hiddenSize],
      initial: 'normal',
      deviation: 1,
    });
    weight('in_proj', hiddenSize, stream.width);
    bias('in_proj', hiddenSize);
    for (let block = 0; block < connector.blocks; block++) {
      for (const name of ['q_proj', 'k_proj', 'v_proj', 'o_proj']) {
        weight(`blocks.${block}.${name}`, hiddenSize, hiddenSize);
      }
      weight(`blocks.${block}.up_proj`, 2 * hiddenSize, hiddenSize);
      weight(`blocks.${block}.down_proj`, hiddenSize, 2 * hiddenSize);
    }
  }
  const trunk = connector.kind === 'mlp' ? connector.hidden : hiddenSize;
  for (const layer of distinctTokens(stream, layerCount)) {
    weight(projectionName(stream, layer), hiddenSize, trunk);
    bias(projectionName(stream, layer), hiddenSize);
  }
  return specs;
}

/** Layers that are given audio tokens of their own; a single one, named by no layer, when all get the same. */
export function distinctTokens(stream: Stream, layerCount: number): readonly (number | undefined)[] {
  return hasProjectionPerLayer(stream) ? layersOf(stream, layerCount) : [undefined];
}

/** A prefix stream enters once, so its projection cannot differ by layer. */
function hasProjectionPerLayer({ connector, integration }: Stream): boolean {
  return connector.perLayer && integration.mode === 'attention-only';
}

function projectionName(stream: Stream, layer: number | undefined): string {
  return hasProjectionPerLayer(stream) && layer !== undefined ? `layers.${layer}.out_proj` : 'out_proj';
}

export interface ConnectedAudio {
  /** Audio tokens [B, A, D] for a layer. */
  readonly tokensBAD: (layer: number) => Value;
  /** 0 for a real token, `masked` for padding, [B, 1, 1, A]. */
  readonly biasB11A: Value;
}

/**
 * Runs a stream's connector.
 * @param framesBFE encoder output
 * @param validBF 1 for a real frame, 0 for padding
 */
export function connect(
  stream: Stream,
  parameters: Parameters,
  framesBFE: Value,
  validBF: Value,
): ConnectedAudio {
  const prefix = `connector.${stream.name}`;
  const project = (x: Value, name: string) =>
    linear(x, parameter(parameters, `${prefix}.${name}.weight`), parameters.get(`${prefix}.${name}.bias`));
  return scope(`streams.${stream.name}.connector`, () => {
    const [batch, frames] = validBF.shape as [number, number];
    const frameBias = multiply(subtract(1, reshape(validBF, [batch, 1, 1, frames])), masked);
    const entered = project(standardize(framesBFE), 'in_proj');
    const latent = stream.connector.kind === 'latent';
    const trunk = latent ? resample(stream, parameters, entered, frameBias) : gelu(entered);
    const made = new Map<string, Value>();
    return {
      tokensBAD: (layer) => {
        const name = projectionName(stream, layer);
        const known = made.get(name) ?? project(trunk, name);
        made.set(name, known);
        return known;
      },
      biasB11A: latent ? filled('float32', [batch, 1, 1, trunk.shape[1] ?? 0], 0) : frameBias,
    };
  });
}

/** Learned latents that read the frames by cross-attention (a Perceiver resampler; Q-Former without its text). */
function resample(stream: Stream, parameters: Parameters, entered: Value, frameBias: Value): Value {
  if (stream.connector.kind !== 'latent') throw new Error('only latent connectors resample');
  const { tokens, heads, blocks } = stream.connector;
  const prefix = `connector.${stream.name}`;
  const [batch, frames, hidden] = entered.shape as [number, number, number];
  const placedBFD = add(entered, constant(sinusoids(frames, hidden)));
  let latentsBMD = expand(reshape(parameter(parameters, `${prefix}.latents`), [1, tokens, hidden]), [
    batch,
    tokens,
    hidden,
  ]);
  for (let block = 0; block < blocks; block++) {
    const project = (x: Value, name: string) =>
      linear(x, parameter(parameters, `${prefix}.blocks.${block}.${name}.weight`));
    const split = (x: Value) =>
      transpose(reshape(x, [batch, x.shape[1] ?? 0, heads, hidden / heads]), [0, 2, 1, 3]);
    const queries = split(project(standardize(latentsBMD), 'q_proj'));
    const keys = split(project(standardize(placedBFD), 'k_proj'));
    const values = split(project(standardize(placedBFD), 'v_proj'));
    const scores = matmul(queries, keys, { transposeB: true, scale: (hidden / heads) ** -0.5 });
    const mixed = transpose(matmul(softmax(add(scores, frameBias)), values), [0, 2, 1, 3]);
    latentsBMD = add(latentsBMD, project(reshape(mixed, [batch, tokens, hidden]), 'o_proj'));
    latentsBMD = add(latentsBMD, project(gelu(project(standardize(latentsBMD), 'up_proj')), 'down_proj'));
  }
  return standardize(latentsBMD);
}

/** Zero mean and unit variance over the last axis, with nothing learned (as LTU does in front of its projection). */
export function standardize(x: Value): Value {
  const centered = subtract(x, mean(x, [-1], { keepDimensions: true }));
  const variance = mean(multiply(centered, centered), [-1], { keepDimensions: true });
  return divide(centered, sqrt(add(variance, 1e-5)));
}

/** Gaussian error linear unit (Hendrycks and Gimpel 2016), exact. */
export function gelu(x: Value): Value {
  return multiply(multiply(x, 0.5), add(erf(multiply(x, Math.SQRT1_2)), 1));
}

/** Fixed sinusoidal positions (Vaswani et al. 2017), [1, rows, width]. */
export function sinusoids(rows: number, width: number) {
  const values = Float32Array.from({ length: rows * width }, (_, at) => {
    const [row, column] = [Math.floor(at / width), at % width];
    const angle = row / 10000 ** ((2 * Math.floor(column / 2)) / width);
    return column % 2 === 0 ? Math.sin(angle) : Math.cos(angle);
  });
  return float32([1, rows, width], values);
}
