import { execFileSync } from 'node:child_process';
import { mkdtempSync, readdirSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { expect, it } from 'vitest';

// Where and whether it opens a log is known for Linux alone.
it.skipIf(process.platform !== 'linux')(
  "ONNX Runtime's telemetry does not start, unless it is asked to",
  () => {
    const folder = mkdtempSync(join(tmpdir(), 'palkit-'));
    /** Its telemetry opens a log of its own in the temporary folder as soon as a session is made. */
    const started = (environment: Record<string, string>) => {
      const script = `
      const { onnxEngine } = await import('./src/engine/onnx/engine.ts');
      const { trace } = await import('./src/tensor/trace.ts');
      const program = trace({ x: { dtype: 'float32', shape: [2] } }, ({ x }) => ({ y: x }));
      await (await onnxEngine().compile(program)).dispose();`;
      const { ORT_DISABLE_TELEMETRY: _, ...inherited } = process.env;
      execFileSync('node', ['--import', 'tsx', '--input-type=module', '-e', script], {
        env: { ...inherited, TMPDIR: folder, ...environment },
        stdio: 'pipe',
      });
      return readdirSync(folder).some((name) => name.startsWith('mat-debug'));
    };
    try {
      expect(started({})).toBe(false);
      expect(started({ ORT_DISABLE_TELEMETRY: '0' })).toBe(true);
    } finally {
      rmSync(folder, { recursive: true, force: true });
    }
  },
);
