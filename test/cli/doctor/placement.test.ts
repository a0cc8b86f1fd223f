import { describe, expect, it } from 'vitest';
import { formatPlacement, type Placement, reportPlacement } from '../../../src/cli/doctor/placement.ts';

const kernel = (over: Partial<Placement['kernels'][number]>): Placement['kernels'][number] => ({
  value: 'layers.0.attention.matmul',
  primitive: 'matmul',
  operator: 'MatMul',
  provider: 'webgpu',
  types: ['float'],
  ...over,
});

const placement = (...kernels: Placement['kernels']): Placement => ({
  ok: true,
  experiment: 'default',
  stage: 'closed',
  provider: 'webgpu',
  kernels,
});

describe('where the kernels of a step ran', () => {
  it('tells fallbacks from what stays on the CPU on purpose, and counts copies', () => {
    const report = reportPlacement(
      placement(
        kernel({}),
        kernel({ provider: 'cpu', operator: 'FusedMatMul', value: 'layers.1.attention.matmul' }),
        kernel({ provider: 'cpu', operator: 'FusedMatMul', value: 'layers.2.attention.matmul' }),
        kernel({ provider: 'cpu', operator: 'Add', primitive: 'add', types: ['int64'], value: 'rows' }),
        kernel({ operator: 'MemcpyToHost', primitive: null, value: 'Memcpy_token_1' }),
      ),
      true,
    );
    expect(report.fallbacks).toEqual([
      {
        primitive: 'matmul',
        operator: 'FusedMatMul',
        types: 'float',
        provider: 'cpu',
        count: 2,
        example: 'layers.1.attention.matmul',
      },
    ]);
    expect(report.onPurpose.map(({ primitive }) => primitive)).toEqual(['add']);
    expect(report).toMatchObject({ kernels: 5, copies: 1 });
    const text = formatPlacement(report);
    expect(text).toContain('a device in software');
    expect(text).toContain('These have no webgpu kernel and run elsewhere');
    expect(text).toContain('On the CPU on purpose');
  });

  it('says when nothing falls back', () => {
    expect(formatPlacement(reportPlacement(placement(kernel({})), false))).toContain(
      'Every kernel runs on webgpu.',
    );
  });
});
