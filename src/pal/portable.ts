/**
 * A trained audio-LLM cut into programs that run on their own: a connector per stream, the decoder over a prompt, and
 * the decoder's next step with the cache that the prompt left. Weights are constants of the programs.
 */
import { stepProgram } from '../llm/generate.ts';
import { frozen, type ParameterTensors } from '../tensor/parameters.ts';
import type { Program, Value, ValueType } from '../tensor/program.ts';
import { trace } from '../tensor/trace.ts';
import { type AudioLlm, forwardFrom } from './audioLlm.ts';
import { type ConnectedAudio, connect, distinctTokens } from './connectors.ts';
import { cacheLayoutOf, cacheOutputs, promptRowsValid } from './generate.ts';
import type { Stream } from './streams.ts';

/** The sizes that the programs are made for. */
export interface PortableShape {
  readonly batch: number;
  /** Tokens of the longest prompt; shorter ones are padded on the right. */
  readonly promptRows: number;
  readonly maxNewTokens: number;
}

export interface PortablePrograms {
  /** By stream: `frames` [B, F, E], `valid` [B, F] -> `tokens` [B, A, D], or `tokens.<layer>`, and `bias`. */
  readonly connectors: ReadonlyMap<string, Program>;
  /** `ids` [B, T], `last` [B], what the connectors give, as `<stream>.<name>` -> `logits` [B, V] and the cache. */
  readonly prompt: Program;
  /** `token` [B], `slot` [B] and the cache -> `logits` [B, V], and the cache as `next.<name>`. */
  readonly step: Program;
}

export function portablePrograms(
  model: AudioLlm,
  parameters: ParameterTensors,
  { batch, promptRows, maxNewTokens }: PortableShape,
): PortablePrograms {
  const layout = cacheLayoutOf(model, batch, promptRows, maxNewTokens);
  const connectors = new Map(
    model.streams.map((stream) => [stream.name, connectorProgram(model, stream, parameters, batch)]),
  );
  const heard = [...connectors].flatMap(([name, { outputs }]) =>
    [...outputs].map(([output, { dtype, shape }]): [string, ValueType] => [
      `${name}.${output}`,
      { dtype, shape },
    ]),
  );
  const types: Record<string, ValueType> = {
    ids: { dtype: 'int32', shape: [batch, promptRows] },
    last: { dtype: 'int32', shape: [batch] },
    ...Object.fromEntries(heard),
  };
  const prompt = trace<string>(types, (inputs) => {
    const weights = frozen(parameters);
    const audio = new Map(
      model.streams.map((stream): [Stream, ConnectedAudio] => [
        stream,
        connectedInputs(model, stream, inputs),
      ]),
    );
    const last = inputs.last as Value;
    const valid = () => promptRowsValid(last, promptRows);
    const pass = forwardFrom(model, weights, inputs.ids as Value, audio, valid);
    return cacheOutputs(model, weights, pass, maxNewTokens, last);
  });
  return { connectors, prompt, step: stepProgram(model.llm, parameters, model.feedForward, layout) };
}

function connectorProgram(
  { llm }: AudioLlm,
  stream: Stream,
  parameters: ParameterTensors,
  batch: number,
): Program {
  const types = {
    frames: { dtype: 'float32', shape: [batch, stream.frames, stream.width] },
    valid: { dtype: 'float32', shape: [batch, stream.frames] },
  } as const;
  return trace<string>(types, (inputs) => {
    const { tokensBAD, biasB11A } = connect(
      stream,
      frozen(parameters),
      inputs.frames as Value,
      inputs.valid as Value,
    );
    const tokens = distinctTokens(stream, llm.layers).map((layer) => [
      tokensName(layer),
      tokensBAD(layer ?? 0),
    ]);
    return { ...Object.fromEntries(tokens), bias: biasB11A };
  });
}

function connectedInputs(
  { llm }: AudioLlm,
  stream: Stream,
  inputs: Readonly<Record<string, Value>>,
): ConnectedAudio {
  const isShared = distinctTokens(stream, llm.layers)[0] === undefined;
  return {
    tokensBAD: (layer) => inputs[`${stream.name}.${tokensName(isShared ? undefined : layer)}`] as Value,
    biasB11A: inputs[`${stream.name}.bias`] as Value,
  };
}

function tokensName(layer: number | undefined): string {
  return layer === undefined ? 'tokens' : `tokens.${layer}`;
}
