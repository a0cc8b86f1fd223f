/** Examples for the terminal: the text with the audio's place and the loss mask, then token by token. */
import type { ShownAudio, ShownExample, ShownSplit } from '../../train/showExamples.ts';
import { sanitize, sanitizeLine } from '../terminal/sanitize.ts';
import { formatTable } from '../terminal/table.ts';

const green = (text: string) => `\u001b[32m${text}\u001b[39m`;
const magenta = (text: string) => `\u001b[35m${text}\u001b[39m`;

/** @param colour whether learned text and the audio are coloured too; the marks around them stay */
export function formatShown({ dataset, split, questions, examples }: ShownSplit, colour: boolean): string {
  return [
    `${dataset}, ${split} split: ${examples.length} of ${questions} questions. ⟦learned⟧ ⟨audio⟩`,
    ...examples.map((example) => formatExample(example, colour)),
  ].join('\n\n');
}

function formatExample(example: ShownExample, colour: boolean): string {
  const { id, kind, category, clip, tokens, slot, audio, text } = example;
  const [learned, heard] = colour ? [green, magenta] : [String, String];
  const written = text.map((part) => {
    if ('audio' in part) return heard('⟨audio⟩');
    return part.learned ? learned(`⟦${sanitize(part.text)}⟧`) : sanitize(part.text);
  });
  const inLoss = tokens.filter((token) => token.learned).length;
  const audioTokens = audio.reduce((total, stream) => total + stream.tokens, 0);
  const row = (at: number) => {
    const token = tokens[at] as ShownExample['tokens'][number];
    return [String(at), String(token.id), JSON.stringify(token.text), token.learned ? 'learned' : ''];
  };
  const rows = tokens.map((_, at) => row(at));
  const place = [
    '',
    '',
    `⟨audio⟩ ${audio.map(({ stream, tokens: own }) => `${stream} ${own}`).join(', ')}`,
    '',
  ];
  return [
    sanitizeLine(`${id}: ${kind}, ${category}, ${clip}`),
    `${tokens.length} text tokens, ${inLoss} of them learned; ${audioTokens} audio tokens in front of text token ${slot}`,
    '',
    written.join(''),
    '',
    formatTable(
      ['stream', 'encoder', 'connector', 'mode', 'layers', 'audio tokens'],
      audio.map((stream) => [
        stream.stream,
        stream.encoder,
        stream.connector,
        stream.mode,
        layersOf(stream),
        stream.tokens,
      ]),
    ),
    '',
    formatTable(['token', 'id', 'text', 'loss'], [...rows.slice(0, slot), place, ...rows.slice(slot)]),
  ].join('\n');
}

/** 4 to 7, or 1, 3, 5. */
function layersOf({ layers }: ShownAudio): string {
  const [first = 0] = layers;
  const last = layers.at(-1) ?? first;
  return last - first === layers.length - 1 && layers.length > 2 ? `${first} to ${last}` : layers.join(', ');
}
