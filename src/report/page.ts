/** A report as one HTML file that needs nothing else: no script, no network. */

export interface Figure {
  readonly heading: string;
  readonly caption: string;
  readonly svg: string;
}

export interface Page {
  readonly title: string;
  /** What stands under the title. */
  readonly about: string;
  /** Shown as it is, in letters of one width. */
  readonly text: string;
  readonly figures: readonly Figure[];
}

/** The page; every text is escaped, and pictures are images, in which nothing runs. */
export function htmlPage({ title, about, text, figures }: Page): string {
  const shown = figures.map(
    ({ heading, caption, svg }) =>
      `<figure><h2>${escaped(heading)}</h2>\n<img alt="${escaped(heading)}" src="data:image/svg+xml;base64,${Buffer.from(svg).toString('base64')}">\n` +
      `<figcaption>${escaped(caption)}</figcaption></figure>`,
  );
  return [
    '<!doctype html>',
    '<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">',
    `<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">`,
    `<title>${escaped(title)}</title>`,
    '<style>body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#111;background:#fff}' +
      'h1{font-size:1.6rem}h2{font-size:1.2rem}pre{font-size:.8rem;line-height:1.35;overflow-x:auto;background:#f5f5f5;padding:1rem}' +
      'figure{margin:2.5rem 0;break-inside:avoid}img{max-width:100%;height:auto}figcaption{color:#444}</style></head>',
    `<body><h1>${escaped(title)}</h1>`,
    `<p>${escaped(about)}</p>`,
    `<pre>${escaped(text)}</pre>`,
    ...shown,
    '</body></html>\n',
  ].join('\n');
}

function escaped(text: string): string {
  return text
    .replaceAll('&', '&amp;')
    .replaceAll('<', '&lt;')
    .replaceAll('>', '&gt;')
    .replaceAll('"', '&quot;');
}
