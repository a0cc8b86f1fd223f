/** What a YAML file of `palkit lm` says: text, a language model, how it is trained and measured. */
import { z } from 'zod';
import { feedForwardSchema } from './feedForwardSchema.ts';
import { engineSchema, names, natural, optimizerSchema, positive, rate, slug, word } from './schema.ts';

const corpusSchema = z
  .strictObject({
    folders: names('folder').describe('Folders of text files, read with all that is below them'),
    files: names('pattern')
      .default(['*.txt', '*.md', '*.rst', 'README*', 'copyright'])
      .describe('Patterns on file names; a compressed file (.gz) goes by its name without the ending'),
    heldOut: z
      .number()
      .gt(0)
      .lt(1)
      .default(0.1)
      .describe('Share of the files that nothing is trained on; a hash of their content says which'),
    mostMB: z.number().gt(0).nullable().default(null).describe('Millions of characters at most; null: all'),
    cache: word.default('data/text').describe('Folder that keeps tokenised text, so that runs share it'),
  })
  .describe('The text');

const ffn = feedForwardSchema.describe(
  "The model's feed-forward layers: one kind, or a list of kinds by ranges of layers",
);

const freshSchema = z
  .strictObject({
    kind: z.literal('new').describe('Where the model comes from: it begins as random numbers'),
    tokenizer: word
      .nullable()
      .default(null)
      .describe('A model folder whose tokenizer is taken; null: a byte-level BPE is trained on the text'),
    vocabularySize: positive
      .min(260)
      .max(1_000_000)
      .default(4096)
      .describe('Tokens of the tokenizer that is trained; without effect where one is taken'),
    hiddenSize: positive.max(65_536).describe('Width of the hidden states'),
    intermediateSize: positive.max(1_000_000).describe('Hidden units of a dense feed-forward layer'),
    layers: positive.max(10_000).describe('Layers'),
    heads: positive.max(1024).describe('Heads of queries'),
    keyValueHeads: positive
      .max(1024)
      .nullable()
      .default(null)
      .describe('Heads of keys and values; null: as many'),
    tieWordEmbeddings: z.boolean().default(true).describe('Whether the head is the table of embeddings'),
    initialDeviation: z
      .number()
      .gt(0)
      .max(1)
      .default(0.02)
      .describe(
        'Standard deviation of matrices at the beginning; of outputs into the residual, by sqrt(2 L)',
      ),
    ffn,
  })
  .superRefine(({ hiddenSize, heads, keyValueHeads }, context) => {
    const fail = (field: string, message: string) =>
      context.addIssue({ code: 'custom', path: [field], message });
    if (hiddenSize % (2 * heads) !== 0)
      fail(
        'heads',
        `${hiddenSize} / ${heads} heads = ${Number((hiddenSize / heads).toFixed(2))}: expected an even width of a head`,
      );
    if (keyValueHeads !== null && heads % keyValueHeads !== 0)
      fail(
        'keyValueHeads',
        `${heads} heads / ${keyValueHeads} = ${Number((heads / keyValueHeads).toFixed(2))}: no whole number`,
      );
  });

const pretrainedSchema = z.strictObject({
  kind: z.literal('pretrained').describe('Where the model comes from: it is there already'),
  from: word.describe(
    'The LLM: a folder, a .safetensors or .gguf file, or a name on the Hugging Face hub (organisation/name[@revision][:file])',
  ),
  ffn,
});

const reconstructSchema = z
  .strictObject({
    steps: positive.max(100_000_000).describe('Optimizer steps'),
    learningRate: rate.describe('Peak learning rate'),
    warmupSteps: natural.default(0).describe('Steps over which it rises'),
  })
  .superRefine(({ steps, warmupSteps }, context) => {
    if (warmupSteps > steps)
      context.addIssue({
        code: 'custom',
        path: ['warmupSteps'],
        message: `${warmupSteps} steps of warm-up do not fit into ${steps} steps`,
      });
  })
  .nullable()
  .default(null)
  .describe(
    'Feed-forward layers first learn, each by itself, what those that they replace give; null: they do not',
  );

const trainSchema = z
  .strictObject({
    sequenceLength: positive.min(2).max(1_000_000).default(128).describe('Tokens of a sequence'),
    batchSize: positive.max(65_536).default(16).describe('Sequences of a step'),
    steps: natural
      .max(100_000_000)
      .nullable()
      .default(null)
      .describe('Optimizer steps; null: as many as flops pays for'),
    flops: z
      .number()
      .gt(0)
      .nullable()
      .default(null)
      .describe('Floating-point operations of the whole training, as counted in its program; null: by steps'),
    trainable: names('pattern').default(['*']).describe('Patterns on parameter names (*, ?, {4..7}, !)'),
    learningRate: rate.describe('Peak learning rate'),
    warmupSteps: natural.default(0).describe('Steps over which it rises'),
    finalLearningRate: rate.default(0).describe('Where the cosine takes it by the last step'),
    clipNorm: z.number().gt(0).nullable().default(1).describe('Largest norm of all gradients; null: none'),
    optimizer: optimizerSchema.describe('The optimizer'),
    threads: positive.max(1024).default(2).describe('CPU threads inside one operation'),
    checkpointEvery: positive.default(500).describe('Steps between checkpoints'),
  })
  .superRefine(({ steps, flops, warmupSteps, learningRate, finalLearningRate }, context) => {
    const fail = (field: string, message: string) =>
      context.addIssue({ code: 'custom', path: [field], message });
    if (steps !== null && steps > 0 && warmupSteps > steps)
      fail('warmupSteps', `${warmupSteps} steps of warm-up do not fit into ${steps} steps`);
    if (finalLearningRate > learningRate)
      fail(
        'finalLearningRate',
        `${finalLearningRate} is above learningRate (${learningRate}); the rate only falls`,
      );
    if ((steps === null) === (flops === null))
      fail('steps', 'the length of training is either steps or flops: give one of them');
  });

export const lmSchema = z
  .strictObject({
    name: slug.describe('Name of the run'),
    seed: natural.default(7).describe('Seed of initial weights and of the order of sequences'),
    run: z
      .strictObject({ dir: word.describe('Folder for metrics, checkpoints and results') })
      .describe('Where the run is written'),
    engine: engineSchema.describe('What computes'),
    corpus: corpusSchema,
    llm: z.discriminatedUnion('kind', [freshSchema, pretrainedSchema]).describe('The language model'),
    reconstruct: reconstructSchema,
    train: trainSchema.describe('The training'),
    evaluate: z
      .strictObject({
        tokens: positive.default(100_000).describe('Tokens of held-out text at most'),
      })
      .prefault({})
      .describe('The measurement'),
  })
  .superRefine(({ llm, reconstruct }, context) => {
    if (reconstruct !== null && llm.kind === 'new')
      context.addIssue({
        code: 'custom',
        path: ['reconstruct'],
        message:
          'a new model has no feed-forward layers that others could learn from; it takes llm.kind: pretrained',
      });
    else if (reconstruct !== null && [llm.ffn].flat().every(({ kind }) => kind === 'dense'))
      context.addIssue({
        code: 'custom',
        path: ['reconstruct'],
        message: 'every feed-forward layer is the one that the model has; llm.ffn says what takes its place',
      });
  });

/** A fully resolved run of `palkit lm`. */
export type LmExperiment = z.output<typeof lmSchema>;
