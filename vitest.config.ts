import { defineConfig } from 'vitest/config';

export default defineConfig({
  test: {
    include: ['test/**/*.test.ts'],
    testTimeout: 120_000,
    hookTimeout: 120_000,
    // Onnxruntime crashes in worker threads; every test file gets a process of its own.
    pool: 'forks',
    maxWorkers: 2,
  },
});
