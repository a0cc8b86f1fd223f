/** What surrounds every command: exit codes, and how errors are shown. */
import { sanitize } from './terminal/sanitize.ts';

/** The command line itself is wrong. */
export class UsageError extends Error {
  override readonly name = 'UsageError';
}

export const exitCodes = { done: 0, failed: 1, usage: 2, interrupted: 130 } as const;

/** Errors that say what is wrong and what to do: they need no stack. */
const expected = new Set([
  'AudioError',
  'BatchError',
  'CheckpointError',
  'ConfigError',
  'EncoderError',
  'EngineError',
  'ManifestError',
  'ModelError',
  'NonFiniteError',
  'OccupiedFolderError',
  'RunError',
  'UsageError',
]);

/** Of those, the ones that the user mends in the command or the configuration. */
const usage = new Set(['ConfigError', 'UsageError']);

/**
 * Runs the body of a command and shows what goes wrong: a clean message for what a user can mend, the stack for
 * what is a bug, and under --json one document on standard output.
 * @param body may give an exit code of its own
 * @returns the exit code
 */
export async function runCommand(
  body: () => Promise<number | undefined>,
  { json }: { readonly json: boolean },
): Promise<number> {
  try {
    return (await body()) ?? exitCodes.done;
  } catch (thrown) {
    const error = thrown instanceof Error ? thrown : new Error(String(thrown));
    const name = error.name;
    if (json)
      process.stdout.write(`${JSON.stringify({ error: { name, message: sanitize(error.message) } })}\n`);
    if (expected.has(name)) process.stderr.write(`${sanitize(error.message)}\n`);
    else if (isSystemError(error)) process.stderr.write(`${sanitize(describeSystemError(error))}\n`);
    else {
      process.stderr.write(
        `${sanitize(error.stack ?? error.message)}\nThis is a bug in palkit. Please report it with the lines above.\n`,
      );
    }
    return usage.has(name) ? exitCodes.usage : exitCodes.failed;
  }
}

/** An error of the operating system: a full disk, a folder that may not be written. */
function isSystemError(error: Error): error is NodeJS.ErrnoException {
  return 'syscall' in error && 'code' in error;
}

const advice: Readonly<Record<string, string>> = {
  ENOSPC: 'The disk is full; free some space and run the command again.',
  EACCES: 'Change the permissions, or choose another folder.',
  EPERM: 'Change the permissions, or choose another folder.',
  EROFS: 'The file system cannot be written; choose another folder.',
  EMFILE: 'Too many files are open; raise the limit with `ulimit -n`.',
};

function describeSystemError(error: NodeJS.ErrnoException): string {
  const own = advice[error.code ?? ''];
  return own === undefined ? error.message : `${error.message}\n${own}`;
}

/** Ends quietly when the reader of the output has gone: `palkit data list | head -1`. */
export function endOnClosedPipe(): void {
  for (const stream of [process.stdout, process.stderr]) {
    stream.on('error', (error: NodeJS.ErrnoException) => {
      if (error.code === 'EPIPE') process.exit();
      throw error;
    });
  }
}
