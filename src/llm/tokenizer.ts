/** Text to token ids and back, by a tokenizer.json. */
import { readFile, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { Tokenizer as HuggingFaceTokenizer } from '@huggingface/tokenizers';
import { z } from 'zod';
import { ModelError } from './config.ts';
import { parseStrictJson } from './strictJson.ts';

export interface Tokenizer {
  /**
   * Token ids of a text; special tokens are not added. Words carry the space in front of them: "a bell" is
   * encoded as "a" + " bell", so a text may be cut in front of a space and encoded in parts.
   * @throws ModelError when the vocabulary cannot express the text
   */
  encode(text: string): number[];
  decode(ids: readonly number[], options?: { skipSpecial?: boolean }): string;
  tokenId(token: string): number | undefined;
  /** Size of the vocabulary, special tokens included. */
  readonly size: number;
  readonly bosTokenId: number | undefined;
  readonly eosTokenId: number | undefined;
  readonly padTokenId: number | undefined;
  /** The files' contents, to be saved beside a model. */
  readonly files: { readonly tokenizer: unknown; readonly tokenizerConfig: unknown };
}

const maxBytes = 64 * 1024 * 1024;
const limits = { depth: 32 };

const tokenizerSchema = z.looseObject({
  model: z.looseObject({
    type: z.string().optional(),
    vocab: z.union([z.record(z.string(), z.int().min(0)), z.array(z.tuple([z.string(), z.number()]))]),
  }),
});

const special = z.union([z.string(), z.looseObject({ content: z.string() })]).nullish();
const configSchema = z.looseObject({ bos_token: special, eos_token: special, pad_token: special });

/**
 * Loads tokenizer.json, and tokenizer_config.json where there is one, from a folder.
 * @throws ModelError naming the file and what is wrong with it
 */
export async function loadTokenizer(folder: string): Promise<Tokenizer> {
  const path = join(folder, 'tokenizer.json');
  const tokenizer = await readJson(path);
  const config = await readJson(join(folder, 'tokenizer_config.json')).catch((error: unknown) => {
    if (error instanceof ModelError && error.message.endsWith('there is no such file')) return {};
    throw error;
  });
  return tokenizerOf(tokenizer, config, path);
}

async function readJson(path: string): Promise<unknown> {
  let text: string;
  try {
    const { size } = await stat(path);
    if (size > maxBytes) throw new ModelError(`${path}: ${size} bytes, at most ${maxBytes} are read`);
    text = await readFile(path, 'utf8');
  } catch (error) {
    if (error instanceof ModelError) throw error;
    const code = (error as NodeJS.ErrnoException).code;
    throw new ModelError(
      `${path}: ${code === 'ENOENT' ? 'there is no such file' : `cannot be read (${code})`}`,
    );
  }
  return parseStrictJson(text, path, limits);
}

/** A tokenizer from the parsed contents of its files. */
export function tokenizerOf(tokenizer: unknown, config: unknown, where: string): Tokenizer {
  const checked = tokenizerSchema.safeParse(tokenizer);
  const settings = configSchema.safeParse(config);
  for (const result of [checked, settings]) {
    if (result.success) continue;
    const issues = result.error.issues.map((issue) => `${issue.path.join('.')}: ${issue.message}`);
    throw new ModelError(`${where}: not a tokenizer (${issues.slice(0, 5).join('; ')})`);
  }
  let inner: HuggingFaceTokenizer;
  try {
    inner = new HuggingFaceTokenizer(tokenizer as object, config as object);
  } catch (error) {
    throw new ModelError(`${where}: not a tokenizer (${error instanceof Error ? error.message : error})`);
  }
  const idOf = (token: z.infer<typeof special>) => {
    const content = typeof token === 'string' ? token : token?.content;
    return content === undefined ? undefined : inner.token_to_id(content);
  };
  const { bos_token, eos_token, pad_token } = settings.data ?? {};
  return {
    encode(text) {
      const { ids } = inner.encode(text, { add_special_tokens: false });
      if (ids.some((id) => id === undefined)) {
        throw new ModelError(`${where}: the vocabulary has no token for a part of ${JSON.stringify(text)}`);
      }
      return ids;
    },
    decode: (ids, { skipSpecial = true } = {}) =>
      ids.length === 0
        ? ''
        : inner.decode([...ids], { skip_special_tokens: skipSpecial, clean_up_tokenization_spaces: false }),
    tokenId: (token) => inner.token_to_id(token),
    size: inner.get_vocab(true).size,
    bosTokenId: idOf(bos_token),
    eosTokenId: idOf(eos_token),
    padTokenId: idOf(pad_token),
    files: { tokenizer, tokenizerConfig: config },
  };
}
