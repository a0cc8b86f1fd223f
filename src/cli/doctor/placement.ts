/** Which primitives of a training step run elsewhere than on the provider that was asked for. */
import { z } from 'zod';
import { EngineError } from '../../engine/engine.ts';
import type { Provider } from '../../engine/onnx/lower.ts';
import { formatTable } from '../terminal/table.ts';
import { type Environment, runChild, softwareEnvironment } from './child.ts';

const kernelSchema = z.object({
  /** The program's value, or the node's name where none is known. */
  value: z.string(),
  primitive: z.string().nullable(),
  operator: z.string(),
  provider: z.string(),
  types: z.array(z.string()),
});

const placementSchema = z.object({
  ok: z.literal(true),
  experiment: z.string(),
  stage: z.string(),
  provider: z.string(),
  kernels: z.array(kernelSchema),
});

export type Placement = z.output<typeof placementSchema>;

const answerSchema = z.union([placementSchema, z.object({ ok: z.literal(false), reason: z.string() })]);

/** Kernels of one kind that did not run where they should. */
export interface Elsewhere {
  readonly primitive: string;
  readonly operator: string;
  readonly types: string;
  readonly provider: string;
  readonly count: number;
  /** One of the values. */
  readonly example: string;
}

export interface PlacementReport {
  readonly experiment: string;
  readonly stage: string;
  readonly provider: string;
  /** The device is one in software, because there is no other. */
  readonly software: boolean;
  readonly kernels: number;
  readonly fallbacks: readonly Elsewhere[];
  /** Shapes and 64-bit indices, which ONNX Runtime keeps on the CPU on purpose. */
  readonly onPurpose: readonly Elsewhere[];
  /** Tensors that travel between the devices in every step. */
  readonly copies: number;
}

const limitMs = 600_000;

/**
 * Runs one real step on a provider, in a child process, and sorts its kernels by where they ran.
 * @throws EngineError when the provider does not run the step
 */
export async function checkPlacement(
  config: string,
  {
    provider,
    stage = '',
    overrides,
  }: { provider: Provider; stage?: string | undefined; overrides: readonly string[] },
): Promise<PlacementReport> {
  const given = [config, stage, ...overrides, `engine.provider=${provider}`];
  const attempt = async (environment: Environment = {}) => {
    const outcome = await runChild('tryPlacement', given, answerSchema, { environment, limitMs });
    return outcome.ok ? outcome.answer : outcome;
  };
  const asIs = await attempt();
  if (asIs.ok) return reportPlacement(asIs, false);
  const environment = provider === 'webgpu' ? softwareEnvironment() : undefined;
  const inSoftware =
    environment !== undefined && /adapter/i.test(asIs.reason) ? await attempt(environment) : asIs;
  if (inSoftware.ok) return reportPlacement(inSoftware, true);
  throw new EngineError(`${config} does not run on ${provider}: ${inSoftware.reason}`);
}

/** Sorts kernels by where they ran and why. */
export function reportPlacement(
  { experiment, stage, provider, kernels }: Placement,
  software: boolean,
): PlacementReport {
  const isCopy = ({ operator }: Placement['kernels'][number]) => operator.startsWith('Memcpy');
  const elsewhere = kernels.filter((kernel) => kernel.provider !== provider && !isCopy(kernel));
  const whole = (types: readonly string[]) => types.length > 0 && types.every((type) => type === 'int64');
  return {
    experiment,
    stage,
    provider,
    software,
    kernels: kernels.length,
    fallbacks: grouped(elsewhere.filter(({ types }) => !whole(types))),
    onPurpose: grouped(elsewhere.filter(({ types }) => whole(types))),
    copies: kernels.filter(isCopy).length,
  };
}

function grouped(kernels: Placement['kernels']): Elsewhere[] {
  const groups = new Map<string, Elsewhere>();
  for (const { primitive, operator, types, provider, value } of kernels) {
    const kind = {
      primitive: primitive ?? '(of ONNX Runtime)',
      operator,
      types: types.join(', '),
      provider,
    };
    const key = JSON.stringify(kind);
    const known = groups.get(key) ?? { ...kind, count: 0, example: value };
    groups.set(key, { ...known, count: known.count + 1 });
  }
  return [...groups.values()].sort((a, b) => b.count - a.count);
}

/** The report for people. */
export function formatPlacement(report: PlacementReport): string {
  const { experiment, stage, provider, kernels, fallbacks, onPurpose, copies } = report;
  const table = (kinds: readonly Elsewhere[]) =>
    formatTable(
      ['primitive', 'ONNX operator', 'makes', 'ran on', 'kernels', 'for example'],
      kinds.map((kind) => [
        kind.primitive,
        kind.operator,
        kind.types,
        kind.provider,
        kind.count,
        kind.example,
      ]),
    );
  const device = report.software ? `${provider} (a device in software, there is no other)` : provider;
  return [
    `${experiment}, stage "${stage}", on ${device}: ${kernels} kernels a step, ${copies} copies between devices`,
    '',
    fallbacks.length === 0
      ? `Every kernel runs on ${provider}.`
      : `These have no ${provider} kernel and run elsewhere, with copies there and back:\n\n${table(fallbacks)}`,
    ...(onPurpose.length === 0
      ? []
      : ['', 'On the CPU on purpose (shapes and 64-bit indices):', '', table(onPurpose)]),
  ].join('\n');
}
