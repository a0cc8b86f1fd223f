/**
 * Feed-forward layers that learn what those gave whose place they take: each alone, on the hidden states of the model as
 * it was, before the whole is trained (the reconstruction of Mixture-of-Channels' fine-tuning, arXiv 2511.09323).
 */
import { ConfigError } from '../config/configError.ts';
import { denseFeedForward, type FeedForwards } from '../ffn/feedForward.ts';
import { feedForwardLayerOf, isFeedForward, isHashTable } from '../ffn/parameters.ts';
import type { AudioLlm } from '../pal/audioLlm.ts';
import { forward } from '../pal/audioLlm.ts';
import { type BatchShape, batchInputs } from '../pal/batch.ts';
import { add, detach, divide, mean, multiply, subtract, sum } from '../tensor/operations.ts';
import { frozen, type Parameters, type ParameterTensors } from '../tensor/parameters.ts';
import type { Value } from '../tensor/program.ts';
import { scope } from '../tensor/trace.ts';
import type { Objective } from './step.ts';

/**
 * The parameters of a converted model that reconstruction trains: those of the layers that compute something else than
 * they did.
 * @throws ConfigError where there are none: layers were dropped, or keep everything that they had
 */
export function reconstructed(model: AudioLlm, parameters: ParameterTensors): Set<string> {
  const names = [...parameters.keys()].filter((name) => {
    if (isFeedForward(name)) return !isHashTable(name);
    const layer = feedForwardLayerOf(name);
    return layer >= 0 && learns(model, layer);
  });
  if (names.length === 0)
    throw new ConfigError(
      'reconstruct: no feed-forward layer has anything to learn: those of llm.ffn are none, or all that they were',
    );
  return new Set(names);
}

function learns({ feedForward }: AudioLlm, layer: number): boolean {
  const own = feedForward(layer);
  return own !== undefined && own !== denseFeedForward;
}

/**
 * The squared error of every replaced layer as a share of what it is to give, Σ (y - target)² / Σ target², added up over
 * the layers, and times the tokens of the batch, as losses of a step are.
 * @param before the model as it was; its weights are constants
 */
export function reconstructionObjective(
  model: AudioLlm,
  before: ParameterTensors,
  shape: BatchShape,
): Objective {
  return {
    inputs: { ...batchInputs(model, shape), 'target.weights': { dtype: 'float32', shape: [shape.targets] } },
    summedLoss: (parameters, inputs) => {
      const errors: Value[] = [];
      const teacher = teacherOf(model, parameters, errors);
      const dense: AudioLlm = { ...model, ffn: [], feedForward: teacher };
      forward(dense, frozen(before), inputs.ids as Value, inputs);
      const total = errors.reduce((all, error) => add(all, error));
      return { loss: scope('loss', () => multiply(total, sum(inputs['target.weights'] as Value))) };
    },
  };
}

/** Goes on as the model did, and notes how far the new layer is from it. */
function teacherOf({ feedForward }: AudioLlm, parameters: Parameters, errors: Value[]): FeedForwards {
  return (layer) => (x, before, context) => {
    const target = denseFeedForward(x, before, context);
    const learner = feedForward(layer);
    if (learner !== undefined && learner !== denseFeedForward) {
      const given = detach(target.y);
      const { y } = scope('reconstruction', () => learner(detach(x), parameters, context));
      const difference = subtract(y, given);
      errors.push(divide(mean(multiply(difference, difference)), mean(multiply(given, given))));
    }
    return target;
  };
}
