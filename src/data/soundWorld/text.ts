/** Text of the same world: what the language model reads before it ever hears anything. */
import { type Random, random } from '../../config/random.ts';
import { soundClasses } from './instruments.ts';
import { ask, describe, numberWords, type Question, soundsIn, withArticle } from './questions.ts';
import { drawPlan, drawScene, type Scene, type ScenePlan } from './scenes.ts';

/**
 * One document: a scene in words, and questions with answers about it. One in eight has no scene: there the
 * answers are drawn blindly, so that the model's guesses without evidence stay flat.
 */
export function worldText(seed: number, index: number): string {
  const draw = random(seed, 'text', index);
  const plan = drawPlan(draw);
  const scene = drawScene(plan, `${seed}/text/${index}`);
  const blind = draw.integer(8) === 0;
  const questions = draw.shuffle(questionsAbout(plan, draw)).slice(0, 1 + draw.integer(4));
  const lines = questions.map((question) => {
    const answer = blind && question.options !== undefined ? draw.pick(question.options) : question.answer;
    return `Question: ${question.question} Answer: ${answer}`;
  });
  return [...(blind ? [] : [narrate(scene, draw)]), ...lines].join('\n');
}

function questionsAbout(plan: ScenePlan, draw: Random): Question[] {
  const variant = () => draw.integer(2);
  const inside = soundsIn(plan);
  const outside = soundClasses.filter((sound) => !inside.includes(sound));
  const common = [
    ask.presence(draw.pick(inside), true, variant()),
    ask.presence(draw.pick(outside), false, variant()),
    ask.describe(plan, variant()),
  ];
  switch (plan.kind) {
    case 'repeat':
      return [...common, ask.which(plan.sound, variant()), ask.count(plan.count, plan.sound, variant())];
    case 'tempo':
      return [...common, ask.which(plan.sound, variant()), ask.tempo(plan.faster, variant())];
    case 'pair':
      return [...common, ask.which(plan.sound, variant()), ask.pitch(plan.higher, variant())];
    case 'sequence':
      return [...common, ask.first(plan.sounds, variant()), ask.last(plan.sounds, variant())];
    case 'overlap':
      return common;
  }
}

/** A scene in one of several styles; all of them carry every fact that is asked for. */
function narrate(scene: Scene, draw: Random): string {
  const styles = [narrateSentence, narrateList, narrateTimeline, narrateTimeline];
  return draw.pick(styles)(scene, draw);
}

function narrateSentence({ plan }: Scene, draw: Random): string {
  const opening = draw.pick(['I hear', 'There is', 'You can hear']);
  return `${opening} ${describe(plan)}.`;
}

function narrateList({ plan, events }: Scene): string {
  const words = events.map((event, index) => {
    const before = events[index - 1];
    if (plan.kind !== 'pair' || before === undefined) return withArticle(event.sound);
    return `a ${plan.higher ? 'higher' : 'lower'} ${event.sound}`;
  });
  const joint = plan.kind === 'overlap' ? ' with ' : ', ';
  const ending = plan.kind === 'tempo' ? `, ${plan.faster ? 'faster and faster' : 'slower and slower'}` : '';
  return `Sounds: ${words.join(joint)}${ending}.`;
}

const slotSeconds = 0.15;

/** One word per 150 ms, dots for silence: the shape in which audio will arrive. */
function narrateTimeline({ events, plan }: Scene, draw: Random): string {
  const slots: string[] = Array.from({ length: Math.round(3 / slotSeconds) }, () => '.');
  for (const [index, { sound, onsetSeconds, durationSeconds, pitchSemitones }] of events.entries()) {
    const first = Math.floor(onsetSeconds / slotSeconds);
    const length =
      plan.kind === 'repeat' || plan.kind === 'tempo'
        ? 1
        : Math.max(1, Math.round(durationSeconds / slotSeconds));
    for (let slot = first; slot < Math.min(slots.length, first + length); slot++) {
      const word =
        plan.kind === 'pair' && pitchSemitones !== null
          ? `${sound} ${pitchWord(scenePitches(events), index)}`
          : sound;
      slots[slot] = plan.kind === 'overlap' && index === 1 ? `${slots[slot]} + ${word}` : word;
    }
  }
  const counted = plan.kind === 'repeat' && draw.integer(2) === 0 ? ` (${numberWords[plan.count - 1]})` : '';
  return `Time: ${slots.join(' ')}${counted}`;
}

function scenePitches(events: Scene['events']): readonly number[] {
  return events.map((event) => event.pitchSemitones ?? 0);
}

function pitchWord(pitches: readonly number[], index: number): string {
  const others = pitches.filter((_, other) => other !== index);
  return (pitches[index] ?? 0) > (others[0] ?? 0) ? 'high' : 'low';
}
