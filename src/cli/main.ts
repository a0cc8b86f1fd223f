#!/usr/bin/env node
/** The command line. Commands are imported when they are asked for. */
import { readFileSync } from 'node:fs';
import { stripVTControlCharacters } from 'node:util';
import { type ArgsDef, runCommand as cittyRun, defineCommand, renderUsage } from 'citty';
import { type AnyCommand, checkArguments, findCommand, resolved } from './arguments.ts';
import { examples } from './examples.ts';
import { endOnClosedPipe, exitCodes, runCommand, UsageError } from './run.ts';

const main = defineCommand({
  meta: { name: 'palkit', description: 'Train, evaluate and probe audio-LLMs' },
  subCommands: {
    train: () => import('./commands/train.ts').then(({ train }) => train),
    eval: () => import('./commands/eval.ts').then(({ evaluate }) => evaluate),
    ask: () => import('./commands/ask.ts').then(({ ask }) => ask),
    plan: () => import('./commands/plan.ts').then(({ plan }) => plan),
    profile: () => import('./commands/profile.ts').then(({ profile }) => profile),
    routing: () => import('./commands/routing.ts').then(({ routing }) => routing),
    lm: () => import('./commands/lm.ts').then(({ lm }) => lm),
    similarity: () => import('./commands/similarity.ts').then(({ similarity }) => similarity),
    export: () => import('./commands/export.ts').then(({ exportModel }) => exportModel),
    data: () => import('./commands/data.ts').then(({ data }) => data),
    doctor: () => import('./commands/doctor.ts').then(({ doctor }) => doctor),
  },
});

async function dispatch(given: readonly string[]): Promise<number | undefined> {
  const { command, names, rest, subCommands } = await findCommand(main, given);
  const options = rest.includes('--') ? rest.slice(0, rest.indexOf('--')) : rest;
  if (options.includes('--help') || options.includes('-h')) {
    process.stdout.write(`${await usageOf(command, names)}\n`);
    return exitCodes.done;
  }
  if (names.length === 0 && options[0] === '--version') {
    process.stdout.write(`${version()}\n`);
    return exitCodes.done;
  }
  if (subCommands.length > 0) {
    const prefix = ['palkit', ...names].join(' ');
    const [first] = options;
    const what = first === undefined ? 'a command is missing' : `${first} stands before the command`;
    throw new UsageError(
      `${prefix}: ${what}\nCommands: ${subCommands.join(', ')}; \`${prefix} --help\` says what they do`,
    );
  }
  const declared: ArgsDef = (await resolved(command.args)) ?? {};
  checkArguments(names.join(' '), rest, declared);
  const { result } = await cittyRun(command, { rawArgs: [...rest] });
  return typeof result === 'number' ? result : undefined;
}

async function usageOf(command: AnyCommand, names: readonly string[]): Promise<string> {
  const parent =
    names.length === 0 ? undefined : { meta: { name: ['palkit', ...names.slice(0, -1)].join(' ') } };
  const own = examples[names.join(' ')] ?? [];
  const shown = own.length === 0 ? '' : `\nEXAMPLES\n\n${own.map((line) => `  ${line}`).join('\n')}\n`;
  const usage = `${await renderUsage(command, parent)}${shown}`;
  return process.stdout.isTTY ? usage : stripVTControlCharacters(usage);
}

function version(): string {
  const manifest: unknown = JSON.parse(readFileSync(new URL('../../package.json', import.meta.url), 'utf8'));
  return typeof manifest === 'object' && manifest !== null && 'version' in manifest
    ? String(manifest.version)
    : '?';
}

endOnClosedPipe();
const given = process.argv.slice(2);
process.exitCode = await runCommand(() => dispatch(given), { json: given.includes('--json') });
