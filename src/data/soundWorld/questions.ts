/** Questions whose answers need listening, balanced so that the wording alone tells nothing. */
import { random } from '../../config/random.ts';
import type { Example } from '../manifest.ts';
import { type pitchedClasses, type SoundClass, soundClasses } from './instruments.ts';
import { drawScene, type Scene, type ScenePlan } from './scenes.ts';

export const numberWords = ['one', 'two', 'three', 'four', 'five'] as const;

/** A question before it has a clip and an id. */
export interface Question {
  readonly template: string;
  readonly question: string;
  readonly answer: string;
  readonly options?: readonly string[];
}

/** "a guitar", but "noise". */
export function withArticle(sound: SoundClass): string {
  return sound === 'noise' ? 'noise' : `a ${sound}`;
}

function wording<T extends readonly string[]>(texts: T, variant: number): string {
  return texts[variant % texts.length] as string;
}

/** The templates; `variant` picks the wording. */
export const ask = {
  which: (sound: SoundClass, variant: number): Question => ({
    template: 'which',
    question: wording(['Which sound is this?', 'What makes this sound?'], variant),
    answer: sound,
    options: soundClasses,
  }),
  first: (sounds: readonly SoundClass[], variant: number): Question => ({
    template: 'first',
    question: wording(['Which sound comes first?', 'What is heard first?'], variant),
    answer: sounds[0] as string,
    options: soundClasses,
  }),
  last: (sounds: readonly SoundClass[], variant: number): Question => ({
    template: 'last',
    question: wording(['Which sound comes last?', 'What is heard last?'], variant),
    answer: sounds.at(-1) as string,
    options: soundClasses,
  }),
  count: (count: number, sound: SoundClass, variant: number): Question => ({
    template: 'count',
    question: wording(
      ['How many sounds are there?', `How many times is ${withArticle(sound)} heard?`],
      variant,
    ),
    answer: numberWords[count - 1] as string,
    options: numberWords,
  }),
  pitch: (higher: boolean, variant: number): Question => ({
    template: 'pitch',
    question: wording(
      ['Is the second note higher or lower than the first?', 'Does the note go higher or lower?'],
      variant,
    ),
    answer: higher ? 'higher' : 'lower',
    options: ['higher', 'lower'],
  }),
  tempo: (faster: boolean, variant: number): Question => ({
    template: 'tempo',
    question: wording(['Do the sounds get faster or slower?', 'Is it getting faster or slower?'], variant),
    answer: faster ? 'faster' : 'slower',
    options: ['faster', 'slower'],
  }),
  presence: (sound: SoundClass, present: boolean, variant: number): Question => ({
    template: 'presence',
    question: wording([`Is there ${withArticle(sound)}?`, `Do you hear ${withArticle(sound)}?`], variant),
    answer: present ? 'yes' : 'no',
    options: ['yes', 'no'],
  }),
  describe: (plan: ScenePlan, variant: number): Question => ({
    template: 'describe',
    question: wording(['What do you hear?', 'Describe the sounds.'], variant),
    answer: describe(plan),
  }),
} as const;

/** A scene in a few words. */
export function describe(plan: ScenePlan): string {
  switch (plan.kind) {
    case 'repeat':
      return plan.count === 1
        ? withArticle(plan.sound)
        : `${plan.sound} ${numberWords[plan.count - 1]} times`;
    case 'tempo':
      return `${plan.sound} getting ${plan.faster ? 'faster' : 'slower'}`;
    case 'pair':
      return `${withArticle(plan.sound)} then a ${plan.higher ? 'higher' : 'lower'} ${plan.sound}`;
    case 'sequence':
      return plan.sounds.map(withArticle).join(' then ');
    case 'overlap':
      return [...plan.sounds]
        .sort((a, b) => soundClasses.indexOf(a) - soundClasses.indexOf(b))
        .map(withArticle)
        .join(' and ');
  }
}

/** The classes that a scene holds. */
export function soundsIn(plan: ScenePlan): readonly SoundClass[] {
  return 'sounds' in plan ? plan.sounds : [plan.sound];
}

export interface SplitSettings {
  /** How often each cell of the design is repeated; a round has 40 + 32 + 24 + 56 + 28 scenes. */
  readonly rounds: number;
  /** Yes and no questions per class, each. */
  readonly presencePerClass: number;
  /** Open questions. */
  readonly describe: number;
}

