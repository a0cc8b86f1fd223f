import { spawnSync } from 'node:child_process';
import { mkdtempSync, readFileSync } from 'node:fs';
import { mkdir, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { gzipSync } from 'node:zlib';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { encodeWav, readWaveform } from '../../src/audio/waveform.ts';
import { random } from '../../src/config/random.ts';
import { type Example, readManifest } from '../../src/data/manifest.ts';
import { buildSpokenPrompts } from '../../src/data/spokenPrompts/build.ts';

const folder = mkdtempSync(join(tmpdir(), 'palkit-'));
afterAll(() => rm(folder, { recursive: true }));
const canPack = spawnSync('dpkg-deb', ['--version']).status === 0;

const languages = { en: 'english', es: 'spanish', fr: 'french', it: 'italian', ru: 'russian' };
const words = ['red', 'green', 'blue', 'white', 'black', 'warm', 'cold', 'late', 'early', 'near'];

/** Made-up packages in the layout of Debian's: tones for voices. */
async function pack(code: string): Promise<void> {
  const root = join(folder, `root-${code}`);
  const put = async (path: string, bytes: Uint8Array | string) => {
    await mkdir(dirname(join(root, path)), { recursive: true });
    await writeFile(join(root, path), bytes);
  };
  const draw = random('voice', code);
  const tone = (seconds: number, level = 0.5) =>
    encodeWav({
      samples: Float32Array.from(
        { length: 8000 * seconds },
        (_, at) => level * Math.sin((at * (1 + draw.integer(3))) / 7),
      ),
      sampleRate: 8000,
    });
  const sounds = `usr/share/asterisk/sounds/${code}_XX_f_Tone`;
  const lines = ['; a comment', 'beep: [a tone]', 'silent: nothing', 'long: a long one'];
  const spoken = [...'0123456789'].map((digit) => `digits/${digit}`);
  const letters = [...'abcdefghijklmnopqrstuvwxyz'].map((letter) => `letters/${letter}`);
  for (const stem of [...spoken, ...letters]) {
    await put(`${sounds}/${stem}.wav`, tone(0.3));
    lines.push(`${stem}: ${stem.at(-1)}`);
  }
  for (const [index, first] of words.entries()) {
    for (const second of words.slice(0, 6)) {
      await put(`${sounds}/vm-${first}-${second}.wav`, tone(0.5 + 0.1 * (index % 4)));
      lines.push(`vm-${first}-${second}: ${first}, ${second} ${code}!`);
    }
  }
  await put(`${sounds}/beep.wav`, tone(0.3));
  await put(`${sounds}/silent.wav`, tone(0.5, 0));
  await put(`${sounds}/long.wav`, tone(9));
  await put(`${sounds}/untold.wav`, tone(0.5));
  await put(
    `usr/share/doc/asterisk-core-sounds-${code}/core-sounds-${code}.txt.gz`,
    gzipSync(lines.join('\n')),
  );
  const control = `Package: asterisk-core-sounds-${code}-wav\nVersion: 1\nArchitecture: all\nMaintainer: nobody <nobody@example.org>\nDescription: tones\n`;
  await put('DEBIAN/control', control);
  const packed = spawnSync('dpkg-deb', [
    '-b',
    root,
    join(folder, 'debs', `asterisk-core-sounds-${code}-wav_1_all.deb`),
  ]);
  expect(packed.status, String(packed.stderr)).toBe(0);
}

const prompts = `spoken prompts out of .deb files${canPack ? '' : ' (skipped: dpkg-deb makes the packages)'}`;
describe.skipIf(!canPack)(prompts, () => {
  const built = join(folder, 'built');
  const examples: Record<string, Example[]> = {};
  beforeAll(async () => {
    await mkdir(join(folder, 'debs'));
    for (const code of Object.keys(languages)) await pack(code);
    await buildSpokenPrompts(built, { debs: join(folder, 'debs') });
    for (const split of ['train', 'validation', 'test'])
      examples[split] = await readManifest(join(built, `${split}.jsonl`));
  });

  it('asks for languages and numbers equally often, within clips of one length', async () => {
    for (const [split, own] of Object.entries(examples)) {
      for (const template of ['language', 'count']) {
        const answers = own
          .filter((example) => example.template === template)
          .map((example) => example.answer);
        const counts = [...new Set(answers)].map(
          (answer) => answers.filter((other) => other === answer).length,
        );
        expect(counts, `${split} ${template}`).toHaveLength(5);
        expect(new Set(counts).size).toBe(1);
      }
      const { samples, sampleRate } = await readWaveform(join(built, own.at(-1)?.audio ?? ''));
      expect([samples.length / sampleRate, sampleRate]).toEqual([4, 16_000]);
    }
  });

  it('offers four different transcripts, the right one among them', () => {
    const said = examples.train?.filter((example) => example.template === 'said') ?? [];
    expect(said.length).toBeGreaterThan(50);
    for (const { options = [], answer } of said) {
      expect(new Set(options).size).toBe(4);
      expect(options).toContain(answer);
      expect(answer).toMatch(/^[a-z0-9 ]+$/);
    }
  });

  it('keeps a prompt to one split, and lists what was left out with the reason', () => {
    const texts = Object.values(examples).map(
      (own) =>
        new Set(
          own
            .filter((example) => example.template === 'said' && example.answer.includes(' '))
            .map((example) => example.answer),
        ),
    );
    for (const [index, own] of texts.entries()) {
      for (const other of texts.slice(index + 1))
        expect([...own].filter((text) => other.has(text))).toEqual([]);
    }
    const { leftOut } = JSON.parse(readFileSync(join(built, 'dataset.json'), 'utf8')) as {
      leftOut: { recording: string; reason: string }[];
    };
    const reasons = Object.fromEntries(leftOut.map(({ recording, reason }) => [recording, reason]));
    expect(reasons).toMatchObject({
      'en/beep': 'not speech',
      'en/silent': 'silent',
      'ru/long': 'longer than 4 s',
      'fr/untold': 'no transcript',
    });
    expect(leftOut).toHaveLength(20);
  });

  it('says what to install where nothing is', async () => {
    await mkdir(join(folder, 'empty'));
    const attempt = buildSpokenPrompts(join(folder, 'none'), { debs: join(folder, 'empty') });
    await expect(attempt).rejects.toThrow('apt-get install asterisk-core-sounds-en-wav');
  });
});
