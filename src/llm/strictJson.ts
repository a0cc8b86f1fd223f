import { readFile, stat } from 'node:fs/promises';
import { ModelError } from './modelError.ts';

/** What a strict reading refuses beyond bad JSON. */
export interface JsonLimits {
  /** The most levels of `{` and `[` inside each other. */
  readonly depth: number;
  /** The most values in all, those inside others too; any number when left out. */
  readonly values?: number;
}

/**
 * Parses JSON that came from somebody else: duplicate keys and deep nesting are refused. `JSON.parse` keeps the
 * last of two equal keys without a word, so that two readers can see two different files in the same bytes.
 * @param where how error messages name the text (a file, say)
 * @throws ModelError naming `where` for bad JSON, a duplicate key or too many levels.
 */
export function parseStrictJson(text: string, where: string, limits: JsonLimits): unknown {
  const problem = findProblem(text, limits);
  if (problem !== null) throw new ModelError(`${where}: ${problem}`);
  try {
    return JSON.parse(text);
  } catch (error) {
    throw new ModelError(
      `${where}: this is not JSON: ${error instanceof Error ? error.message : String(error)}`,
    );
  }
}

/**
 * Decodes UTF-8 and parses it strictly; a byte-order mark is tolerated.
 * @throws ModelError naming `where`, also when the bytes are not UTF-8.
 */
export function parseStrictJsonBytes(bytes: Uint8Array, where: string, limits: JsonLimits): unknown {
  let text: string;
  try {
    text = new TextDecoder('utf-8', { fatal: true }).decode(bytes);
  } catch {
    throw new ModelError(`${where}: this is not UTF-8 text`);
  }
  return parseStrictJson(text, where, limits);
}

/**
 * Reads and parses a file strictly.
 * @returns undefined when there is no such file
 * @throws ModelError naming the file, also when it is larger than `limits.bytes`
 */
export async function readStrictJson(
  path: string,
  limits: JsonLimits & { readonly bytes: number },
): Promise<unknown> {
  let bytes: Uint8Array;
  try {
    const { size } = await stat(path);
    if (size > limits.bytes) {
      throw new ModelError(`${path}: ${size} bytes; the largest allowed here is ${limits.bytes}`);
    }
    bytes = await readFile(path);
  } catch (error) {
    const code = (error as NodeJS.ErrnoException).code;
    if (code === 'ENOENT') return undefined;
    throw error instanceof ModelError ? error : new ModelError(`${path}: cannot be read (${code})`);
  }
  return parseStrictJsonBytes(bytes, path, limits);
}

/**
 * Walks over the brackets, strings and commas of a JSON text. It is exact for good JSON; in bad JSON it may
 * see nothing wrong, and `JSON.parse` has the last word.
 */
function findProblem(
  text: string,
  { depth: maximumDepth, values: maximumValues = Number.POSITIVE_INFINITY }: JsonLimits,
): string | null {
  // The keys seen so far of each open object; null for an open array.
  const open: (Set<string> | null)[] = [];
  let expectsKey = false;
  // One for every bracket and comma, so an empty list counts twice.
  let values = 0;
  for (let at = 0; at < text.length; at++) {
    const character = text[at];
    if (character === '"') {
      const end = endOfString(text, at);
      const keys = open.at(-1);
      if (expectsKey && keys) {
        const key = keyOf(text.slice(at, end + 1));
        if (keys.has(key)) return `the key ${JSON.stringify(key)} stands twice in one object`;
        keys.add(key);
        expectsKey = false;
      }
      at = end;
    } else if (character === '{' || character === '[') {
      if (open.length === maximumDepth) return `the JSON is nested deeper than ${maximumDepth} levels`;
      values++;
      open.push(character === '{' ? new Set() : null);
      expectsKey = character === '{';
    } else if (character === '}' || character === ']') {
      open.pop();
      expectsKey = false;
    } else if (character === ',') {
      expectsKey = open.at(-1) instanceof Set;
      values++;
    }
    if (values > maximumValues) return `the JSON has more than ${maximumValues} values`;
  }
  return null;
}

/** The index of the closing quote of the string that opens at `start`, or the text's length. */
function endOfString(text: string, start: number): number {
  for (let end = text.indexOf('"', start + 1); end !== -1; end = text.indexOf('"', end + 1)) {
    let backslashes = 0;
    while (text[end - 1 - backslashes] === '\\') backslashes++;
    if (backslashes % 2 === 0) return end;
  }
  return text.length;
}

/** The text of a JSON string token; the token itself when it is malformed. */
function keyOf(token: string): string {
  if (!token.includes('\\')) return token.slice(1, -1);
  try {
    return String(JSON.parse(token));
  } catch {
    return token;
  }
}
