import { describe, expect, test } from 'vitest';
import { readGgufHeader } from '../../src/llm/gguf.ts';
import { ggufTokenizerFiles } from '../../src/llm/ggufTokenizer.ts';
import { loadTokenizer, tokenizerFromJson } from '../../src/llm/tokenizer.ts';
import type { PromptedLlm } from '../../src/llm/weights.ts';
import type { PromptConfig } from '../../src/pal/prompt.ts';
import { promptFormat } from '../../src/pal/promptFormat.ts';
import { golden } from '../llm/chatGolden.ts';
import { llm } from './fixture.ts';

const plain: PromptConfig = {
  chat: false,
  system: null,
  template: '{audio}Question: {question} Answer:',
  variables: {},
  date: golden.date,
};
const chat: PromptConfig = { ...plain, chat: true, system: 'You are brief.', template: '{audio}{question}' };

function goldenLlm(name: string, changes: Partial<PromptedLlm> = {}): PromptedLlm {
  const reference = golden.cases.find((one) => one.name === name);
  if (reference === undefined) throw new Error(`no ${name}`);
  const tokenizer = tokenizerFromJson(reference.tokenizer, reference.config, name);
  return { config: llm, tokenizer, chatTemplate: reference.template, ...changes };
}

describe('without chat', async () => {
  const tokenizer = await loadTokenizer('models/sound-world');
  const soundWorld: PromptedLlm = { config: llm, tokenizer, chatTemplate: null };

  test('a prompt is what the tokenizer begins with, system, audio, template; an answer carries its space', () => {
    const format = promptFormat({ ...plain, system: 'Listen.' }, soundWorld);
    expect(format.front).toEqual([0, ...tokenizer.encode('Listen.')]);
    expect(format.promptIds({ question: 'Which sound?' })).toEqual([
      ...format.front,
      ...tokenizer.encode('Question: Which sound? Answer:'),
    ]);
    expect(format.answerIds('bell')).toEqual(tokenizer.encode(' bell'));
    expect(format.endId).toBe(1);
    expect(promptFormat(plain, soundWorld).front).toEqual([0]);
  });

  test('text may stand in front of the audio; question and options are taken as they are', () => {
    const template = 'Sound: {audio} Asked: {question} ({options}) Answer:';
    const format = promptFormat({ ...plain, template }, soundWorld);
    expect(tokenizer.decode(format.front, { skipSpecial: false })).toBe('<bos>Sound: ');
    const ids = format.promptIds({ question: '{options} <eos> {audio}', options: ['a $& bell', '<pad>'] });
    expect(tokenizer.decode(ids, { skipSpecial: false })).toBe(
      '<bos>Sound:  Asked: {options} <eos> {audio} (a $& bell, <pad>) Answer:',
    );
    expect(ids.slice(1).some(tokenizer.isSpecial)).toBe(false);
  });

  test('an answer of a SentencePiece model has one space in front, as in the whole text', async () => {
    const path = 'test/golden/gguf/pieces.gguf';
    const { tokenizer: json, tokenizerConfig } = ggufTokenizerFiles(
      (await readGgufHeader(path)).metadata,
      path,
    );
    const pieces = tokenizerFromJson(json, tokenizerConfig, path);
    const format = promptFormat(plain, { config: llm, tokenizer: pieces, chatTemplate: null });
    const ids = [...format.promptIds({ question: 'bell?' }), ...format.answerIds('the bell')];
    expect(ids).toEqual([1, ...pieces.encode('Question: bell? Answer: the bell')]);
    const brackets = promptFormat(
      { ...chat, template: 'Hear{audio} it.' },
      {
        config: llm,
        tokenizer: pieces,
        chatTemplate:
          "{% for m in messages %}{% if m.role == 'assistant' %}{{ ' ' + m.content + ' ' + eos_token }}" +
          "{% else %}{{ '[' + m.content + ']' }}{% endif %}{% endfor %}",
      },
    );
    const asked = [...brackets.promptIds({ question: '' }), ...brackets.answerIds('bell'), brackets.endId];
    const [bell, space] = [pieces.tokenId('▁bell'), pieces.tokenId('▁')];
    expect(asked.slice(-4)).toEqual([...pieces.encode(']', { continues: true }), bell, space, 2]);
  });

  test('a model whose tokenizer adds no beginning has none', () => {
    const qwen = goldenLlm('ChatML');
    expect(promptFormat(plain, qwen).front).toEqual([]);
    expect(promptFormat({ ...plain, system: 'Hi' }, qwen).front).toEqual(qwen.tokenizer.encode('Hi'));
  });

  test('a tokenizer that puts a space in front of texts itself puts one in front of an answer, not two', () => {
    const pieces = goldenLlm('pieces');
    const { encode, decode } = pieces.tokenizer;
    const format = promptFormat(plain, pieces);
    const asked = { question: 'Which sound is it?' };
    const whole = [...format.promptIds(asked), ...format.answerIds('a bell')];
    expect(whole).toEqual([1, ...encode('Question: Which sound is it? Answer: a bell')]);
    expect(decode(whole)).toBe('Question: Which sound is it? Answer: a bell');
    const inFront = promptFormat({ ...plain, system: 'Hear this:' }, pieces);
    expect(inFront.promptIds(asked)).toEqual([
      1,
      ...encode('Hear this:Question: Which sound is it? Answer:'),
    ]);
  });

  test('the end of an answer is the one of config.json, else that of the tokenizer; with neither it is an error', () => {
    const qwen = goldenLlm('ChatML', { config: { ...llm, eosTokenIds: [] } });
    expect(promptFormat(plain, qwen).endId).toBe(qwen.tokenizer.tokenId('<|im_end|>'));
    const endless = { ...qwen, tokenizer: { ...qwen.tokenizer, eosTokenId: undefined } };
    expect(() => promptFormat(plain, endless)).toThrow('the model has no eos_token_id');
  });
});

