/** What an analysis leaves in a folder: the numbers, the pictures, and a page that shows them. */
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { mustBeReplaceable, writeFileAtomic, writeFolderAtomic } from '../../config/writeFile.ts';
import { type Figure, htmlPage } from '../../report/page.ts';
import { readRoutingMetrics } from '../../train/metrics.ts';
import { sanitizeLine } from '../terminal/sanitize.ts';
import type { Routing } from './analyse.ts';
import { curvesSvg } from './curves.ts';
import { loadSvg, overlapSvg, textAudioSvg } from './pictures.ts';
import { formatRouting } from './table.ts';

const numbersFile = 'routing.json';

/** @throws OccupiedFolderError for a folder that holds anything but an earlier analysis */
export async function mustTakeReport(folder: string): Promise<void> {
  await mustBeReplaceable(folder, numbersFile);
}

/**
 * Writes routing.json, the pictures and routing.html, all or nothing; an earlier analysis in the folder is replaced.
 * @param metrics the run's metrics.jsonl, whose curves are drawn where it is there
 * @throws OccupiedFolderError for a folder that holds anything else, RunError for metrics that are none
 */
export async function writeRoutingReport(folder: string, routing: Routing, metrics: string): Promise<void> {
  await mustTakeReport(folder);
  const curves = existsSync(metrics)
    ? curvesSvg(routing.experiment, await readRoutingMetrics(metrics))
    : undefined;
  const pictures: (Omit<Figure, 'svg'> & { file: string; svg: Promise<string> | undefined })[] = [
    {
      file: 'load.svg',
      heading: 'Load of the blocks',
      caption:
        'Choices of each block as a multiple of its fair share (choices / blocks), the busiest block first. Flat at 1: all blocks are used alike. Of many blocks, neighbours in rank share a bar.',
      svg: loadSvg(routing),
    },
    {
      file: 'text-audio.svg',
      heading: 'Text against audio',
      caption:
        "Each block's share of the text rows' choices (up) and of the audio rows' (down), from the blocks that text prefers to those that audio prefers. What they have in common is the sum of the smaller shares.",
      svg: textAudioSvg(routing),
    },
    {
      file: 'overlap.svg',
      heading: 'Overlap between layers',
      caption:
        'Normalised mutual information of the blocks that the same row chooses in two layers, and the same after the rows of one layer are shuffled, which is what so few rows give by chance. Where a row chooses several blocks, the diagonal is below 1: one of them does not tell which other is drawn. Blank: not compared, or a layer that uses one block.',
      svg: overlapSvg(routing),
    },
    {
      file: 'curves.svg',
      heading: 'In training',
      caption: 'The statistics of metrics.jsonl over the optimizer steps, of the training batches.',
      svg: curves,
    },
  ];
  const figures: (Figure & { file: string })[] = [];
  for (const { svg, ...own } of pictures) if (svg !== undefined) figures.push({ ...own, svg: await svg });
  const page = htmlPage({
    title: `Routing of ${sanitizeLine(routing.experiment)}`,
    about: sanitizeLine(
      `${routing.questions} questions of ${routing.dataset}, ${routing.split} split, each with its right answer (seed ${routing.seed}).`,
    ),
    text: formatRouting(routing),
    figures,
  });
  await writeFolderAtomic(folder, async (aside) => {
    for (const { file, svg } of figures) await writeFileAtomic(join(aside, file), svg);
    await writeFileAtomic(join(aside, 'routing.html'), page);
    await writeFileAtomic(join(aside, numbersFile), `${JSON.stringify(routing, null, 2)}\n`);
  });
}
