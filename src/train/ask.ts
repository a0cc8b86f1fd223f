/** One question about one clip, to a trained model. */
import { join } from 'node:path';
import { readWaveform } from '../audio/waveform.ts';
import { random } from '../config/random.ts';
import type { Experiment } from '../config/schema.ts';
import { scoreChoices } from '../eval/choice.ts';
import { generate } from '../pal/generate.ts';
import { promptFormat } from '../pal/promptFormat.ts';
import { loadModel } from './modelFolder.ts';
import { assemble, loadEncoders, makeEngine, RunError } from './setup.ts';
import { textLimit } from './textLength.ts';

export interface AskResult {
  readonly question: string;
  readonly answer: string;
  /** Options with the probability of each among them, likeliest first; null when none were given. */
  readonly options: readonly { readonly option: string; readonly probability: number }[] | null;
}

/**
 * Answers by generation or, given options, by their likelihood.
 * @throws AudioError, EncoderError or RunError naming what is wrong
 */
export async function askClip(
  experiment: Experiment,
  clipPath: string,
  question: string,
  options: readonly string[] | undefined,
): Promise<AskResult> {
  const waveform = await readWaveform(clipPath);
  const engine = await makeEngine(experiment);
  const encoders = await loadEncoders(experiment);
  try {
    const { model, llm, parameters } = await loadModel(join(experiment.run.dir, 'model'), (loaded, frames) =>
      assemble(experiment, loaded, encoders, frames),
    );
    const heard = [...encoders].map(
      async ([name, encoder]) => [name, await encoder.encode(waveform)] as const,
    );
    const clip = new Map(await Promise.all(heard));
    const { tokenizer } = llm;
    const format = promptFormat(experiment.prompt, llm);
    const promptIds = format.promptIds({ question, options });
    const limit = textLimit(experiment, model);
    if (promptIds.length > limit) {
      throw new RunError(
        `the question has ${promptIds.length} text tokens, the model takes at most ${limit}`,
      );
    }
    if (options !== undefined) {
      const item = {
        id: clipPath,
        promptIds,
        options: options.map((option) => format.answerIds(option)),
        clip,
      };
      const [scores = []] = await scoreChoices([item], { engine, model, parameters, batchSize: 8 });
      const top = Math.max(...scores);
      const weights = scores.map((score) => Math.exp(score - top));
      const total = weights.reduce((sum, weight) => sum + weight, 0);
      const ranked = options
        .map((option, at) => ({ option, probability: (weights[at] as number) / total }))
        .sort((a, b) => b.probability - a.probability);
      return { question, answer: ranked[0]?.option ?? '', options: ranked };
    }
    const { maxNewTokens, decoding, temperature } = experiment.eval.open;
    const [ids = []] = await generate({
      engine,
      model,
      parameters,
      rows: [{ id: clipPath, ids: promptIds, clip }],
      maxNewTokens,
      decoding:
        decoding === 'greedy'
          ? { decoding }
          : { decoding, temperature, random: random(experiment.seed, 'ask', question) },
    });
    return { question, answer: tokenizer.decode(ids).trim(), options: null };
  } finally {
    for (const encoder of encoders.values()) await encoder.dispose();
    await engine.dispose();
  }
}
