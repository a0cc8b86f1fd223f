import { Writable } from 'node:stream';
import { describe, expect, test } from 'vitest';
import { progressBar } from '../../../src/cli/terminal/progress.ts';
import { formatTable } from '../../../src/cli/terminal/table.ts';

/** A stream that remembers what it is given, as a terminal or not. */
function recorder(isTTY: boolean): { stream: NodeJS.WriteStream; text: () => string } {
  let text = '';
  const stream = new Writable({
    write(chunk, _, done) {
      text += String(chunk);
      done();
    },
  });
  const terminal = Object.assign(stream, {
    isTTY,
    columns: 120,
    rows: 40,
    cursorTo: () => true,
    clearLine: () => true,
    moveCursor: () => true,
  });
  return { stream: terminal as unknown as NodeJS.WriteStream, text: () => text };
}

describe('progress', () => {
  test('without a terminal: plain lines, the first and the last among them', () => {
    const { stream, text } = recorder(false);
    const progress = progressBar({ label: 'train\u001b[31m', total: 3, stream });
    progress.update(1, { loss: 0.123456, stage: 'connector' });
    progress.update(2, { loss: 0.1 });
    progress.update(3, { loss: 0.05 });
    progress.stop();
    expect(text()).toBe('train 1/3 | loss 0.1235 | stage connector\ntrain 3/3 | loss 0.05\n');
  });

  test('a job that is stopped early shows where it stood', () => {
    const { stream, text } = recorder(false);
    const progress = progressBar({ label: 'train', total: 10, stream });
    progress.update(1);
    progress.update(7);
    progress.stop();
    expect(text()).toBe('train 1/10\ntrain 7/10\n');
  });

  test('on a terminal: a bar', () => {
    const { stream, text } = recorder(true);
    const progress = progressBar({ label: 'eval', total: 4, stream });
    progress.update(4, { accuracy: 0.5 });
    progress.stop();
    expect(text()).toContain('eval ');
    expect(text()).toContain('4/4');
    expect(text()).toContain('accuracy 0.5');
  });

  test('with --json: nothing', () => {
    const { stream, text } = recorder(true);
    const progress = progressBar({ label: 'eval', total: 4, json: true, stream });
    progress.update(4);
    progress.stop();
    expect(text()).toBe('');
  });
});

test('a table: numbers to the right, hostile cells made harmless', () => {
  const table = formatTable(
    ['name', 'n'],
    [
      ['one\u001b[2J', 5],
      ['two\nlines', 1234],
    ],
  );
  expect(table).toBe('name          n\none           5\ntwo lines  1234');
});
