/** Audio question answering, with the controls that show whether the model listens. */
import { random } from '../config/random.ts';
import type { Experiment } from '../config/schema.ts';
import type { Example } from '../data/manifest.ts';
import type { Engine } from '../engine/engine.ts';
import type { Tokenizer } from '../llm/tokenizer.ts';
import type { AudioLlm } from '../pal/audioLlm.ts';
import type { ClipFeatures } from '../pal/batch.ts';
import { generateText } from '../pal/generate.ts';
import type { PromptConfig, PromptFormat } from '../pal/prompt.ts';
import type { ParameterTensors } from '../tensor/parameters.ts';
import { best, type ChoiceItem, scoreChoices } from './choice.ts';
import { type ControlName, shuffleClips } from './controls.ts';
import { decodingOf, describeDecoding } from './decoding.ts';
import { majorityAnswers, normalizedMatch, tokenF1, wilsonInterval } from './statistics.ts';

/** Right answers out of how many. */
export interface Accuracy {
  readonly n: number;
  readonly accuracy: number;
  readonly ci95: readonly [low: number, high: number];
}

export interface CategoryAccuracy extends Accuracy {
  readonly chance: number;
  readonly majority: number;
}

export interface OpenRecord {
  readonly n: number;
  /** Same words in the same order. */
  readonly exact: number;
  readonly tokenF1: number;
}

/** Everything needed to judge a score and to repeat it. */
export interface EvaluationRecord extends CategoryAccuracy {
  readonly task: string;
  readonly split: string;
  readonly controls: Readonly<Partial<Record<ControlName, Accuracy>>>;
  readonly byCategory: Readonly<Record<string, CategoryAccuracy>>;
  readonly open: OpenRecord | null;
  /** Samples that could not be read or are too long, and were left out, by id. */
  readonly skipped: readonly { readonly id: string; readonly reason: string }[];
  readonly promptTemplate: string;
  readonly systemPrompt: string | null;
  /** Whether the model's chat template worded the prompts. */
  readonly chat: boolean;
  readonly scoring: string;
  readonly decoding: string;
  readonly parser: string;
  readonly seed: number;
}

/** One example's outcome: a line of eval/<task>.jsonl. */
export interface EvaluationLine {
  readonly id: string;
  readonly category: string;
  readonly question: string;
  readonly answer: string;
  readonly predicted: string;
  readonly correct: boolean;
  /** Log-likelihood per option; null for open questions. */
  readonly scores: Readonly<Record<string, number>> | null;
  /** What was answered under each control. */
  readonly controls: Readonly<Record<string, string>>;
}

export interface Evaluation {
  readonly engine: Engine;
  readonly model: AudioLlm;
  readonly parameters: ParameterTensors;
  readonly tokenizer: Tokenizer;
  readonly prompt: PromptConfig;
  readonly format: PromptFormat;
  readonly task: string;
  readonly split: string;
  readonly examples: readonly Example[];
  /** The training split, from which the majority baseline is read. */
  readonly trainingExamples: readonly Example[];
  /** Features of each clip by the example's `audio`. */
  readonly clips: ReadonlyMap<string, ClipFeatures>;
  /** What the encoders make of silence as long as a clip. */
  readonly silence: (audio: string) => Promise<ClipFeatures>;
  readonly skipped: EvaluationRecord['skipped'];
  readonly controls: readonly ControlName[];
  readonly open: Experiment['eval']['open'];
  readonly batchSize: number;
  readonly seed: number;
  readonly onProgress?: (condition: string, done: number, total: number) => void;
}

type ChoiceExample = Example & { readonly options: string[] };

/** Runs the whole evaluation. */
export function evaluate(
  evaluation: Evaluation,
): Promise<{ record: EvaluationRecord; lines: EvaluationLine[] }> {
  // The controls ask in the same programs, and generation runs its two for every batch.
  return evaluation.engine.reuse(() => evaluateConditions(evaluation));
}

