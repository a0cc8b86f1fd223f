import { expect, it } from 'vitest';
import { htmlPage } from '../../src/report/page.ts';

it('shows every text as text and every picture as an image, in which nothing runs', () => {
  const hostile = '<script>alert("&")</script>';
  const svg = `<svg xmlns="http://www.w3.org/2000/svg">${hostile}</svg>`;
  const figure = { heading: hostile, caption: hostile, svg };
  const page = htmlPage({ title: hostile, about: hostile, text: hostile, figures: [figure] });
  expect(page).not.toContain('<script');
  const shown = page.match(/&lt;script&gt;alert\(&quot;&amp;&quot;\)&lt;\/script&gt;/g);
  // Title and heading, what it is about, the text, and the figure's heading, alternative and caption.
  expect(shown).toHaveLength(7);
  const [, data = ''] = /src="data:image\/svg\+xml;base64,([^"]+)"/.exec(page) ?? [];
  expect(Buffer.from(data, 'base64').toString()).toBe(svg);
  expect(page).toContain(`content="default-src 'none'; img-src data:; style-src 'unsafe-inline'"`);
});
