/** What test/golden/chat.py wrote. */
import { readFileSync } from 'node:fs';
import type { ChatMessage, ChatVariables } from '../../src/llm/chatTemplate.ts';

interface Golden {
  date: string;
  cases: {
    name: string;
    template: string;
    variables: ChatVariables;
    tokenizer: unknown;
    config: unknown;
    beginning: number[];
    rendered: { messages: ChatMessage[]; addGenerationPrompt: boolean; text: string; ids: number[] }[];
    hostile: { messages: ChatMessage[]; ids: number[] };
  }[];
}

export const golden: Golden = JSON.parse(
  readFileSync(new URL('../golden/chat.json', import.meta.url), 'utf8'),
);
