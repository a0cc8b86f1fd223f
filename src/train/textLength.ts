/** Questions that are too long. Text is never cut: a cut could take the audio's place or part of an answer away. */
import type { Experiment } from '../config/schema.ts';
import type { Example } from '../data/manifest.ts';
import type { AudioLlm } from '../pal/audioLlm.ts';
import { layoutOf } from '../pal/layout.ts';
import type { PromptFormat } from '../pal/prompt.ts';
import { RunError } from './setup.ts';

/** A sample that is left out, and why. */
export interface SkippedSample {
  readonly id: string;
  readonly reason: string;
}

/** Text tokens of a question with the longest answer that it may get, the end of the answer among them. */
export function textTokens(format: PromptFormat, example: Example): number {
  const answers = [example.answer, ...(example.options ?? [])].map((text) => format.answerIds(text).length);
  return format.promptIds(example).length + Math.max(...answers) + 1;
}

/** The most text tokens that a question may have: what the model's positions leave beside the audio, or less. */
export function textLimit({ data }: Experiment, model: AudioLlm): number {
  return Math.min(data.maxTextTokens ?? Number.POSITIVE_INFINITY, textPositions(model));
}

function textPositions({ llm, streams, integration, slot }: AudioLlm): number {
  const layers = layoutOf({ layerCount: llm.layers, streams, integration, textRows: 0, slot });
  return llm.maxPositions - Math.max(0, ...layers.map(({ textOffset }) => textOffset));
}

/**
 * Parts the examples whose text fits from those that are left out.
 * @param purpose in evaluation there must be room for what is generated in answer to open questions, too
 * @throws RunError naming the sample and its length, unless `data.onTooLong` is to skip
 */
export function fitting(
  experiment: Experiment,
  model: AudioLlm,
  format: PromptFormat,
  examples: readonly Example[],
  purpose: 'training' | 'evaluation',
): { fitting: Example[]; tooLong: SkippedSample[] } {
  const limit = textLimit(experiment, model);
  const positions = textPositions(model);
  const { maxNewTokens } = experiment.eval.open;
  const tooLong = new Map<string, string>();
  for (const example of examples) {
    const tokens = textTokens(format, example);
    if (tokens > limit) {
      tooLong.set(
        example.id,
        `${tokens} text tokens, and at most ${limit} are taken (${limitedBy(experiment, limit)})`,
      );
    } else if (purpose === 'evaluation' && example.kind === 'open') {
      const asked = format.promptIds(example).length;
      if (asked + maxNewTokens > positions) {
        tooLong.set(
          example.id,
          `${asked} text tokens and an answer of up to ${maxNewTokens} (eval.open.maxNewTokens), and at most ` +
            `${positions} are taken (${fromPositions})`,
        );
      }
    }
  }
  const [first] = tooLong;
  if (first !== undefined && experiment.data.onTooLong === 'error') {
    throw new RunError(
      `sample "${first[0]}" has ${first[1]}; ${tooLong.size} of ${examples.length} questions are too long. ` +
        'Shorten them, or leave them out with data.onTooLong: skip',
    );
  }
  return {
    fitting: examples.filter(({ id }) => !tooLong.has(id)),
    tooLong: [...tooLong].map(([id, reason]) => ({ id, reason })),
  };
}

function limitedBy({ data }: Experiment, limit: number): string {
  return limit === data.maxTextTokens ? 'data.maxTextTokens' : fromPositions;
}

const fromPositions = "the model's positions, less those of the audio";
