/** Folders of text as a corpus: what is read, what is left out and told, and that the sides share nothing. */
import { chmod, cp, mkdir, mkdtemp, rm, symlink, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { basename, dirname, join } from 'node:path';
import { gzipSync } from 'node:zlib';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { ConfigError } from '../../src/config/configError.ts';
import { random } from '../../src/config/random.ts';
import { type Corpus, type CorpusOptions, readCorpus } from '../../src/data/corpus.ts';

let folder: string;
beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), 'palkit-corpus-'));
});
afterEach(() => rm(folder, { recursive: true, force: true }));

const read = (over: Partial<CorpusOptions> = {}) =>
  readCorpus({ folders: [folder], files: ['*.txt'], heldOut: 0.3, mostMB: null, ...over });

async function put(name: string, content: string | Uint8Array): Promise<void> {
  await mkdir(dirname(join(folder, name)), { recursive: true });
  await writeFile(join(folder, name), content);
}

const words = 'amber birch cedar delta ember fjord grove heron inlet jetty knoll larch'.split(' ');

/** A paragraph that no other number has. */
function paragraph(number: number): string {
  const draws = random(1, 'paragraph', number);
  return `${Array.from({ length: 12 }, () => draws.pick(words)).join(' ')} ${number}`;
}

/** Enough files that both sides have some. */
async function putMany(
  count = 30,
  textOf = (at: number) => `${paragraph(2 * at)}\n\n${paragraph(2 * at + 1)}\n`,
) {
  for (let at = 0; at < count; at++) await put(`many/${at}.txt`, textOf(at));
}

const sides = ({ training, heldOut }: Corpus) => ({
  training: training.map(({ text }) => text),
  heldOut: heldOut.map(({ text }) => text),
});
const names = ({ training, heldOut }: Corpus) =>
  [...training, ...heldOut].map(({ path }) => basename(path)).sort();
const paragraphsOf = (texts: readonly string[]) => texts.flatMap((text) => text.split('\n\n'));
const charactersOf = (texts: readonly string[]) => texts.reduce((total, { length }) => total + length, 0);

describe('files that are no text', () => {
  it('are left out, each with the reason', async () => {
    await putMany();
    const bomb = gzipSync(new Uint8Array(17 * 2 ** 20).fill(97));
    expect(bomb.length).toBeLessThan(100_000);
    await put('binary.txt', 'text\0text');
    await put('latin1.txt', Buffer.from('caf\xe9', 'latin1'));
    await put('lone.txt', Uint8Array.of(0xed, 0xa0, 0x80));
    await put('cut.txt.gz', gzipSync(paragraph(900).repeat(20)).subarray(0, 40));
    await put('other.txt.gz', 'not compressed');
    await put('bomb.txt.gz', bomb);
    await put('large.txt', new Uint8Array(16 * 2 ** 20 + 1).fill(97));
    const corpus = await read();
    expect(corpus.skipped.map(({ path, reason }) => [basename(path), reason])).toEqual([
      ['binary.txt', 'has zero bytes: it is binary'],
      ['bomb.txt.gz', 'is larger than 16 MiB'],
      ['cut.txt.gz', expect.stringMatching(/^is no gzip file: /)],
      ['large.txt', 'is larger than 16 MiB'],
      ['latin1.txt', 'is not UTF-8'],
      ['lone.txt', 'is not UTF-8'],
      ['other.txt.gz', expect.stringMatching(/^is no gzip file: /)],
    ]);
    expect(names(corpus)).toHaveLength(30);
    expect(corpus.copies).toBe(0);
  });

  it('empty ones, and rules and blank lines, have nothing to say', async () => {
    await putMany();
    await put('empty.txt', '');
    await put('blank.txt', '\n\n   \n');
    await put('rule.txt', '-----\n\n*** * ***\n');
    const corpus = await read();
    expect(names(corpus)).toHaveLength(30);
    expect(corpus.skipped).toEqual([]);
  });

  // Permissions do not bind the superuser.
  it.skipIf(process.getuid?.() === 0)('one that may not be read is told', async () => {
    await putMany();
    await put('secret.txt', paragraph(900));
    await chmod(join(folder, 'secret.txt'), 0);
    const { skipped } = await read();
    expect(skipped).toEqual([
      { path: join(folder, 'secret.txt'), reason: expect.stringContaining('EACCES') },
    ]);
  });
});