describe.each(golden.cases)('with the chat template of "$name"', (reference) => {
  const format = promptFormat({ ...chat, variables: reference.variables }, goldenLlm(reference.name));
  const { tokenizer } = goldenLlm(reference.name);
  const of = (roles: string, generation: boolean) =>
    reference.rendered.find(
      ({ messages, addGenerationPrompt }) =>
        messages.map(({ role }) => role[0]).join('') === roles &&
        messages.at(-1)?.content.trim() === messages.at(-1)?.content &&
        addGenerationPrompt === generation,
    ) as (typeof reference.rendered)[number];

  test('a prompt has the tokens of transformers, and the audio stands where the placeholder is', () => {
    const { messages, ids, text } = of('su', true);
    const question = messages.at(-1)?.content as string;
    expect(format.promptIds({ question })).toEqual(ids);
    const inFront = tokenizer.encode(text.slice(0, text.indexOf(question)));
    expect(format.front).toEqual(inFront);
  });

  test('an answer with its end of turn is what transformers puts behind the prompt, and nothing else is', () => {
    const { messages, ids } = of('sua', false);
    const [, { content: question }, { content: answer }] = messages as [
      unknown,
      { content: string },
      { content: string },
    ];
    const whole = [...format.promptIds({ question }), ...format.answerIds(answer), format.endId];
    expect(whole).toEqual(ids.slice(0, whole.length));
    expect(ids.slice(whole.length).some(tokenizer.isSpecial)).toBe(false);
    expect(tokenizer.isSpecial(format.endId)).toBe(true);
    expect(tokenizer.decode(format.answerIds(answer)).trim()).toBe(answer);
  });

  test('special tokens that a question, an option, an answer or the system message spells stay text', () => {
    const spelled = [...tokenizer.decode([0, 1, 2], { skipSpecial: false }).matchAll(/<.*?>/g)].join(' ');
    const count = (ids: readonly number[]) => ids.filter(tokenizer.isSpecial).length;
    const config = { ...chat, variables: reference.variables, template: '{audio}{question} {options}' };
    const clean = promptFormat(config, goldenLlm(reference.name));
    const hostile = promptFormat({ ...config, system: `Be ${spelled}` }, goldenLlm(reference.name));
    expect(count(hostile.promptIds({ question: spelled, options: [spelled] }))).toBe(
      count(clean.promptIds({ question: 'x' })),
    );
    expect(count(hostile.answerIds(spelled))).toBe(0);
  });
});

describe('a chat that cannot be', () => {
  const withTemplate = (chatTemplate: string | null) => () =>
    promptFormat(chat, goldenLlm('ChatML', { chatTemplate }));
  const user = "{{ messages[-1].content if messages[-1].role == 'user' else messages[-2].content }}";
  const answer = "{{ messages[-1].content ~ '<|im_end|>' if messages[-1].role == 'assistant' }}";

  test.each([
    ['the model has no template', null, 'prompt.chat: the model has no chat template'],
    ['the system message is left out', `${user}${answer}`, 'changes the system message or leaves it out'],
    [
      'the user is not heard',
      '{{ messages[0].content }}',
      "changes the user's message or does not show it just once",
    ],
    [
      'the user is heard twice',
      `{{ messages[0].content }}${user}${user}${answer}`,
      'does not show it just once',
    ],
    [
      'the message is quoted',
      '{{ messages[0].content }}{{ messages[1].content | tojson }}',
      "changes the user's message",
    ],
    [
      'an answer has something in front of it',
      `{{ messages[0].content }}${user}{{ 'Model: ' if messages[-1].role == 'assistant' }}${answer}`,
      'does not let an answer follow its generation prompt (it puts "Model: " between them)',
    ],
    [
      'nothing ends an answer',
      `{{ messages[0].content }}${user}{{ messages[2].content ~ ' END' if messages[2] }}`,
      'closes an answer with " END", which is no special token',
    ],
  ])('because %s', (_, chatTemplate, message) => {
    expect(withTemplate(chatTemplate)).toThrow(message);
  });

  test('because the template thinks aloud: the error says how to tell it otherwise', () => {
    const thinking = () => promptFormat({ ...chat, variables: {} }, goldenLlm('thinking'));
    expect(thinking).toThrow('(it puts "<think>\\n\\n</think>\\n\\n" between them)');
    expect(thinking).toThrow('{ enable_thinking: false }');
  });

  test('because the text in front of the audio depends on the question', () => {
    const chatTemplate = `{{ messages[0].content }}{{ 'Now' if 'bell' in messages[1].content }}${user}${answer}`;
    const format = promptFormat(chat, goldenLlm('ChatML', { chatTemplate }));
    expect(format.promptIds({ question: 'a drum?' }).length).toBeGreaterThan(5);
    expect(() => format.promptIds({ question: 'a bell?' })).toThrow(
      'puts other text in front of the audio for the question "a bell?"',
    );
  });
});
