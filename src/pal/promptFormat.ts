/** From a configuration and a model to the prompts of a run. */
import { ModelError } from '../llm/modelError.ts';
import type { Tokenizer } from '../llm/tokenizer.ts';
import type { PromptedLlm } from '../llm/weights.ts';
import { chatFormat } from './chatFormat.ts';
import { aroundAudio, fill, type PromptConfig, type PromptFormat } from './prompt.ts';

/**
 * The prompts that a configuration describes.
 * @throws ModelError when the model has no chat template or no token that ends an answer, or its chat template does
 *   not do with the messages what prompts need
 */
export function promptFormat(config: PromptConfig, llm: PromptedLlm): PromptFormat {
  return config.chat ? chatFormat(config, llm) : plainFormat(config, llm);
}

function plainFormat({ system, template }: PromptConfig, { tokenizer, config }: PromptedLlm): PromptFormat {
  const [before, behind] = aroundAudio(template);
  const endId = config.eosTokenIds[0] ?? tokenizer.eosTokenId;
  if (endId === undefined) {
    throw new ModelError(
      'the model has no eos_token_id, in config.json or elsewhere: nothing would end an answer',
    );
  }
  const inFront = encodeSome(tokenizer, `${system ?? ''}${before}`);
  const front = [...tokenizer.beginning, ...inFront];
  const continues = inFront.length > 0;
  return {
    front,
    promptIds: (asked) => [
      ...front,
      ...tokenizer.encode(fill(behind, asked, tokenizer.escapeSpecial), { continues }),
    ],
    // Its first word carries the space.
    answerIds: (answer) => tokenizer.encode(` ${tokenizer.escapeSpecial(answer)}`, { continues: true }),
    endId,
  };
}

/** Some tokenizers make a token even of nothing. */
function encodeSome(tokenizer: Tokenizer, text: string): number[] {
  return text === '' ? [] : tokenizer.encode(text);
}
