/** Real human voices as an audio-QA set: which language, what is said, how many numbers or letters. */
import { mkdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { z } from 'zod';
import { resample } from '../../audio/resample.ts';
import { decodeWav, encodeWav } from '../../audio/waveform.ts';
import { type Random, random } from '../../config/random.ts';
import { mustBeReplaceable, writeFlushed, writeFolderAtomic } from '../../config/writeFile.ts';
import {
  countByCategory,
  type DatasetSummary,
  type Example,
  ManifestError,
  writeManifest,
} from '../manifest.ts';
import { type Language, languages, type Recording, readRecordings } from './sources.ts';

export const spokenPromptsSettings = z.strictObject({
  name: z.literal('spoken-prompts').default('spoken-prompts'),
  seed: z.int().default(1),
  /** A folder with the packages' .deb files; the installed files when left out. */
  debs: z.string().optional(),
  /** Length of every clip: recordings are placed in it at random, longer ones are left out. */
  clipSeconds: z.number().min(1).max(30).default(4),
  /** Longest transcript of a "what is said" option. */
  maxWords: z.int().min(1).default(4),
  maxCharacters: z.int().min(4).default(30),
  /** "How many" questions per answer and split. */
  countPerAnswer: z
    .strictObject({ train: z.int().min(0), validation: z.int().min(0), test: z.int().min(0) })
    .default({ train: 140, validation: 10, test: 20 }),
});

export type SpokenPromptsSettings = z.infer<typeof spokenPromptsSettings>;

/** Changes whenever the same settings would give other bytes. */
const version = 1;
const sampleRate = 16_000;
const numberWords = ['one', 'two', 'three', 'four', 'five'];
const splitNames = ['train', 'validation', 'test'] as const;
type SplitName = (typeof splitNames)[number];

interface Voice {
  readonly language: Language;
  readonly stem: string;
  /** 16 kHz, without the silence at the ends. */
  readonly samples: Float32Array;
  /** Lower case, no punctuation; undefined where there is none or it is not speech. */
  readonly said: string | undefined;
}

interface LeftOut {
  readonly recording: string;
  readonly reason: string;
}

/**
 * Builds the dataset from the packages' recordings. A prompt is in one split only, in all its languages; so are
 * the digits and letters that "how many" clips are spliced from. It is built aside and renamed.
 * @throws ManifestError saying what to install
 */
export async function buildSpokenPrompts(
  folder: string,
  settings: z.input<typeof spokenPromptsSettings> = {},
  onProgress: (fraction: number) => void = () => undefined,
): Promise<DatasetSummary> {
  const resolved = spokenPromptsSettings.parse(settings);
  const { voices, leftOut } = prepare(await readRecordings(resolved.debs), resolved, (fraction) =>
    onProgress(fraction / 2),
  );
  const counts: Record<string, Record<string, number>> = {};
  const heldOut: Record<string, number> = {};
  await mustBeReplaceable(folder, 'dataset.json');
  await writeFolderAtomic(folder, async (aside) => {
    for (const [index, split] of splitNames.entries()) {
      const own = voices.filter(({ stem }) => splitOf(stem, resolved.seed) === split);
      heldOut[split] = new Set(own.map(({ stem }) => stem)).size;
      const clips = [...languageClips(own, split, resolved), ...countClips(own, split, resolved)];
      const examples: Example[] = [];
      await mkdir(join(aside, 'audio', split), { recursive: true });
      for (const [number, { samples, questions }] of clips.entries()) {
        const name = `${split}-${String(number + 1).padStart(4, '0')}`;
        const audio = `audio/${split}/${name}.wav`;
        await writeFile(join(aside, audio), encodeWav({ samples, sampleRate }));
        examples.push(...questions.map((question, at) => ({ id: `${name}-${at + 1}`, audio, ...question })));
        onProgress(0.5 + (index + (number + 1) / clips.length) / (2 * splitNames.length));
      }
      await writeManifest(join(aside, `${split}.jsonl`), examples);
      counts[split] = countByCategory(examples);
    }
    const { debs: _, ...portable } = resolved;
    const description = {
      name: resolved.name,
      version,
      builder: 'spoken-prompts',
      settings: portable,
      counts,
      promptsPerSplit: heldOut,
      heldOut: 'prompts by name (all languages of a prompt are in one split), digits and letters too',
      speakers:
        'one voice per language: recognising the language and recognising the speaker are the same here',
      licence: 'CC-BY-SA-3.0 (ru: CC-BY-3.0), see the copyright files of the asterisk-core-sounds packages',
      leftOut,
    };
    await writeFlushed(join(aside, 'dataset.json'), `${JSON.stringify(description, null, 2)}\n`);
  });
  return { name: resolved.name, folder, counts };
}

function prepare(
  recordings: readonly Recording[],
  { clipSeconds }: SpokenPromptsSettings,
  onProgress: (fraction: number) => void,
): { voices: Voice[]; leftOut: LeftOut[] } {
  const voices: Voice[] = [];
  const leftOut: LeftOut[] = [];
  for (const [index, { language, stem, wav, transcript }] of recordings.entries()) {
    onProgress((index + 1) / recordings.length);
    const recording = `${languages[language]}/${stem}`;
    const drop = (reason: string) => leftOut.push({ recording, reason });
    let samples: Float32Array;
    try {
      samples = trimSilence(resample(decodeWav(wav, recording), sampleRate).samples);
    } catch (error) {
      drop(error instanceof Error ? error.message : String(error));
      continue;
    }
    if (samples.length < 0.1 * sampleRate) drop('silent');
    else if (samples.length > (clipSeconds - 0.1) * sampleRate) drop(`longer than ${clipSeconds} s`);
    else if (transcript === undefined) drop('no transcript');
    else if (transcript.startsWith('[')) drop('not speech');
    else voices.push({ language, stem, samples, said: normalize(transcript) });
  }
  return { voices, leftOut };
}

function normalize(transcript: string): string {
  return (transcript.toLowerCase().match(/[\p{L}\p{N}']+/gu) ?? []).join(' ');
}

/** Cuts what is 40 dB below the peak off both ends. */
function trimSilence(samples: Float32Array): Float32Array {
  let peak = 0;
  for (const value of samples) peak = Math.max(peak, Math.abs(value));
  const loud = (value: number) => Math.abs(value) > Math.max(0.01 * peak, 1e-3);
  const first = samples.findIndex(loud);
  return first < 0 ? new Float32Array(0) : samples.slice(first, samples.findLastIndex(loud) + 1);
}

/** Seventy, ten and twenty percent of the prompts, by a draw that only the prompt's name decides. */
function splitOf(stem: string, seed: number): SplitName {
  const draw = random(seed, 'split', stem).uniform();
  return draw < 0.7 ? 'train' : draw < 0.8 ? 'validation' : 'test';
}

type Question = Omit<Example, 'id' | 'audio'>;

interface Clip {
  readonly samples: Float32Array;
  readonly questions: readonly Question[];
}

/** Sounds in a clip of fixed length, so that length tells nothing; a random place, gaps as given. */
function place(
  parts: readonly Float32Array[],
  gaps: readonly number[],
  clipSeconds: number,
  draw: Random,
): Float32Array {
  const samples = new Float32Array(Math.round(clipSeconds * sampleRate));
  const total = parts.reduce((sum, part) => sum + part.length, 0) + gaps.reduce((sum, gap) => sum + gap, 0);
  let at = Math.floor(draw.uniform() * (samples.length - total));
  for (const [index, part] of parts.entries()) {
    samples.set(part, at);
    at += part.length + (gaps[index] ?? 0);
  }
  return samples;
}

/** Prompts: every language equally often; short ones are also asked for what is said. */
function languageClips(voices: readonly Voice[], split: SplitName, settings: SpokenPromptsSettings): Clip[] {
  const { seed, clipSeconds, maxWords, maxCharacters } = settings;
  const names = Object.keys(languages) as Language[];
  const prompts = new Map(
    names.map((language) => [language, voices.filter((voice) => voice.language === language)]),
  );
  const fewest = Math.min(...[...prompts.values()].map((own) => own.length));
  if (fewest === 0)
    throw new ManifestError(`split "${split}": a language has no prompt that fits; raise clipSeconds`);
  return names.flatMap((language) => {
    const own = random(seed, split, 'language', language)
      .shuffle(prompts.get(language) ?? [])
      .slice(0, fewest);
    const isShort = ({ said }: Voice) =>
      said !== undefined && said.split(' ').length <= maxWords && said.length <= maxCharacters;
    const texts = [
      ...new Set((prompts.get(language) ?? []).filter(isShort).map(({ said }) => said as string)),
    ];
    return own.map((voice, index): Clip => {
      const draw = random(seed, split, 'clip', language, voice.stem);
      const questions: Question[] = [
        {
          question: ['Which language is spoken?', 'What language is this?'][index % 2] as string,
          answer: language,
          options: names,
          category: 'language',
          template: 'language',
          kind: 'choice',
        },
      ];
      if (isShort(voice) && texts.length >= 8) {
        const answer = voice.said as string;
        const options = draw.shuffle([answer, ...distractors(answer, texts, draw)]);
        const question = ['What is said?', 'What does the voice say?'][index % 2] as string;
        questions.push({ question, answer, options, category: 'said', template: 'said', kind: 'choice' });
      }
      return { samples: place([voice.samples], [], clipSeconds, draw), questions };
    });
  });
}

/** Three other transcripts of similar length, so that the length of the sound does not give the answer away. */
function distractors(answer: string, texts: readonly string[], draw: Random): string[] {
  const near = texts
    .filter((text) => text !== answer)
    .sort(
      (a, b) => Math.abs(a.length - answer.length) - Math.abs(b.length - answer.length) || (a < b ? -1 : 1),
    )
    .slice(0, 8);
  return draw.shuffle(near).slice(0, 3);
}

/** Digits and letters of one voice spliced together; every number of them equally often, in every language. */
function countClips(voices: readonly Voice[], split: SplitName, settings: SpokenPromptsSettings): Clip[] {
  const { seed, clipSeconds, countPerAnswer } = settings;
  const names = Object.keys(languages) as Language[];
  const longest = (clipSeconds * sampleRate) / 5 - 0.16 * sampleRate;
  const spoken = new Map(
    names.map((language) => [
      language,
      voices.filter(
        (voice) =>
          voice.language === language &&
          /^(digits\/\d|letters\/[a-z])$/.test(voice.stem) &&
          voice.samples.length < longest,
      ),
    ]),
  );
  return numberWords.flatMap((answer, index) =>
    Array.from({ length: countPerAnswer[split] }, (_, number): Clip => {
      const draw = random(seed, split, 'count', answer, number);
      const own = spoken.get(names[number % names.length] as Language) ?? [];
      if (own.length === 0)
        throw new ManifestError(`split "${split}": a language has no digit or letter that fits`);
      const parts = Array.from({ length: index + 1 }, () => draw.pick(own).samples);
      const gaps = parts.slice(1).map(() => Math.round((0.06 + 0.08 * draw.uniform()) * sampleRate));
      const question = [
        'How many numbers or letters are spoken?',
        'How many numbers or letters do you hear?',
      ];
      return {
        samples: place(parts, gaps, clipSeconds, draw),
        questions: [
          {
            question: question[Math.floor(number / names.length) % 2] as string,
            answer,
            options: numberWords,
            category: 'count',
            template: 'count',
            kind: 'choice',
          },
        ],
      };
    }),
  );
}
