/** A step as nested rectangles, as wide as the time they take: one SVG file that needs nothing else. */
import type { StepProfile } from '../../train/profile.ts';
import { medianStep, outside, partOfKernel } from '../../train/profileParts.ts';
import { sanitizeLine } from '../terminal/sanitize.ts';

interface Frame {
  readonly name: string;
  /** Milliseconds of a step, those of the frames inside included. */
  ms: number;
  kernels: number;
  readonly inside: Map<string, Frame>;
}

const widthPx = 1200;
const rowPx = 22;
const marginPx = 10;
const headPx = 62;
/** Of the 12-pixel monospaced letters. */
const letterPx = 7.3;
/** Narrower rectangles cannot be seen. */
const leastPx = 0.4;

/** Okabe and Ito's colours, which colour-blind people tell apart; black reads well on each. */
const colors: Readonly<Record<string, string>> = {
  step: '#dddddd',
  forward: '#56b4e9',
  backward: '#e69f00',
  update: '#3dbf95',
  other: '#cccccc',
};

/** The picture of a profile: step, direction, scopes, primitive, from the top down. */
export function flameSvg(profile: StepProfile): string {
  const root = frameOf(profile);
  const rows = depth(root);
  const height = headPx + rows * rowPx + marginPx;
  const title = sanitizeLine(
    `${profile.experiment}, stage "${profile.stage}": one training step, ${formatMs(root.ms)} in kernels, ${profile.engine}`,
  );
  const legend = ['forward', 'backward', 'update', 'other'].map(
    (name, index) =>
      `<rect x="${marginPx + index * 110}" y="32" width="14" height="14" fill="${colors[name]}"/>` +
      `<text x="${marginPx + index * 110 + 20}" y="44">${name}</text>`,
  );
  const scale = root.ms === 0 ? 0 : (widthPx - 2 * marginPx) / root.ms;
  return [
    `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${widthPx} ${height}" width="${widthPx}" height="${height}" role="img" aria-label="${xml(title)}">`,
    `<style>text{font:12px ui-monospace,Menlo,Consolas,monospace;fill:#000}rect{stroke:#fff;stroke-width:.6}.title{font-weight:bold}</style>`,
    `<rect width="${widthPx}" height="${height}" fill="#fff"/>`,
    `<text class="title" x="${marginPx}" y="20">${xml(title)}</text>`,
    ...legend,
    ...draw(root, { leftPx: marginPx, row: 0, scale, path: [], whole: root.ms, color: 'step' }),
    '</svg>\n',
  ].join('\n');
}

/** Sums the kernels up along their scopes. */
function frameOf(profile: StepProfile): Frame {
  const step = medianStep(profile);
  const root: Frame = { name: 'step', ms: 0, kernels: 0, inside: new Map() };
  for (const { kernels } of profile.programs) {
    for (const kernel of kernels) {
      const { direction, path } = partOfKernel(kernel);
      const lost = kernel.value === undefined;
      const ms = kernel.stepsMs[step] ?? 0;
      let frame = root;
      const leaf = kernel.value?.node.primitive ?? kernel.operator;
      for (const name of [lost ? 'other' : direction, ...path.slice(path[0] === direction ? 1 : 0), leaf]) {
        frame.ms += ms;
        frame.kernels++;
        const next = frame.inside.get(name) ?? { name, ms: 0, kernels: 0, inside: new Map() };
        frame.inside.set(name, next);
        frame = next;
      }
      frame.ms += ms;
      frame.kernels++;
    }
  }
  const updateMs = profile.updatesMs[step] ?? 0;
  if (updateMs > 0) {
    root.inside.set('update', { name: 'update', ms: updateMs, kernels: 1, inside: new Map() });
    root.ms += updateMs;
    root.kernels++;
  }
  return root;
}

function depth({ inside }: Frame): number {
  return 1 + Math.max(0, ...[...inside.values()].map(depth));
}

interface Place {
  readonly leftPx: number;
  readonly row: number;
  readonly scale: number;
  readonly path: readonly string[];
  readonly whole: number;
  readonly color: string;
}

function draw(frame: Frame, place: Place): string[] {
  const { leftPx, row, scale, whole, color } = place;
  const width = frame.ms * scale;
  if (width < leastPx) return [];
  const path = [...place.path, frame.name];
  const y = headPx + row * rowPx;
  const tip =
    `${path.join(' › ')}: ${formatMs(frame.ms)}, ${((100 * frame.ms) / whole).toFixed(1)} %, ` +
    `${frame.kernels} ${frame.kernels === 1 ? 'kernel' : 'kernels'}`;
  const letters = Math.floor((width - 6) / letterPx);
  const label = sanitizeLine(frame.name);
  const shown = label.length <= letters ? label : letters >= 4 ? `${label.slice(0, letters - 1)}…` : '';
  // Deeper rectangles of a colour are paler, so that neighbours up and down stay apart.
  const opacity = Math.max(0.45, 1 - 0.11 * Math.max(0, row - 1)).toFixed(2);
  const own =
    `<g><title>${xml(sanitizeLine(tip))}</title>` +
    `<rect x="${leftPx.toFixed(2)}" y="${y}" width="${width.toFixed(2)}" height="${rowPx - 1}" fill="${colors[color]}" fill-opacity="${opacity}"/>` +
    `${shown === '' ? '' : `<text x="${(leftPx + 3).toFixed(2)}" y="${y + 15}">${xml(shown)}</text>`}</g>`;
  const drawn = [own];
  let left = leftPx;
  for (const next of inOrder(frame)) {
    drawn.push(
      ...draw(next, {
        leftPx: left,
        row: row + 1,
        scale,
        path,
        whole,
        color: row === 0 ? (Object.hasOwn(colors, next.name) ? next.name : 'other') : color,
      }),
    );
    left += next.ms * scale;
  }
  return drawn;
}

/** Layers by number, everything else as it runs; what belongs nowhere last. */
function inOrder({ inside }: Frame): Frame[] {
  const last = (name: string) => Number(name === 'other' || name === outside.copies);
  return [...inside.values()].sort((a, b) =>
    /^\d+$/.test(a.name) && /^\d+$/.test(b.name)
      ? Number(a.name) - Number(b.name)
      : last(a.name) - last(b.name),
  );
}

function formatMs(ms: number): string {
  return ms >= 100 ? `${ms.toFixed(0)} ms` : `${ms.toPrecision(3)} ms`;
}

/** Text and attribute values of XML. */
function xml(text: string): string {
  return text
    .replaceAll('&', '&amp;')
    .replaceAll('<', '&lt;')
    .replaceAll('>', '&gt;')
    .replaceAll('"', '&quot;');
}
