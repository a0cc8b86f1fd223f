import { stripVTControlCharacters } from 'node:util';

/**
 * Makes a text from a model, a file or a file name safe to print: escape sequences are dropped, and so are the
 * other control characters and the marks that reverse the direction of writing. Tabs and line feeds stay.
 */
export function sanitize(text: string): string {
  return stripVTControlCharacters(text.replace(/\r\n?/g, '\n')).replace(
    /[^\P{Cc}\t\n]|[\u061C\u200E\u200F\u202A-\u202E\u2066-\u2069]/gu,
    '',
  );
}

/** The same on one line: for table cells and progress lines. */
export function sanitizeLine(text: string): string {
  return sanitize(text).replace(/\s*[\t\n]\s*/g, ' ');
}
