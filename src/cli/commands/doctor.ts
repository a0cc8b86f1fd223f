import { defineCommand } from 'citty';
import type { Check } from '../doctor/check.ts';
import { checkProviders } from '../doctor/providers.ts';
import { checkSystem } from '../doctor/system.ts';
import { exitCodes } from '../run.ts';
import { formatTable } from '../terminal/table.ts';

const states: Readonly<Record<Check['status'], string>> = { ok: 'ok', optional: '-', missing: 'MISSING' };

export const doctor = defineCommand({
  meta: { name: 'doctor', description: 'Check what this machine has, and say what to do about the rest' },
  args: { json: { type: 'boolean', description: 'Print one JSON document on standard output' } },
  async run({ args }) {
    const checks = [...(await checkSystem()), ...(await checkProviders())];
    const missing = checks.filter(({ status }) => status === 'missing');
    if (args.json) process.stdout.write(`${JSON.stringify({ ok: missing.length === 0, checks })}\n`);
    else {
      const rows = checks.map(({ what, status, found, advice }) => [states[status], what, found, advice]);
      const verdict =
        missing.length === 0
          ? 'palkit works here. Lines with "-" are optional.'
          : `${missing.length} of the things palkit needs ${missing.length === 1 ? 'is' : 'are'} missing.`;
      process.stdout.write(`${formatTable(['', 'what', 'found', 'what to do'], rows)}\n\n${verdict}\n`);
    }
    return missing.length === 0 ? exitCodes.done : exitCodes.failed;
  },
});
