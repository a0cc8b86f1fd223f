import { expect, test } from 'vitest';
import { descriptionAt, listFields } from '../../src/config/fields.ts';
import { experimentSchema } from '../../src/config/schema.ts';

test('the fields of an experiment', () => {
  const lines = listFields(experimentSchema).map(
    ({ path, only, takes, fallback }) =>
      `${path}${only === null ? '' : ` (${only})`}: ${takes}${fallback === null ? '' : ` = ${fallback}`}`,
  );
  expect(lines.join('\n')).toMatchSnapshot();
});

test('every field says what it is for', () => {
  const silent = listFields(experimentSchema).filter(({ description }) => description === null);
  expect(silent).toEqual([]);
  expect(descriptionAt(experimentSchema, ['streams', 0, 'connector', 'tokens'])).toContain('Latents');
});
