/** What `palkit lm` measured, as a table for the terminal. */
import type { LmResult } from '../../train/pretrain.ts';
import { sanitizeLine } from './sanitize.ts';
import { formatTable } from './table.ts';

export function formatLmResult(result: LmResult): string {
  const { measured, parameters, activeParameters, flopsPerToken, steps, tokens, flops, seconds } = result;
  const table = formatTable(
    ['model', 'perplexity', 'nats a token', 'bits a byte', 'tokens'],
    measured.map(({ model, perplexity, nll, bitsPerByte, tokens: own }) => [
      model,
      perplexity < 1e5 ? perplexity.toFixed(2) : perplexity.toExponential(2),
      nll.toFixed(4),
      bitsPerByte.toFixed(4),
      own,
    ]),
  );
  const used = activeParameters === parameters ? '' : `, ${millions(activeParameters)} M used by a token`;
  return [
    `${sanitizeLine(result.name)}: ${millions(parameters)} M parameters${used}; ${(flopsPerToken.forward / 1e6).toFixed(2)} MFLOP a token forward, ${(flopsPerToken.training / 1e6).toFixed(2)} in training`,
    `${steps} steps, ${millions(tokens)} M tokens, ${(flops / 1e12).toFixed(2)} TFLOP, ${seconds.toFixed(0)} s`,
    '',
    table,
  ].join('\n');
}

const millions = (count: number) => (count / 1e6).toFixed(2);