export interface Clip {
  readonly name: string;
  readonly scene: Scene;
  readonly questions: readonly Question[];
}

/** The full design of one round: every answer of every template equally often, under every wording. */
function plansOfRound(round: number): { plan: ScenePlan; variant: number }[] {
  const plans: { plan: ScenePlan; variant: number }[] = [];
  const pitched: readonly (typeof pitchedClasses)[number][] = ['guitar', 'flute', 'bell'];
  for (const [order, sound] of soundClasses.entries()) {
    for (let count = 1; count <= 5; count++) {
      plans.push({ plan: { kind: 'repeat', sound, count }, variant: round });
    }
    for (const faster of [true, false]) {
      for (const variant of [0, 1]) plans.push({ plan: { kind: 'tempo', sound, faster }, variant });
    }
    for (let shift = 1; shift < soundClasses.length; shift++) {
      const last = soundClasses[(order + shift) % soundClasses.length] as SoundClass;
      const middle = soundClasses[
        (order + shift + 1 + ((round + shift) % 5)) % soundClasses.length
      ] as SoundClass;
      const three = (shift + round) % 2 === 0 && middle !== sound && middle !== last;
      plans.push({
        plan: { kind: 'sequence', sounds: three ? [sound, middle, last] : [sound, last] },
        variant: round + shift,
      });
    }
    for (let other = order + 1; other < soundClasses.length; other++) {
      plans.push({
        plan: { kind: 'overlap', sounds: [sound, soundClasses[other] as SoundClass] },
        variant: round,
      });
    }
  }
  for (const sound of pitched) {
    for (const higher of [true, false]) {
      for (const variant of [0, 1, 2, 3]) plans.push({ plan: { kind: 'pair', sound, higher }, variant });
    }
  }
  return plans;
}

/** All clips of a split with their questions. Splits draw from separate streams, so no scene is in two of them. */
export function clipsOf(seed: number, split: string, settings: SplitSettings): Clip[] {
  const entries = Array.from({ length: settings.rounds }, (_, round) => plansOfRound(round)).flat();
  const clips = random(seed, split, 'order')
    .shuffle(entries)
    .map(({ plan, variant }, index) => ({
      name: `${split}-${String(index + 1).padStart(4, '0')}`,
      scene: drawScene(plan, `${seed}/${split}/${index}`),
      questions: [...directQuestions(plan, variant)],
    }));
  addPresence(clips, settings.presencePerClass, seed, split);
  for (const [index, clip] of random(seed, split, 'describe')
    .shuffle(clips)
    .slice(0, settings.describe)
    .entries()) {
    clip.questions.push(ask.describe(clip.scene.plan, index));
  }
  return clips;
}

function directQuestions(plan: ScenePlan, variant: number): Question[] {
  switch (plan.kind) {
    case 'repeat':
      return [ask.which(plan.sound, variant), ask.count(plan.count, plan.sound, variant)];
    case 'tempo':
      return [ask.tempo(plan.faster, variant)];
    case 'pair':
      return [ask.pitch(plan.higher, variant)];
    case 'sequence':
      return [ask.first(plan.sounds, variant), ask.last(plan.sounds, variant)];
    case 'overlap':
      return [];
  }
}

/** For every class as many clips with it as without it, spread over all kinds of scenes. */
function addPresence(
  clips: readonly { scene: Scene; questions: Question[] }[],
  perClass: number,
  seed: number,
  split: string,
): void {
  for (const sound of soundClasses) {
    for (const present of [true, false]) {
      const fitting = clips.filter(({ scene }) => soundsIn(scene.plan).includes(sound) === present);
      const order = random(seed, split, 'presence', sound, String(present)).shuffle(fitting);
      // Clips with few questions first, so that the questions spread.
      order.sort((a, b) => a.questions.length - b.questions.length);
      if (order.length < perClass)
        throw new RangeError(`split "${split}": too few clips for ${perClass} "${sound}" questions`);
      for (const [index, clip] of order.slice(0, perClass).entries())
        clip.questions.push(ask.presence(sound, present, index));
    }
  }
}

/** The manifest lines of a clip. */
export function examplesOf(clip: Clip, audio: string): Example[] {
  return clip.questions.map(({ template, question, answer, options }, index) => ({
    id: `${clip.name}-${index + 1}`,
    audio,
    question,
    answer,
    ...(options === undefined
      ? { kind: 'open' as const }
      : { kind: 'choice' as const, options: [...options] }),
    category: template,
    template,
  }));
}
