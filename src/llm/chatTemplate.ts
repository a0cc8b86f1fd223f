/**
 * A model's own chat template: Jinja, as transformers renders it. It is a program that came with the weights, so it
 * runs in a thread of its own, with bounds on time and memory; rendering waits for it.
 */
import { readFile, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { MessageChannel, type MessagePort, receiveMessageOnPort, Worker } from 'node:worker_threads';
import { z } from 'zod';
import { ModelError } from './modelError.ts';

export interface ChatMessage {
  readonly role: 'system' | 'user' | 'assistant';
  readonly content: string;
}

/** What a template may be told beside the messages: `enable_thinking: false`. */
export type ChatVariables = Readonly<Record<string, string | number | boolean | null>>;

export interface Conversation {
  readonly messages: readonly ChatMessage[];
  /** Whether the text ends where the model's answer begins. */
  readonly addGenerationPrompt: boolean;
  /** The spellings of special tokens, as the tokenizer names them. */
  readonly specialTokens: Readonly<Record<string, string>>;
  readonly variables: ChatVariables;
  /** What a template that asks for the day is told, YYYY-MM-DD. */
  readonly date: string;
}

const limits = {
  templateCharacters: 2 ** 20,
  outputCharacters: 2 ** 20,
  milliseconds: 2000,
  startMilliseconds: 30_000,
  memoryMB: 64,
};

/**
 * Renders a conversation as text. `tools`, `documents` and the like are not there, as in a chat without them.
 * @param template the Jinja source
 * @throws ModelError when the template does not parse, raises an exception, or takes more time, memory or room for its
 *   output than any chat needs
 */
export function renderChat(template: string, conversation: Conversation): string {
  const fail = (problem: string) => new ModelError(`the model's chat template cannot be used: ${problem}`);
  if (template.length > limits.templateCharacters) {
    throw fail(`it has ${template.length} characters, at most ${limits.templateCharacters} are taken`);
  }
  const { messages, addGenerationPrompt, specialTokens, variables, date } = conversation;
  const answer = ask({
    template,
    date,
    variables: {
      ...specialTokens,
      ...variables,
      messages,
      tools: null,
      documents: null,
      add_generation_prompt: addGenerationPrompt,
    },
  });
  if (answer === undefined) {
    throw fail(`it took more than ${limits.milliseconds / 1000} s or ${limits.memoryMB} MB to render a chat`);
  }
  if ('problem' in answer) throw fail(answer.problem);
  return answer.text;
}

type Answer = { readonly text: string } | { readonly problem: string };

interface Renderer {
  readonly worker: Worker;
  readonly port: MessagePort;
  readonly state: Int32Array<SharedArrayBuffer>;
  /** Whether it has answered once, so that its start need not be waited for. */
  warm: boolean;
}

let renderer: Renderer | undefined;

/** Asks the thread and waits; undefined when it did not answer in time, or died of its memory. */
function ask(request: Readonly<Record<string, unknown>>): Answer | undefined {
  renderer ??= startRenderer();
  if (!renderer.warm) {
    const started = exchange(renderer, { template: '', variables: {}, date: '' }, limits.startMilliseconds);
    if (started === undefined) {
      renderer = undefined;
      throw new ModelError(
        'the thread that renders chat templates does not start; is @huggingface/jinja installed?',
      );
    }
    renderer.warm = true;
  }
  const answer = exchange(renderer, request, limits.milliseconds);
  if (answer === undefined) {
    void renderer.worker.terminate();
    renderer = undefined;
  }
  return answer;
}

function exchange({ port, state }: Renderer, request: unknown, limitMs: number): Answer | undefined {
  Atomics.store(state, 0, 0);
  port.postMessage(request);
  Atomics.wait(state, 0, 0, limitMs);
  return receiveMessageOnPort(port)?.message as Answer | undefined;
}

function startRenderer(): Renderer {
  const { port1, port2 } = new MessageChannel();
  const state = new Int32Array(new SharedArrayBuffer(4));
  const worker = new Worker(new URL('./jinjaWorker.mjs', import.meta.url), {
    workerData: { port: port2, state, longestOutput: limits.outputCharacters },
    transferList: [port2],
    resourceLimits: { maxOldGenerationSizeMb: limits.memoryMB },
    execArgv: [],
    env: {},
  });
  // A thread that died of its memory is noticed by its silence.
  worker.on('error', () => undefined);
  worker.unref();
  port1.unref();
  return { worker, port: port1, state, warm: false };
}

const named = z.array(z.looseObject({ name: z.string(), template: z.string() }));
const configSchema = z.looseObject({ chat_template: z.union([z.string(), named]).nullish() });

/**
 * The chat template of a model folder: `chat_template.jinja`, or the one in tokenizer_config.json. null where there is
 * none.
 * @param tokenizerConfig content of tokenizer_config.json
 * @throws ModelError naming the file that cannot be read
 */
export async function readChatTemplate(folder: string, tokenizerConfig: unknown): Promise<string | null> {
  const path = join(folder, 'chat_template.jinja');
  const found = await stat(path).catch(() => undefined);
  if (found !== undefined) {
    if (!found.isFile() || found.size > 4 * limits.templateCharacters) {
      throw new ModelError(`${path}: not a file of at most ${4 * limits.templateCharacters} bytes`);
    }
    return readFile(path, 'utf8');
  }
  return chatTemplateIn(tokenizerConfig, join(folder, 'tokenizer_config.json'));
}

/**
 * The chat template in the content of tokenizer_config.json; of several the one that is called "default".
 * @param where how the error names it
 */
export function chatTemplateIn(tokenizerConfig: unknown, where: string): string | null {
  const parsed = configSchema.safeParse(tokenizerConfig);
  if (!parsed.success) {
    throw new ModelError(`${where}: chat_template: neither a text nor a list of named ones`);
  }
  const template = parsed.data.chat_template ?? null;
  if (template === null || typeof template === 'string') return template;
  return template.find(({ name }) => name === 'default')?.template ?? null;
}
