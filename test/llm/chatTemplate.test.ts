import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { type ChatMessage, readChatTemplate, renderChat } from '../../src/llm/chatTemplate.ts';
import { tokenizerFromJson } from '../../src/llm/tokenizer.ts';
import { golden } from './chatGolden.ts';

describe.each(golden.cases)('$name, as transformers has it', (reference) => {
  const tokenizer = tokenizerFromJson(reference.tokenizer, reference.config, reference.name);
  const render = (messages: readonly ChatMessage[], addGenerationPrompt: boolean) =>
    renderChat(reference.template, {
      messages,
      addGenerationPrompt,
      specialTokens: tokenizer.specialTokens,
      variables: reference.variables,
      date: golden.date,
    });

  test('text and tokens of conversations', () => {
    for (const { messages, addGenerationPrompt, text, ids } of reference.rendered) {
      expect(render(messages, addGenerationPrompt)).toBe(text);
      expect(tokenizer.encode(text)).toEqual(ids);
    }
  });

  test('what a sequence begins with', () => {
    expect(tokenizer.beginning).toEqual(reference.beginning);
  });

  test('a user who spells special tokens gets none', () => {
    const { messages, ids } = reference.hostile;
    const escaped = messages.map(({ role, content }) => ({
      role,
      content: tokenizer.escapeSpecial(content),
    }));
    expect(tokenizer.encode(render(escaped, true))).toEqual(ids);
    const own = messages.map(({ content }) => content).join('');
    const plain = tokenizer.encode(tokenizer.escapeSpecial(own));
    expect(plain.some(tokenizer.isSpecial)).toBe(false);
    expect(tokenizer.decode(plain)).toBe(own);
    expect(tokenizer.encode(own).some(tokenizer.isSpecial)).toBe(true);
  });
});

function render(template: string, content = 'Hello', variables = {}): string {
  return renderChat(template, {
    messages: [{ role: 'user', content }],
    addGenerationPrompt: true,
    specialTokens: { bos_token: '<s>' },
    variables,
    date: '2025-03-09',
  });
}

describe('a template', () => {
  test('is told the given day, special tokens and variables, and that there are no tools', () => {
    const days = '%Y %y %m %-m %B %b %d %-d %j %A %a %H:%M:%S %I %p 100%%';
    expect(render(`{{ strftime_now('${days}') }}`)).toBe(
      '2025 25 03 3 March Mar 09 9 068 Sunday Sun 00:00:00 12 AM 100%',
    );
    expect(render('{{ bos_token }}|{{ eos_token is defined }}|{{ mood }}', '', { mood: 'calm' })).toBe(
      '<s>|false|calm',
    );
    expect(render('{% if tools is none and not tools %}none{% endif %}')).toBe('none');
    expect(
      render('{% for i in range(1, 8, 3) %}{{ i }} {% endfor %}{% for i in range(2) %}{{ i }}{% endfor %}'),
    ).toBe('1 4 7 01');
  });

  test.each([
    ['does not parse', '{{ messages', "the model's chat template cannot be used: "],
    ['raises an exception', "{{ raise_exception('system is not for me') }}", 'system is not for me'],
    ['asks for an unknown part of the day', "{{ strftime_now('%Q') }}", 'strftime_now does not know %Q'],
    ['nests without end', `{{ ${'('.repeat(200_000)}1 }}`, 'cannot be used: '],
    ['counts far', '{% for i in range(1000000000) %}x{% endfor %}', 'is longer than 100000'],
    [
      'counts in counts',
      '{% for i in range(100000) %}{% for k in range(100000) %}{% endfor %}{% endfor %}',
      'took more than 2 s or 64 MB',
    ],
    [
      'doubles a text',
      "{% set n = namespace(x='aaaaaaaa') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}{{ n.x }}",
      'cannot be used: ',
    ],
    [
      'writes much',
      "{% set n = namespace(x='aaaaaaaa') %}{% for i in range(18) %}{% set n.x = n.x ~ n.x %}{% endfor %}{{ n.x }}",
      'its output has 2097152 characters, at most 1048576',
    ],
    [
      'fills the memory',
      '{% set n = namespace(x=[1,2,3,4]) %}{% for i in range(60) %}{% set n.x = n.x + n.x %}{% endfor %}',
      'cannot be used: ',
    ],
    ['is long', `{# ${'x'.repeat(2 ** 20)} #}`, 'at most 1048576 are taken'],
  ])('that %s ends in an error that says so, and the next one works', (_, template, message) => {
    expect(() => render(template)).toThrow(message);
    expect(render('{{ messages[0].content }}')).toBe('Hello');
  });
});

describe('the template of a model folder', () => {
  let folder: string;
  beforeAll(async () => {
    folder = await mkdtemp(join(tmpdir(), 'palkit-chat-'));
  });
  afterAll(() => rm(folder, { recursive: true }));

  test('stands in tokenizer_config.json, alone or as the default of several, or in a file of its own', async () => {
    expect(await readChatTemplate(folder, {})).toBeNull();
    expect(await readChatTemplate(folder, { chat_template: null })).toBeNull();
    expect(await readChatTemplate(folder, { chat_template: 'one' })).toBe('one');
    const several = [
      { name: 'tool_use', template: 'tools' },
      { name: 'default', template: 'plain' },
    ];
    expect(await readChatTemplate(folder, { chat_template: several })).toBe('plain');
    await writeFile(join(folder, 'chat_template.jinja'), 'file');
    expect(await readChatTemplate(folder, { chat_template: 'one' })).toBe('file');
  });

  test('that is something else is an error', async () => {
    const empty = await mkdtemp(join(folder, 'empty-'));
    await expect(readChatTemplate(empty, { chat_template: 7 })).rejects.toThrow(
      `${join(empty, 'tokenizer_config.json')}: chat_template: neither a text nor a list`,
    );
  });
});
