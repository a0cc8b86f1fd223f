/** The LLM's feed-forward layers in an experiment's YAML file: dense, dropped, shared, or blocks of which a token uses some. */
import { z } from 'zod';

const positive = z.int().min(1);

/** Layers of the LLM. */
export const layerRange = z
  .string()
  .regex(/^\d{1,6}\.\.\d{1,6}$/, { error: 'expected the first and the last layer (0-based), as 2..5' })
  .nullable()
  .default(null);

const ofThisKind = layerRange.describe('The layers that are of this kind, as 2..5; null: all');

const chosenBlocks = positive.max(1_000_000).describe('Blocks that a token uses');
const auxiliary = z.number().min(0).max(1000);
const gateFields = ['indicator', 'sigmoid', 'softmax'] as const;
const gateText = "What a chosen block's output is multiplied by: nothing, or a function of the chosen scores";
const learnedGate = z.enum(['sigmoid', 'softmax']).default('softmax').describe(gateText);

/** What every sparse feed-forward layer says of its memory; selections that the papers cap have a factor. */
const blocksFields = (active: z.ZodType<number, number | undefined>, capacityFactor: number | null) => ({
  kind: z
    .literal('sparse')
    .describe('Kind of feed-forward layer: a memory of blocks, of which a token uses some'),
  memory: positive
    .max(10_000_000)
    .nullable()
    .default(null)
    .describe(
      "Memory cells (hidden units); null: as many as the LLM's own layer has, whose weights then are the memory",
    ),
  blockSize: positive.max(10_000_000).describe('Cells of a block'),
  active,
  capacityFactor: z
    .number()
    .gt(0)
    .max(1000)
    .nullable()
    .default(capacityFactor)
    .describe(
      'Room in every block, as a multiple of its fair share; choices beyond are dropped. null: room for all of them',
    ),
  layers: ofThisKind,
});

const routerFields = (zLoss: number) => ({
  balanceLoss: auxiliary.default(0.01).describe('Coefficient of the load balancing loss; 0: none'),
  zLoss: auxiliary.default(zLoss).describe("Coefficient of the router's z-loss; 0: none"),
});

const sparseSchema = z.discriminatedUnion('select', [
  z.strictObject({
    select: z
      .literal('switch')
      .describe('How a token chooses its blocks: a learned router, the one likeliest (Switch Transformer)'),
    ...blocksFields(positive.max(1).default(1).describe('Blocks that a token uses'), 1.25),
    ...routerFields(0),
  }),
  z.strictObject({
    select: z.literal('topk').describe('How a token chooses its blocks: a learned router, the likeliest'),
    ...blocksFields(chosenBlocks, null),
    normalize: z
      .enum(['all', 'chosen'])
      .default('all')
      .describe(
        'The probabilities that outputs are multiplied by add up to one over all blocks, or the chosen',
      ),
    ...routerFields(0.001),
  }),
  z.strictObject({
    select: z
      .literal('hash')
      .describe('How a token chooses its blocks: by a fixed table of its id (HashLayer)'),
    ...blocksFields(chosenBlocks, null),
    balance: z
      .enum(['frequency', 'none'])
      .default('frequency')
      .describe('Whether the table gives blocks equally much to do by the frequencies of tokens in training'),
  }),
  z.strictObject({
    select: z
      .literal('avg-k')
      .describe(
        "How a token chooses its blocks: its hidden state against the mean of each block's keys (Avg-K)",
      ),
    ...blocksFields(chosenBlocks, null),
    gate: z.enum(gateFields).default('indicator').describe(gateText),
  }),
  z.strictObject({
    select: z
      .literal('vanilla-memory')
      .describe('How a token chooses its blocks: its hidden state against all keys'),
    ...blocksFields(chosenBlocks, null),
    aggregate: z
      .enum(['mean', 'max', 'activation', 'magnitude'])
      .default('mean')
      .describe(
        "A block's score from its cells' pre-activations: their mean, their largest, the mean of SiLU, of magnitudes",
      ),
    gate: z.enum(gateFields).default('indicator').describe(gateText),
  }),
  z.strictObject({
    select: z
      .literal('pkm')
      .describe('How a token chooses its blocks: a learned query against product keys (PKM)'),
    ...blocksFields(chosenBlocks, null),
    heads: positive
      .max(1024)
      .default(1)
      .describe('Queries of a token, each of which chooses its share of the blocks'),
    queryWidth: positive.max(65_536).default(64).describe('Width of a query, half of it for each half key'),
    gate: learnedGate,
  }),
  z.strictObject({
    select: z
      .literal('lowrank-memory')
      .describe('How a token chooses its blocks: a narrow query against a narrow key of each (LoRKM)'),
    ...blocksFields(chosenBlocks, null),
    rank: positive.max(65_536).default(32).describe('Width of queries and keys'),
    gate: learnedGate,
  }),
]);

const channelsSchema = z.strictObject({
  kind: z
    .literal('moc')
    .describe('Kind of feed-forward layer: a token keeps the channels with the largest gates (MoC)'),
  active: positive
    .max(10_000_000)
    .nullable()
    .default(null)
    .describe('Channels that a token keeps; null: half the hidden size, or what select: structured leaves'),
  select: z
    .enum(['gate', 'magnitude', 'structured'])
    .default('gate')
    .describe(
      'The largest by: the signed gate before SiLU, the magnitude after it, the signed gate two of every eight',
    ),
  recompute: z
    .boolean()
    .default(false)
    .describe('Whether the backward pass computes SiLU and product again rather than hold them'),
  layers: ofThisKind,
});

const wideSchema = z.strictObject({
  kind: z.literal('wide').describe('Kind of feed-forward layer: one in the place of several (One Wide FFN)'),
  layers: layerRange.describe('The layers that share it, as 2..5; null: all'),
  width: z
    .union([positive.max(10_000_000), z.literal('all')])
    .nullable()
    .default(null)
    .describe(
      "Hidden units; null: as many as the LLM's own layer has; all: as many as all the layers have that it takes the place of, dropped ones among them",
    ),
  groups: positive.max(100_000).default(1).describe('Shared layers among which the range is divided'),
  tie: z
    .enum(['sequence', 'cycle', 'cycle-reverse'])
    .default('sequence')
    .describe('Which layer uses which of three shared ones: 001122, 012012 or 012210'),
  from: z
    .union([z.int().min(0).max(100_000), z.literal('average')])
    .nullable()
    .default(null)
    .describe(
      'What it begins as: the mean of the layers that share it, or one of them by its number (0-based); null: from the seed',
    ),
});

const feedForwardKindSchema = z.discriminatedUnion('kind', [
  z.strictObject({
    kind: z.literal('dense').describe('Kind of feed-forward layer: every hidden unit for every token'),
    layers: ofThisKind,
  }),
  z.strictObject({
    kind: z
      .literal('none')
      .describe('Kind of feed-forward layer: none; its norm and its residual connection are left out too'),
    layers: ofThisKind,
  }),
  sparseSchema,
  channelsSchema,
  wideSchema,
]);

/** What `llm.ffn` may say. */
export const feedForwardSchema = z
  .union([feedForwardKindSchema, z.array(feedForwardKindSchema).min(1)])
  .prefault({ kind: 'dense' });
