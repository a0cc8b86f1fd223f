/** How well a language model predicts text: sequences of equal length, and what their tokens cost. */
import { random } from '../config/random.ts';
import { type Engine, plain } from '../engine/engine.ts';
import type { AudioLlm } from '../pal/audioLlm.ts';
import type { BatchShape, Row } from '../pal/batch.ts';
import { frozen, type ParameterTensors } from '../tensor/parameters.ts';
import type { Program } from '../tensor/program.ts';
import { trace } from '../tensor/trace.ts';
import { answerBatch, answerObjective } from './loss.ts';
import { NonFiniteError } from './step.ts';

/** A text cut into sequences that each predict the token behind every one of theirs; what is left over at the end goes. */
export interface Sequences {
  readonly count: number;
  row(at: number): Row;
}

/** @param length tokens of a sequence */
export function sequencesOf(ids: Int32Array, length: number): Sequences {
  return {
    count: Math.max(0, Math.floor((ids.length - 1) / length)),
    row: (at) => {
      const start = at * length;
      const tokens = [...ids.subarray(start, start + length)];
      const targets = tokens.map((_, position) => ({ position, id: ids[start + position + 1] as number }));
      return { id: `tokens ${start} to ${start + length}`, ids: tokens, clip: undefined, targets };
    },
  };
}

/** Batches of so many sequences of this length. */
export function textShape(sequences: number, length: number): BatchShape {
  return { rows: sequences, textRows: length, targets: sequences * length };
}

/** The summed loss of a batch, forward alone; parameters are constants. */
export function lossProgram(model: AudioLlm, parameters: ParameterTensors, shape: BatchShape): Program {
  const { inputs, summedLoss } = answerObjective(model, shape);
  return trace<string>(inputs, (given) => ({ loss: summedLoss(frozen(parameters), given).loss }));
}

export interface Perplexity {
  /** exp(nll) */
  readonly perplexity: number;
  /** Mean negative log-likelihood of a token, in nats. */
  readonly nll: number;
  readonly tokens: number;
}

/**
 * The perplexity of a model on text. Each token counts alike, and is predicted from what stands before it in its own
 * sequence. Where there are more tokens than are wanted, sequences are drawn at random, for every model the same.
 * @throws NonFiniteError when a loss is no number
 */
export async function perplexityOf(
  { engine, model, parameters }: { engine: Engine; model: AudioLlm; parameters: ParameterTensors },
  sequences: Sequences,
  { batchSize, length, mostTokens }: { batchSize: number; length: number; mostTokens: number },
  onProgress: (done: number, total: number) => void = () => {},
): Promise<Perplexity> {
  const count = Math.min(sequences.count, Math.max(1, Math.floor(mostTokens / length)));
  const drawn = random('held-out text')
    .shuffle([...Array(sequences.count).keys()])
    .slice(0, count);
  const shape = textShape(Math.min(batchSize, count), length);
  const executable = await engine.compile(lossProgram(model, parameters, shape));
  let [total, tokens] = [0, 0];
  try {
    for (let start = 0; start < count; start += shape.rows) {
      const rows = drawn.slice(start, start + shape.rows).map((at) => sequences.row(at));
      const { feeds, supervisedTokens } = answerBatch(model, shape, rows);
      total += Number(plain(await executable.run(feeds), 'loss').data[0]);
      tokens += supervisedTokens;
      onProgress(start + rows.length, count);
    }
  } finally {
    await executable.dispose();
  }
  const nll = total / tokens;
  if (!Number.isFinite(nll)) throw new NonFiniteError(`the loss on the held-out text is ${nll}`);
  return { perplexity: Math.exp(nll), nll, tokens };
}
