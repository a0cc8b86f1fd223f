/** How a problem in a configuration is reported: what, where, and the line itself. */

/** A configuration that cannot be used. The message lists every problem with its place. */
export class ConfigError extends Error {
  override readonly name = 'ConfigError';
}

/** A text that a configuration came from. */
export interface Source {
  /** For people: the file's path, or the override as it was typed. */
  readonly label: string;
  /** Null where the label says it all. */
  readonly text: string | null;
}

/** A character in a source. */
export interface Place {
  readonly source: Source;
  /** In UTF-16 units from the start of the text. */
  readonly offset: number;
}

export interface Problem {
  readonly place: Place;
  readonly path: readonly PropertyKey[];
  readonly what: string;
}

const mostProblems = 50;
const widestLine = 110;

/** All problems in one error, in the order of the text. */
export function configError(problems: readonly Problem[]): ConfigError {
  const ordered = [...problems].sort(
    (a, b) => a.place.source.label.localeCompare(b.place.source.label) || a.place.offset - b.place.offset,
  );
  const lines = [...new Set(ordered.map(formatProblem))];
  const rest = lines.length - mostProblems;
  return new ConfigError(
    [...lines.slice(0, mostProblems), ...(rest > 0 ? [`... and ${rest} more problems`] : [])].join('\n'),
  );
}

/** `train.stages.0.steps`, as `--set` takes it. */
export function formatPath(path: readonly PropertyKey[]): string {
  return path.map(String).join('.');
}

function formatProblem({ place: { source, offset }, path, what }: Problem): string {
  const subject = path.length === 0 ? what : `${clip(formatPath(path), 200)}: ${what}`;
  if (source.text === null) return `${source.label}  ${subject}`;
  const { line, column, text } = lineAt(source.text, offset);
  // A window of the line, so that a caret under a very long one can still be found.
  const from = Math.max(0, Math.min(column - 1 - widestLine / 2, text.length - widestLine));
  const gutter = String(line).padStart(5);
  return [
    `${source.label}:${line}:${column}  ${subject}`,
    `${gutter} | ${printable(text.slice(from, from + widestLine))}`,
    `${' '.repeat(gutter.length)} | ${' '.repeat(column - 1 - from)}^`,
  ].join('\n');
}

/** 1-based line and column, and the line's text. */
function lineAt(text: string, offset: number): { line: number; column: number; text: string } {
  const before = text.slice(0, offset);
  const start = before.lastIndexOf('\n') + 1;
  const end = text.indexOf('\n', start);
  return {
    line: before.split('\n').length,
    column: offset - start + 1,
    text: text.slice(start, end === -1 ? undefined : end).replace(/\r$/, ''),
  };
}

/** Tabs become blanks, so that the caret stands right; other control characters are made harmless. */
function printable(text: string): string {
  return text.replace(/\t/g, ' ').replace(/\p{Cc}/gu, '\uFFFD');
}

/** A text that came from a file, on one line and not too long. */
export function clip(text: string, length: number): string {
  const shown = printable(text);
  return shown.length <= length ? shown : `${shown.slice(0, length)}...`;
}
