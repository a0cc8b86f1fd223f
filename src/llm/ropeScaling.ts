/**
 * Rotary positions stretched for contexts longer than a model was pretrained on, as the `rope_scaling` or
 * `rope_parameters` of a config.json asks for it.
 */
import { z } from 'zod';

export type RopeScaling =
  /** Positions divided by the factor (Chen et al. 2023, arXiv 2306.15595). */
  | { readonly kind: 'linear'; readonly factor: number }
  /** Slow rotations divided by the factor, fast ones kept, smooth in between (Llama 3.1). */
  | {
      readonly kind: 'llama3';
      readonly factor: number;
      readonly lowFrequencyFactor: number;
      readonly highFrequencyFactor: number;
      readonly originalMaxPositions: number;
    }
  /** The same idea by the number of rotations, with warmer attention (Peng et al. 2023, arXiv 2309.00071). */
  | {
      readonly kind: 'yarn';
      readonly factor: number;
      /** What cosines and sines are multiplied with. */
      readonly attentionFactor: number;
      readonly betaFast: number;
      readonly betaSlow: number;
      readonly originalMaxPositions: number;
    };

const positive = z.number().positive();
const stretch = z.number().min(1);
const theta = { rope_theta: positive.optional(), partial_rotary_factor: z.literal(1).optional() };

const plain = z.strictObject({ rope_type: z.literal('default'), ...theta });
const linear = z.strictObject({ rope_type: z.literal('linear'), factor: stretch, ...theta });
const llama3 = z.strictObject({
  rope_type: z.literal('llama3'),
  factor: stretch,
  low_freq_factor: positive,
  high_freq_factor: positive,
  original_max_position_embeddings: z.int().positive(),
  ...theta,
});
const yarn = z.strictObject({
  rope_type: z.literal('yarn'),
  factor: stretch,
  attention_factor: positive.nullish(),
  beta_fast: positive.nullish(),
  beta_slow: positive.nullish(),
  original_max_position_embeddings: z.int().positive().nullish(),
  truncate: z.literal(true).optional(),
  ...theta,
});

/** Older files call the type `type`, and some write both; the plain one may go without. */
const ropeSchema = z.preprocess(
  (value) => {
    if (typeof value !== 'object' || value === null) return value;
    const { type, ...fields } = value as Record<string, unknown>;
    return { rope_type: type ?? 'default', ...fields };
  },
  z.discriminatedUnion('rope_type', [plain, linear, llama3, yarn]),
);

/** The fields of a config.json about rotary positions; `rope_parameters` is what newer files write. */
export const ropeFields = {
  rope_theta: positive.optional(),
  rope_scaling: ropeSchema.nullish(),
  rope_parameters: ropeSchema.nullish(),
};

export interface RopeFields {
  readonly rope_theta?: number | undefined;
  readonly rope_scaling?: z.infer<typeof ropeSchema> | null | undefined;
  readonly rope_parameters?: z.infer<typeof ropeSchema> | null | undefined;
  readonly max_position_embeddings: number;
}

interface Rope {
  readonly ropeTheta: number;
  readonly ropeScaling: RopeScaling | null;
}

/** What no single field can show. */
export function ropeContradictions(fields: RopeFields): string[] {
  const problems: string[] = [];
  const { rope_scaling, rope_parameters } = fields;
  if (rope_scaling && rope_parameters) {
    const [older, newer] = [ropeBy(rope_scaling, fields), ropeBy(rope_parameters, fields)];
    if (JSON.stringify(older) !== JSON.stringify(newer))
      problems.push('rope_scaling and rope_parameters say different things; remove one');
  }
  const { ropeScaling } = ropeOf(fields);
  if (ropeScaling?.kind === 'llama3' && ropeScaling.lowFrequencyFactor >= ropeScaling.highFrequencyFactor)
    problems.push('the high_freq_factor of rotary positions must be above their low_freq_factor');
  return problems;
}

/** The base of the angles and how they are scaled. */
export function ropeOf(fields: RopeFields): Rope {
  return ropeBy(fields.rope_parameters ?? fields.rope_scaling, fields);
}