describe('what is read', () => {
  it('goes by patterns on names; a compressed file by its name without the ending', async () => {
    await putMany();
    await put('sub/deep/README', paragraph(900));
    await put('sub/README.gz', gzipSync(paragraph(901)));
    await put('sub/notes.md', paragraph(902));
    const corpus = await read({ files: ['*.txt', 'README'] });
    expect(names(corpus).filter((name) => !name.endsWith('.txt'))).toEqual(['README', 'README.gz']);
    const texts = Object.values(sides(corpus)).flat();
    expect(texts).toContain(paragraph(901));
    expect(texts).not.toContain(paragraph(902));
  });

  it('has line ends and no byte order mark', async () => {
    await putMany();
    await put('windows.txt', `\ufeff${paragraph(900)}\r\n\r\n${paragraph(901)}\r\n`);
    const texts = Object.values(sides(await read())).flat();
    expect(texts).toContain(`${paragraph(900)}\n\n${paragraph(901)}\n`);
  });

  it('does not follow symbolic links, out of the folder or round in it', async () => {
    await putMany();
    const outside = await mkdtemp(join(tmpdir(), 'palkit-outside-'));
    try {
      await writeFile(join(outside, 'outside.txt'), paragraph(900));
      await symlink(join(outside, 'outside.txt'), join(folder, 'link.txt'));
      await symlink(outside, join(folder, 'elsewhere'));
      await symlink(folder, join(folder, 'many', 'loop'));
      await symlink(join(folder, 'nowhere'), join(folder, 'dangling.txt'));
      const corpus = await read();
      expect(names(corpus)).toHaveLength(30);
      expect(corpus).toMatchObject({ skipped: [], copies: 0 });
    } finally {
      await rm(outside, { recursive: true });
    }
  });

  it('leaves out copies, and a folder that is named twice counts once', async () => {
    await putMany();
    await put('copy.txt', `${paragraph(0)}\n\n${paragraph(1)}\n`);
    await put('copy.txt.gz', gzipSync(`${paragraph(0)}\r\n\r\n${paragraph(1)}\r\n`));
    const corpus = await read({ folders: [folder, `${folder}/`] });
    expect(corpus.copies).toBe(2);
    expect(sides(corpus)).toEqual(sides(await read({ folders: [join(folder, 'many')] })));
  });

  it('leaves out paragraphs that have occurred, so that none is on both sides', async () => {
    const licence = 'This program is free software;\nyou may copy it.';
    const reworded = 'This program is free software -- you may\n  copy it!';
    await putMany(40, (at) => `${at % 2 ? licence : reworded}\n\n${paragraph(at)}\n\n${paragraph(at % 7)}`);
    const corpus = await read();
    const { training, heldOut } = sides(corpus);
    const key = (text: string) => text.replace(/\W+/g, ' ').trim();
    const [seen, asked] = [training, heldOut].map((texts) => paragraphsOf(texts).map(key)) as [
      string[],
      string[],
    ];
    expect(asked.length).toBeGreaterThan(0);
    expect(asked.filter((one) => seen.includes(one))).toEqual([]);
    for (const one of [seen, asked]) expect(new Set(one).size).toBe(one.length);
    expect(seen.filter((one) => one === key(licence))).toHaveLength(1);
    // 39 of the licence; 40 of the second kind, 33 of which come again as a third.
    const left = charactersOf(paragraphsOf([...training, ...heldOut]));
    const all =
      20 * (licence.length + reworded.length) +
      charactersOf([...Array(40).keys()].flatMap((at) => [paragraph(at), paragraph(at % 7)]));
    expect(corpus.repeatedCharacters).toBe(all - left);
  });
});

