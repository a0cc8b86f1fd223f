/** Prompts in the words of the model's chat template. */
import { type ChatMessage, renderChat } from '../llm/chatTemplate.ts';
import { ModelError } from '../llm/modelError.ts';
import type { PromptedLlm } from '../llm/weights.ts';
import { type Asked, aroundAudio, fill, type PromptConfig, type PromptFormat } from './prompt.ts';

/** Where audio and answer stand in what the template makes: lone surrogates, which no escaped text has. */
const audioMark = '\ud802';
const answerMark = '\ud803';

/**
 * The system message and the user's, with the audio in it, as the template renders them up to where the answer begins.
 * What follows an answer, up to the special token that ends the turn, is read off the template too.
 * @throws ModelError saying what the template does that prompts cannot have
 */
export function chatFormat(prompt: PromptConfig, { tokenizer, chatTemplate }: PromptedLlm): PromptFormat {
  if (chatTemplate === null) {
    throw new ModelError(
      'prompt.chat: the model has no chat template (chat_template.jinja, or chat_template in tokenizer_config.json); ' +
        'take an instruction-tuned model, or set prompt.chat: false',
    );
  }
  const { escapeSpecial, encode, isSpecial } = tokenizer;
  const [before, behind] = aroundAudio(prompt.template);
  const system = prompt.system === null ? null : escapeSpecial(prompt.system);

  const render = (messages: readonly ChatMessage[], addGenerationPrompt: boolean) =>
    renderChat(chatTemplate, {
      messages,
      addGenerationPrompt,
      specialTokens: tokenizer.specialTokens,
      variables: prompt.variables,
      date: prompt.date,
    });
  const messagesOf = (asked: Asked): ChatMessage[] => [
    ...(system === null ? [] : [{ role: 'system', content: system } as const]),
    {
      role: 'user',
      content: `${escapeSpecial(before)}${audioMark}${escapeSpecial(fill(behind, asked, String))}`,
    },
  ];

  function texts(asked: Asked): { front: string; behind: string } {
    const messages = messagesOf(asked);
    const rendered = render(messages, true);
    if (system !== null && !rendered.includes(system.trim())) {
      throw new ModelError(
        "the model's chat template changes the system message or leaves it out; set prompt.system: null",
      );
    }
    const user = messages.at(-1)?.content.trim() as string;
    if (rendered.split(user).length !== 2) {
      throw new ModelError(
        `the model's chat template changes the user's message or does not show it just once, with the question ` +
          JSON.stringify(asked.question),
      );
    }
    const at = rendered.indexOf(audioMark);
    return { front: rendered.slice(0, at), behind: rendered.slice(at + audioMark.length) };
  }

  const probe = { question: '?' };
  const { front } = texts(probe);
  const frontIds = encode(front);
  const answer = readAnswer(
    render(messagesOf(probe), true),
    render([...messagesOf(probe), { role: 'assistant', content: answerMark }], false),
  );
  const padding = /^\s*/.exec(answer.closing)?.[0] ?? '';
  const [endId] = encode(answer.closing.slice(padding.length), { continues: true });
  if (endId === undefined || !isSpecial(endId)) {
    throw new ModelError(
      `the model's chat template closes an answer with ${JSON.stringify(answer.closing)}, which is no special token: ` +
        'nothing would end an answer',
    );
  }

  return {
    front: frontIds,
    promptIds(asked) {
      const own = texts(asked);
      if (own.front !== front) {
        throw new ModelError(
          `the model's chat template puts other text in front of the audio for the question ` +
            `${JSON.stringify(asked.question)}; it must be the same for all`,
        );
      }
      return [...frontIds, ...encode(own.behind, { continues: true })];
    },
    answerIds: (text) =>
      encode(`${answer.opening}${escapeSpecial(text.trim())}${padding}`, { continues: true }),
    endId,
  };
}

/** What stands around an answer: white space that belongs to it in front, and what closes it. */
function readAnswer(prompt: string, conversation: string): { opening: string; closing: string } {
  const rest = conversation.startsWith(prompt) ? conversation.slice(prompt.length) : undefined;
  const [opening, closing] = rest?.split(answerMark) ?? [];
  if (opening === undefined || closing === undefined || opening.trim() !== '') {
    const between = opening === undefined ? '' : ` (it puts ${JSON.stringify(opening)} between them)`;
    throw new ModelError(
      `the model's chat template does not let an answer follow its generation prompt${between}; prompt.variables may ` +
        'tell it otherwise, as { enable_thinking: false } does with Qwen3',
    );
  }
  return { opening, closing };
}
