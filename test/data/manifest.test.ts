import { mkdtempSync } from 'node:fs';
import { rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, describe, expect, it } from 'vitest';
import { type Example, readManifest, writeManifest } from '../../src/data/manifest.ts';

const folder = mkdtempSync(join(tmpdir(), 'palkit-'));
afterAll(() => rm(folder, { recursive: true }));

const example: Example = {
  id: 'a-1',
  audio: 'audio/a.wav',
  question: 'Is there a bell?',
  answer: 'yes',
  options: ['yes', 'no'],
  category: 'presence',
  template: 'presence',
  kind: 'choice',
};

async function reading(text: string): Promise<Example[]> {
  const path = join(folder, 'test.jsonl');
  await writeFile(path, text);
  return readManifest(path);
}

const line = (over: Record<string, unknown>) => JSON.stringify({ ...example, ...over });

describe('readManifest', () => {
  it('gives back what writeManifest wrote', async () => {
    const path = join(folder, 'round.jsonl');
    const open: Example = { ...example, id: 'a-2', kind: 'open', answer: 'a bell' };
    const { options: _, ...bare } = open;
    await writeManifest(path, [example, bare]);
    expect(await readManifest(path)).toEqual([example, bare]);
  });

  it('tolerates a byte order mark, CRLF and empty lines', async () => {
    expect(await reading(`\uFEFF${line({})}\r\n\r\n${line({ id: 'b' })}\r\n`)).toHaveLength(2);
  });

  const wrong: Record<string, [text: string, message: string]> = {
    'a line that is not JSON': [`${line({})}\n{"id":`, 'test.jsonl:2: not JSON'],
    'a missing field': [line({ question: undefined }), 'test.jsonl:1: question:'],
    'an unknown field': [line({ quesiton: 'x' }), 'quesiton'],
    'an answer that is no option': [
      line({ answer: 'maybe' }),
      'test.jsonl:1: answer: "maybe" is not among the options',
    ],
    'a choice without options': [line({ options: undefined }), 'is not among the options'],
    'an open question with options': [line({ kind: 'open' }), 'options: an open question has none'],
    'an id that stands twice': [
      `${line({})}\n${line({})}`,
      'test.jsonl:2: id "a-1" stands in line 1 already',
    ],
    'a path that leads out': [line({ audio: '../../etc/passwd' }), "leads out of the dataset's folder"],
    'an absolute path': [line({ audio: '/etc/passwd' }), "leads out of the dataset's folder"],
    'a line of a megabyte': [line({ question: 'x'.repeat(1_100_000) }), 'at most 1000000 are read'],
    'an empty file': ['\n\n', 'holds no example'],
  };
  for (const [what, [text, message]] of Object.entries(wrong)) {
    it(`refuses ${what}`, async () => {
      await expect(reading(text)).rejects.toThrow(message);
    });
  }

  it('lists every bad line at once', async () => {
    const text = `${line({ answer: 'x' })}\n${line({ id: 'b' })}\n${line({ id: 'c', answer: 'y' })}`;
    await expect(reading(text)).rejects.toThrow(/test\.jsonl:1: .*\n.*test\.jsonl:3: /s);
  });

  it('names a file that is not there', async () => {
    await expect(readManifest(join(folder, 'none.jsonl'))).rejects.toThrow(
      'none.jsonl: cannot be read (ENOENT)',
    );
  });
});
