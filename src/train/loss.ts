/** The loss of an audio-LLM on a batch of questions with their answers. */
import type { AudioLlm } from '../pal/audioLlm.ts';
import { type BatchShape, batchFeeds, batchInputs, type Row, targetLoss } from '../pal/batch.ts';
import { audioTokens } from '../pal/streams.ts';
import { multiply, sum } from '../tensor/operations.ts';
import type { Value } from '../tensor/program.ts';
import { float32 } from '../tensor/tensor.ts';
import { scope } from '../tensor/trace.ts';
import type { Batch, Objective } from './step.ts';

/** Cross-entropy of the target tokens, each with a weight, and beside it what feed-forward layers ask for. */
export function answerObjective(model: AudioLlm, shape: BatchShape): Objective {
  return {
    inputs: { ...batchInputs(model, shape), 'target.weights': { dtype: 'float32', shape: [shape.targets] } },
    summedLoss: (parameters, inputs, scale) => {
      const given = inputs['target.weights'] as Value;
      const weights = scale === undefined ? given : scope('loss', () => multiply(given, scale));
      const { loss, auxiliaryLoss, statistics } = targetLoss(model, parameters, inputs, weights);
      if (auxiliaryLoss === undefined) return { loss, statistics };
      return {
        loss,
        // Of the micro-batch as a whole: it counts as much as its tokens.
        auxiliaryLoss: scope('loss', () => multiply(auxiliaryLoss, sum(weights))),
        statistics: { auxiliaryLoss, ...statistics },
      };
    },
  };
}

/**
 * A batch for `answerObjective`; every target of every row counts as one.
 * @param size the number of the shape, where a step has several
 */
export function answerBatch(model: AudioLlm, shape: BatchShape, rows: readonly Row[], size = 0): Batch {
  const supervisedTokens = rows.reduce((total, row) => total + row.targets.length, 0);
  const weights = new Float32Array(shape.targets).fill(1, 0, supervisedTokens);
  const perClip = model.streams.reduce((total, stream) => total + audioTokens(stream), 0);
  return {
    feeds: {
      ...batchFeeds(model, shape, rows),
      'target.weights': float32([shape.targets], weights),
    },
    supervisedTokens,
    tokens: rows.reduce((total, row) => total + row.ids.length + perClip, 0),
    size,
  };
}
