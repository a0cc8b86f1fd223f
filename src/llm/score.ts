/**
 * How likely tokens are, and the loss of it. Logits are made for some rows at a time, so that [rows x vocabulary] never
 * stands whole in memory, and with the vocabulary in front, [V, N]: the products of the backward pass then read them
 * row by row, where columns of a wide table would miss the cache at every step.
 *
 * Shape suffixes: N rows, V vocabulary, D hidden.
 */
import {
  add,
  after,
  cast,
  concat,
  divide,
  exp,
  gather,
  log,
  matmul,
  max,
  multiply,
  reshape,
  rmsNorm,
  slice,
  subtract,
  sum,
} from '../tensor/operations.ts';
import { type Parameters, parameter } from '../tensor/parameters.ts';
import type { Value } from '../tensor/program.ts';
import { absoluteScope, named, productType, withGradient } from '../tensor/trace.ts';
import type { DecoderConfig } from './config.ts';
import { headName } from './decoder.ts';

/** Logits that stand in memory at once: 128 MiB in float32. */
const logitsAtOnce = 2 ** 25;

/**
 * Log-probabilities of given tokens, [N].
 * @param hiddenND the last layer's hidden states, not normalised
 * @param idsN the tokens, int32
 */
export function tokenLogProbabilities(
  config: DecoderConfig,
  parameters: Parameters,
  hiddenND: Value,
  idsN: Value,
  limit = logitsAtOnce,
): Value {
  const { normedND, headVD, ownN } = targets(config, parameters, hiddenND, idsN);
  const parts = chunks(normedND, headVD, limit).map(
    ([start, end]) => exponentials(slice(normedND, 0, start, end), headVD).logSumExpN,
  );
  return subtract(ownN, concat(parts, 0));
}

/**
 * Cross-entropy of given tokens, each times its weight, summed up: Σₙ weightₙ (log Σᵥ exp(headᵥ · hiddenₙ) - head of
 * its token · hiddenₙ). No gradient flows to the weights.
 * @param hiddenND the last layer's hidden states, not normalised
 * @param idsN the tokens, int32
 * @param limit logits that may stand in memory at once
 */
export function tokenLoss(
  config: DecoderConfig,
  parameters: Parameters,
  hiddenND: Value,
  idsN: Value,
  weightsN: Value,
  limit = logitsAtOnce,
): Value {
  const { normedND, headVD, ownN } = targets(config, parameters, hiddenND, idsN);
  return subtract(summedLogSumExp(normedND, headVD, weightsN, limit), sum(multiply(ownN, weightsN)));
}

/** Normalised hidden states, the head, and each token's own logit. */
function targets(config: DecoderConfig, parameters: Parameters, hiddenND: Value, idsN: Value) {
  const normedND = rmsNorm(hiddenND, parameter(parameters, 'model.norm.weight'), config.rmsNormEpsilon);
  const headVD = parameter(parameters, headName(config));
  const ownN = sum(multiply(normedND, gather(headVD, idsN, 0)), [1]);
  // Rounded as the logits are: the logarithm of a probability near one is the difference of two equal numbers.
  return { normedND, headVD, ownN: cast(ownN, productType(ownN.dtype)) };
}

/** Runs of rows, equally long but for the last, whose logits together stay within the limit. */
function chunks(hiddenND: Value, headVD: Value, limit: number): [start: number, end: number][] {
  const [rows, vocabulary] = [hiddenND.shape[0] as number, headVD.shape[0] as number];
  const count = Math.ceil(rows / Math.max(1, Math.floor(limit / vocabulary)));
  const size = Math.ceil(rows / count);
  return Array.from({ length: Math.ceil(rows / size) }, (_, at) => [
    at * size,
    Math.min(rows, (at + 1) * size),
  ]);
}

/** exp(logit - the row's largest), their sum, and the logarithm of the sum of all exp(logit). */
function exponentials(hiddenND: Value, headVD: Value) {
  const logitsVN = named('logits', matmul(headVD, hiddenND, { transposeB: true }));
  const top1N = max(logitsVN, [0], { keepDimensions: true });
  const weightsVN = exp(subtract(logitsVN, top1N));
  const total1N = sumOverVocabulary(weightsVN);
  const rows = [hiddenND.shape[0] as number];
  return {
    weightsVN,
    totalN: reshape(total1N, rows),
    logSumExpN: reshape(add(log(total1N), top1N), rows),
  };
}

/**
 * The sum [1, N] over a vocabulary [V, N], in two stages: added up one after the other, tens of thousands of float32
 * terms round off in one direction, and every loss comes out too small by as much.
 */
function sumOverVocabulary(xVN: Value): Value {
  const [vocabulary, rows] = xVN.shape as [number, number];
  let stage = Math.floor(Math.sqrt(vocabulary));
  while (vocabulary % stage !== 0) stage--;
  const partial = sum(reshape(xVN, [stage, vocabulary / stage, rows]), [1]);
  return sum(partial, [0], { keepDimensions: true });
}

/**
 * Σₙ weightₙ log Σᵥ exp(headᵥ · hiddenₙ). Its gradient, up to the factor that comes in from above, is known as soon as
 * the logits of a chunk are: it is computed before the next chunk begins, and the logits are forgotten (as the fused
 * linear cross-entropy of Hsu et al. 2024, arXiv 2410.10989, does).
 */
function summedLogSumExp(hiddenND: Value, headVD: Value, weightsN: Value, limit: number): Value {
  const losses: Value[] = [];
  const hiddenParts: Value[] = [];
  let headPart: Value | undefined;
  let earlier: Value[] = [];
  for (const [start, end] of chunks(hiddenND, headVD, limit)) {
    const chunkND = after(slice(hiddenND, 0, start, end), earlier);
    const weightN = slice(weightsN, 0, start, end);
    const { weightsVN, totalN, logSumExpN } = exponentials(chunkND, headVD);
    losses.push(sum(multiply(logSumExpN, weightN)));
    // The gradient of the logits is weights * share, and is never written out: the share of a row scales the narrow
    // side of both products.
    absoluteScope(`gradient.${logSumExpN.name}`, () => {
      const shareN1 = reshape(divide(weightN, totalN), [end - start, 1]);
      const hiddenPart = multiply(matmul(weightsVN, headVD, { transposeA: true }), shareN1);
      // Chunks are added up in the type that the head has, whatever its products have.
      const part = cast(matmul(weightsVN, multiply(chunkND, shareN1)), headVD.dtype);
      hiddenParts.push(hiddenPart);
      headPart = headPart === undefined ? part : add(headPart, part);
      earlier = [hiddenPart, headPart];
    });
  }
  return withGradient(
    losses.reduce((total, loss) => add(total, loss)),
    {
      inputs: [hiddenND, headVD],
      backward: (dy, asked) => {
        const toHead = multiply(headPart as Value, dy);
        const toHidden = multiply(concat(hiddenParts, 0), dy);
        // Else the head's gradient would wait, and the logits with it, until the head is needed: with tied
        // embeddings at the very end.
        return [
          asked(0) ? after(toHidden, asked(1) ? [toHead] : []) : undefined,
          asked(1) ? toHead : undefined,
        ];
      },
    },
  );
}
