import { execFileSync } from 'node:child_process';
import { mkdtempSync, readdirSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { expect, it } from 'vitest';

/** Runs a module's text in a process of its own, with temporary files in a folder of their own. */
function run(script: string, folder: string, environment: Record<string, string> = {}): string {
  const { ORT_DISABLE_TELEMETRY: _, ...inherited } = process.env;
  return execFileSync('node', ['--import', 'tsx', '--input-type=module', '-e', script], {
    env: { ...inherited, TMPDIR: folder, ...environment },
    encoding: 'utf8',
  });
}

it("ONNX Runtime's telemetry does not start, unless the user's environment says so", () => {
  const folder = mkdtempSync(join(tmpdir(), 'palkit-'));
  const setting = `
    await import('./src/engine/onnx/silence.ts');
    process.stdout.write(process.env.ORT_DISABLE_TELEMETRY);`;
  try {
    run(
      `
      const { onnxEngine } = await import('./src/engine/onnx/engine.ts');
      const { trace } = await import('./src/tensor/trace.ts');
      const program = trace({ x: { dtype: 'float32', shape: [2] } }, ({ x }) => ({ y: x }));
      await (await onnxEngine().compile(program)).dispose();`,
      folder,
    );
    // On Linux it opens a log of its own there as soon as there is a session.
    expect(readdirSync(folder).filter((name) => name.startsWith('mat-debug'))).toEqual([]);
    expect(run(setting, folder)).toBe('1');
    expect(run(setting, folder, { ORT_DISABLE_TELEMETRY: '0' })).toBe('0');
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
});