describe('the split', () => {
  it('depends on content alone: not on names, folders, or the order of files', async () => {
    await putMany();
    const before = await read();
    expect(before.heldOut.length).toBeGreaterThan(0);
    const other = join(folder, 'renamed');
    for (let at = 0; at < 30; at++)
      await cp(join(folder, 'many', `${at}.txt`), join(other, `${(at * 7) % 4}`, `x${(at * 11) % 30}.txt`));
    expect(sides(await read({ folders: [other] }))).toEqual(sides(before));
    const halves = [0, 1].map((rest) => join(other, 'halves', `${rest}`));
    for (let at = 0; at < 30; at++)
      await cp(join(folder, 'many', `${at}.txt`), join(halves[at % 2] as string, `${at}.txt`));
    for (const folders of [halves, halves.toReversed()])
      expect(sides(await read({ folders }))).toEqual(sides(before));
  });

  it('holds out the share that was asked for, more of the same files where more is asked for', async () => {
    await putMany(200);
    const [few, more] = [await read({ heldOut: 0.1 }), await read({ heldOut: 0.5 })];
    expect(few.heldOut.length / 200).toBeGreaterThan(0.04);
    expect(few.heldOut.length / 200).toBeLessThan(0.17);
    expect(Math.abs(more.heldOut.length / 200 - 0.5)).toBeLessThan(0.12);
    expect(sides(more).heldOut).toEqual(expect.arrayContaining(sides(few).heldOut));
  });

  it('takes at most as many characters as asked for, on both sides', async () => {
    await putMany(60);
    const whole = sides(await read());
    const most = 2000;
    const corpus = await read({ mostMB: most / 1e6 });
    const { training, heldOut } = sides(corpus);
    expect(charactersOf(training)).toBe(most * 0.7);
    expect(charactersOf(heldOut)).toBe(most * 0.3);
    expect(corpus.beyond).toBe(60 - training.length - heldOut.length);
    // The beginning of the whole.
    for (const [own, all] of [
      [training, whole.training],
      [heldOut, whole.heldOut],
    ] as const)
      for (const [at, text] of own.entries()) expect((all[at] as string).startsWith(text)).toBe(true);
  });

  it('cuts a long paragraph, and never within a character', async () => {
    await putMany(40, (at) => `\u{1f600}${at}`.repeat(200));
    const short: number[] = [];
    for (const most of [102, 104, 106, 108]) {
      const { training, heldOut } = sides(await read({ mostMB: most / 1e6, heldOut: 0.5 }));
      for (const texts of [training, heldOut]) {
        for (const text of texts) expect(text).not.toMatch(/\p{Surrogate}/u);
        short.push(most / 2 - charactersOf(texts));
      }
    }
    // Where a character would have been halved, one is missing.
    expect([...new Set(short)].sort()).toEqual([0, 1]);
  });
});

describe('too little text', () => {
  it.each([
    [
      'no file at all',
      0,
      /corpus: 0 files to train on and 0 held out, of 0 that \*\.txt match below .*: name more text/,
    ],
    ['one file', 1, /corpus: (1 files to train on and 0|0 files to train on and 1) held out, of 1 that/],
  ])('%s', async (_, count, message) => {
    await putMany(count);
    await expect(read()).rejects.toThrow(message);
    await expect(read()).rejects.toBeInstanceOf(ConfigError);
  });

  it('a folder that is not there, and one that is a file', async () => {
    await put('file.txt', 'a');
    const missing = join(folder, 'missing');
    await expect(read({ folders: [missing] })).rejects.toThrow(`corpus.folders: ${missing}: is not there`);
    await expect(read({ folders: [join(folder, 'file.txt')] })).rejects.toThrow(
      /corpus\.folders: .*file\.txt: /,
    );
    await expect(read({ folders: [missing] })).rejects.toBeInstanceOf(ConfigError);
  });

  it('a pattern that is malformed names its place', async () => {
    await expect(read({ files: ['*.txt', '{3..1}'] })).rejects.toThrow('corpus.files[1]: "{3..1}"');
  });
});