function ropeBy(scaling: z.infer<typeof ropeSchema> | null | undefined, fields: RopeFields): Rope {
  const ropeTheta = scaling?.rope_theta ?? fields.rope_theta ?? 10_000;
  switch (scaling?.rope_type) {
    case undefined:
    case 'default':
      return { ropeTheta, ropeScaling: null };
    case 'linear':
      return { ropeTheta, ropeScaling: { kind: 'linear', factor: scaling.factor } };
    case 'llama3':
      return {
        ropeTheta,
        ropeScaling: {
          kind: 'llama3',
          factor: scaling.factor,
          lowFrequencyFactor: scaling.low_freq_factor,
          highFrequencyFactor: scaling.high_freq_factor,
          originalMaxPositions: scaling.original_max_position_embeddings,
        },
      };
    case 'yarn':
      return {
        ropeTheta,
        ropeScaling: {
          kind: 'yarn',
          factor: scaling.factor,
          attentionFactor: scaling.attention_factor ?? 0.1 * Math.log(scaling.factor) + 1,
          betaFast: scaling.beta_fast ?? 32,
          betaSlow: scaling.beta_slow ?? 1,
          originalMaxPositions: scaling.original_max_position_embeddings ?? fields.max_position_embeddings,
        },
      };
  }
}

/** The `rope_scaling` that `ropeOf` reads back. */
export function ropeScalingJson(scaling: RopeScaling | null): Record<string, unknown> | null {
  switch (scaling?.kind) {
    case undefined:
      return null;
    case 'linear':
      return { rope_type: 'linear', factor: scaling.factor };
    case 'llama3':
      return {
        rope_type: 'llama3',
        factor: scaling.factor,
        low_freq_factor: scaling.lowFrequencyFactor,
        high_freq_factor: scaling.highFrequencyFactor,
        original_max_position_embeddings: scaling.originalMaxPositions,
      };
    case 'yarn':
      return {
        rope_type: 'yarn',
        factor: scaling.factor,
        attention_factor: scaling.attentionFactor,
        beta_fast: scaling.betaFast,
        beta_slow: scaling.betaSlow,
        original_max_position_embeddings: scaling.originalMaxPositions,
      };
  }
}

export interface RotaryConfig {
  readonly headWidth: number;
  readonly ropeTheta: number;
  readonly ropeScaling: RopeScaling | null;
}

/** How far each pair of elements turns per position, in radians, [headWidth / 2], and what the tables are multiplied with. */
export function rotaryFrequencies({ headWidth, ropeTheta, ropeScaling }: RotaryConfig) {
  const plain = Array.from({ length: headWidth / 2 }, (_, pair) => ropeTheta ** (-(2 * pair) / headWidth));
  switch (ropeScaling?.kind) {
    case undefined:
      return { frequencies: plain, scale: 1 };
    case 'linear':
      return { frequencies: plain.map((frequency) => frequency / ropeScaling.factor), scale: 1 };
    case 'llama3': {
      const {
        factor,
        lowFrequencyFactor: low,
        highFrequencyFactor: high,
        originalMaxPositions,
      } = ropeScaling;
      const frequencies = plain.map((frequency) => {
        const turns = (originalMaxPositions * frequency) / (2 * Math.PI);
        const kept = Math.min(1, Math.max(0, (turns - low) / (high - low)));
        return (kept + (1 - kept) / factor) * frequency;
      });
      return { frequencies, scale: 1 };
    }
    case 'yarn': {
      const { factor, betaFast, betaSlow, originalMaxPositions, attentionFactor } = ropeScaling;
      // The pair that makes so many turns over the original context.
      const pairAt = (turns: number) =>
        (headWidth * Math.log(originalMaxPositions / (turns * 2 * Math.PI))) / (2 * Math.log(ropeTheta));
      const first = Math.max(0, Math.floor(pairAt(betaFast)));
      const last = Math.min(headWidth - 1, Math.ceil(pairAt(betaSlow)));
      const frequencies = plain.map((frequency, pair) => {
        const kept = 1 - Math.min(1, Math.max(0, (pair - first) / (last === first ? 0.001 : last - first)));
        return (kept + (1 - kept) / factor) * frequency;
      });
      return { frequencies, scale: attentionFactor };
    }
  }
}