async function evaluateConditions(
  evaluation: Evaluation,
): Promise<{ record: EvaluationRecord; lines: EvaluationLine[] }> {
  const { examples, controls, trainingExamples } = evaluation;
  const choices = examples.filter((example): example is ChoiceExample => example.kind === 'choice');
  const clipIds = choices.map((example) => example.audio);
  const heard = await answersTo(
    evaluation,
    choices,
    'audio',
    clipIds.map((audio) => evaluation.clips.get(audio)),
  );
  const controlled = new Map<ControlName, string[]>();
  for (const control of controls) {
    const clips = await controlClips(evaluation, control, clipIds);
    const { predicted } = await answersTo(evaluation, choices, control, clips);
    controlled.set(control, predicted);
  }
  const open = await answerOpen(evaluation);

  const majority = majorityAnswers(trainingExamples.filter((example) => example.kind === 'choice'));
  const tally = (of: readonly number[]): CategoryAccuracy => {
    const right = of.filter((at) => heard.predicted[at] === choices[at]?.answer).length;
    const byMajority = of.filter(
      (at) => majority.get(choices[at]?.template ?? '') === choices[at]?.answer,
    ).length;
    const chance = of.reduce((total, at) => total + 1 / (choices[at]?.options.length ?? 1), 0);
    return {
      ...accuracyOf(right, of.length),
      chance: of.length === 0 ? 0 : chance / of.length,
      majority: of.length === 0 ? 0 : byMajority / of.length,
    };
  };
  const every = [...choices.keys()];
  const categories = [...new Set(choices.map((example) => example.category))].sort();
  const record: EvaluationRecord = {
    task: evaluation.task,
    split: evaluation.split,
    ...tally(every),
    controls: Object.fromEntries(
      [...controlled].map(([control, predicted]) => [
        control,
        accuracyOf(every.filter((at) => predicted[at] === choices[at]?.answer).length, every.length),
      ]),
    ),
    byCategory: Object.fromEntries(
      categories.map((category) => [
        category,
        tally(every.filter((at) => choices[at]?.category === category)),
      ]),
    ),
    open: open.record,
    skipped: evaluation.skipped,
    promptTemplate: evaluation.prompt.template,
    systemPrompt: evaluation.prompt.system,
    chat: evaluation.prompt.chat,
    scoring: "sum of log-probabilities of the option's tokens, largest wins",
    decoding: describeDecoding(evaluation.open),
    parser: 'open answers: words in lower case without punctuation; exact match and word F1',
    seed: evaluation.seed,
  };
  const lines = choices.map(({ id, category, question, answer, options }, at) => ({
    id,
    category,
    question,
    answer,
    predicted: heard.predicted[at] as string,
    correct: heard.predicted[at] === answer,
    scores: Object.fromEntries(
      options.map((option, index) => [option, heard.scores[at]?.[index] ?? Number.NaN]),
    ),
    controls: Object.fromEntries(
      [...controlled].map(([control, predicted]) => [control, predicted[at] as string]),
    ),
  }));
  return { record, lines: [...lines, ...open.lines] };
}

function accuracyOf(right: number, n: number): Accuracy {
  return { n, accuracy: n === 0 ? 0 : right / n, ci95: wilsonInterval(right, n) };
}

async function controlClips(
  { clips, silence, seed }: Evaluation,
  control: ControlName,
  clipIds: readonly string[],
): Promise<(ClipFeatures | undefined)[]> {
  switch (control) {
    case 'silence':
      return Promise.all(clipIds.map(silence));
    case 'shuffledAudio':
      return shuffleClips(clipIds, random(seed, 'shuffledAudio')).map((audio) => clips.get(audio));
    case 'noAudio':
      return clipIds.map(() => undefined);
  }
}

async function answersTo(
  evaluation: Evaluation,
  choices: readonly ChoiceExample[],
  condition: 'audio' | ControlName,
  clips: readonly (ClipFeatures | undefined)[],
): Promise<{ predicted: string[]; scores: number[][] }> {
  const { engine, format, batchSize, onProgress } = evaluation;
  const model = condition === 'noAudio' ? { ...evaluation.model, streams: [] } : evaluation.model;
  const items: ChoiceItem[] = choices.map((example, at) => ({
    id: example.id,
    promptIds: format.promptIds(example),
    options: example.options.map((option) => format.answerIds(option)),
    clip: clips[at],
  }));
  const scores = await scoreChoices(items, {
    engine,
    model,
    parameters: evaluation.parameters,
    batchSize,
    onProgress: (done, total) => onProgress?.(condition, done, total),
  });
  return {
    predicted: choices.map(({ options }, at) => options[best(scores[at] as number[])] as string),
    scores,
  };
}

/** Answers the open questions by generation. */
async function answerOpen(
  evaluation: Evaluation,
): Promise<{ record: OpenRecord | null; lines: EvaluationLine[] }> {
  const { engine, model, parameters, tokenizer, format, clips, batchSize, seed, onProgress } = evaluation;
  const examples = evaluation.examples.filter((example) => example.kind === 'open');
  if (examples.length === 0) return { record: null, lines: [] };
  const { maxNewTokens, stop } = evaluation.open;
  const decoding = decodingOf(evaluation.open, random(seed, 'open answers'));
  const lines: EvaluationLine[] = [];
  for (let start = 0; start < examples.length; start += batchSize) {
    const batch = examples.slice(start, start + batchSize);
    const rows = batch.map((example) => ({
      id: example.id,
      ids: format.promptIds(example),
      clip: clips.get(example.audio),
    }));
    const answers = await generateText({
      engine,
      model,
      parameters,
      tokenizer,
      rows,
      maxNewTokens,
      stop,
      decoding,
    });
    for (const [at, { id, category, question, answer }] of batch.entries()) {
      const predicted = (answers[at] ?? '').trim();
      const correct = normalizedMatch(predicted, answer);
      lines.push({ id, category, question, answer, predicted, correct, scores: null, controls: {} });
    }
    onProgress?.('open answers', start + batch.length, examples.length);
  }
  const mean = (of: (line: EvaluationLine) => number) =>
    lines.reduce((total, line) => total + of(line), 0) / lines.length;
  return {
    record: {
      n: lines.length,
      exact: mean((line) => (line.correct ? 1 : 0)),
      tokenF1: mean((line) => tokenF1(line.predicted, line.answer)),
    },
    lines,
  };
}
