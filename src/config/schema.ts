/** Everything an experiment's YAML file may say. Unknown fields, and fields that would be ignored, are errors. */
import { z } from 'zod';
import { feedForwardSchema, layerRange } from './feedForwardSchema.ts';

export const positive = z.int().min(1);
export const natural = z.int().min(0);
export const rate = z.number().min(0).max(1);
const text = z.string().max(10_000);
export const word = z.string().min(1).max(1000);
export const slug = z
  .string()
  .max(100)
  .regex(/^[A-Za-z0-9][A-Za-z0-9_-]*$/, {
    error: 'expected letters, digits, "-" and "_", beginning with a letter or digit',
  });

/** Reports every item that stands in a list a second time. */
function distinct<T>(what: string, keyOf: (item: T) => unknown) {
  return (items: readonly T[], context: z.RefinementCtx) => {
    const seen = new Map<unknown, number>();
    items.forEach((item, index) => {
      const key = keyOf(item);
      const first = seen.get(key);
      if (first === undefined) seen.set(key, index);
      else {
        const path = typeof item === 'object' ? [index, 'name'] : [index];
        context.addIssue({
          code: 'custom',
          path,
          message: `${what} ${key} is there already (entry ${first})`,
        });
      }
    });
  };
}

export const names = (what: string) =>
  z
    .array(word)
    .min(1)
    .superRefine(distinct(what, (item) => item));

export const engineSchema = z
  .discriminatedUnion('kind', [
    z
      .strictObject({
        // Optional inside the default: so the union takes a map without a kind as this one.
        kind: z
          .literal('onnx')
          .optional()
          .default('onnx')
          .describe('What runs the tensor programs: ONNX Runtime, as one graph'),
        provider: z
          .enum(['cpu', 'webgpu', 'cuda'])
          .default('cpu')
          .describe('Where they run; `palkit doctor` says what this machine has'),
        optimization: z
          .enum(['disabled', 'basic', 'extended', 'all'])
          .default('disabled')
          .describe(
            'How far ONNX Runtime rewrites the graph after palkit; more costs memory and saves no time',
          ),
        device: natural
          .max(1023)
          .optional()
          .describe('Number of the GPU, with provider: cuda; the first when left out'),
        tf32: z
          .boolean()
          .optional()
          .describe(
            'Whether float32 products may use TensorFloat-32, with provider: cuda; they may when left out',
          ),
      })
      .superRefine(({ provider, device, tf32 }, context) => {
        if (provider === 'cuda') return;
        for (const [name, value] of Object.entries({ device, tf32 })) {
          if (value === undefined) continue;
          const message = `has no effect with provider: ${provider}; only with provider: cuda`;
          context.addIssue({ code: 'custom', path: [name], message });
        }
      }),
    z.strictObject({
      kind: z.literal('tfjs').describe('What runs the tensor programs: TensorFlow.js, node by node'),
      backend: z
        .enum(['auto', 'node-gpu', 'node', 'wasm', 'cpu'])
        .default('auto')
        .describe('Where they run; auto: the first of these that is installed and works'),
    }),
  ])
  .prefault({ kind: 'onnx' });

const loraSchema = z
  .strictObject({
    rank: positive.max(65_536).describe('Width of the narrow matrices'),
    alpha: z.number().gt(0).max(1e6).describe('Their products are multiplied by alpha / rank'),
    dropout: z
      .number()
      .min(0)
      .lt(1)
      .default(0)
      .describe("Probability with which an element of an adapter's input is dropped in training"),
    targets: names('pattern').describe(
      'The projections that have adapters: patterns on their names, or on how these end (q_proj, "*.mlp.*")',
    ),
    layers: layerRange.describe('The layers that have adapters, as 2..5; null: all'),
  })
  .nullable()
  .default(null);

const llmSchema = z.strictObject({
  from: word.describe(
    'The LLM: a folder, a .safetensors or .gguf file, or a name on the Hugging Face hub (organisation/name[@revision][:file])',
  ),
  ffn: feedForwardSchema.describe(
    "The LLM's feed-forward layers: one kind, or a list of kinds by ranges of layers",
  ),
  lora: loraSchema.describe('Low-rank adapters on the projections of the LLM; null: none'),
});

const placeholders = ['{audio}', '{question}', '{options}'];
const toldDate = '2025-01-01';

const promptTemplate = text.superRefine((template, context) => {
  const fail = (message: string) => context.addIssue({ code: 'custom', message });
  const [before, ...behind] = template.split('{audio}');
  if (behind.length === 0) fail('{audio} is missing, so there is no place for the audio');
  if (behind.length > 1) fail('{audio} stands here more than once; the audio has one place');
  if (!template.includes('{question}')) fail('{question} is missing, so no question would be asked');
  for (const [found] of template.matchAll(/\{\w*\}/g)) {
    if (!placeholders.includes(found)) {
      fail(`${found} is no placeholder; there are ${placeholders.slice(0, -1).join(', ')} and {options}`);
    } else if (found !== '{audio}' && behind.length === 1 && before?.includes(found)) {
      fail(`${found} stands in front of {audio}, where the text must be the same for every question`);
    }
  }
});

const promptSchema = z
  .strictObject({
    chat: z
      .boolean()
      .default(false)
      .describe("Whether the model's own chat template makes a conversation of system and template"),
    system: text
      .nullable()
      .default(null)
      .describe('Text in front of everything, with chat: true the system message; null: none'),
    template: promptTemplate
      .default('{audio}Question: {question} Answer:')
      .describe(
        'The question; {audio}, {question} and {options} are filled in; [around {options}] only where there are some',
      ),
    variables: z
      .record(word, z.union([z.string(), z.number(), z.boolean(), z.null()]))
      .default({})
      .describe('What the chat template is told beside the messages: { enable_thinking: false }'),
    date: word
      .refine((day) => /^\d{4}-\d{2}-\d{2}$/.test(day) && !Number.isNaN(Date.parse(day)), {
        error: 'expected a day, YYYY-MM-DD',
      })
      .default(toldDate)
      .describe(
        'The day that a chat template is told when it asks for today; always the same, so that runs repeat',
      ),
  })
  .superRefine(({ chat, template, variables, date }, context) => {
    const fail = (field: string, message: string) =>
      context.addIssue({ code: 'custom', path: [field], message });
    if (chat) return;
    if (template.endsWith(' ')) fail('template', 'ends in a space; the answer brings its own');
    const message = 'has no effect with chat: false; only with chat: true';
    if (Object.keys(variables).length > 0) fail('variables', message);
    if (date !== toldDate) fail('date', message);
  })
  .prefault({});

const dataSchema = z.strictObject({
  dataset: slug.describe('The dataset: datasets/<name>.yaml'),
  dir: word.describe('Folder of the dataset; an embedded set is built there when it is missing'),
  onBadSample: z
    .enum(['error', 'skip'])
    .default('error')
    .describe('What to do with a sample that cannot be read: stop, or leave it out and count it'),
  maxTextTokens: positive
    .max(10_000_000)
    .nullable()
    .default(null)
    .describe("Most text tokens of a question with its answer; null: as many as the model's positions hold"),
  onTooLong: z
    .enum(['error', 'skip'])
    .default('error')
    .describe('What to do with a longer one, which is never cut: stop, or leave it out and count it'),
});

const perLayer = z
  .boolean()
  .default(false)
  .describe('A connector for every layer the stream enters, instead of one for all');

const connectorSchema = z
  .discriminatedUnion('kind', [
    z.strictObject({
      kind: z.literal('mlp').describe('Kind of connector: two linear layers, one audio token a frame'),
      hidden: positive.max(65_536).default(128).describe('Width of the hidden layer'),
      perLayer,
    }),
    z.strictObject({
      kind: z
        .literal('latent')
        .describe('Kind of connector: learned latents attend to the frames, one audio token a latent'),
      tokens: positive.max(4096).default(16).describe('Latents, and so audio tokens'),
      heads: positive.max(256).default(4).describe('Attention heads'),
      blocks: positive.max(64).default(1).describe('Cross-attention blocks'),
      perLayer,
    }),
  ])
  .describe("From the encoder's frames to the LLM's width");

const layer = natural.max(100_000);
const placement = {
  startLayer: layer.optional().describe('First LLM layer (0-based) that sees the audio; 0 when left out'),
  layers: z
    .array(layer)
    .min(1)
    .superRefine(distinct('layer', (index) => index))
    .optional()
    .describe('The LLM layers (0-based) that see the audio, in place of startLayer'),
};

const streamIntegrationSchema = z
  .discriminatedUnion('mode', [
    z.strictObject({
      mode: z
        .literal('prefix')
        .describe('Audio stands in front of the text and passes through attention and feed-forward (PLITS)'),
      ...placement,
    }),
    z.strictObject({
      mode: z
        .literal('attention-only')
        .describe('Audio gives keys and values to the text and passes no feed-forward layer (LAL)'),
      ...placement,
      audioNorm: z
        .enum(['layer', 'own', 'none'])
        .default('layer')
        .describe("Norm before the key and value projections: the layer's, one of its own, or none"),
      audioVisibleTo: z
        .enum(['all', 'afterAudio'])
        .default('all')
        .describe('Whether text in front of the audio sees it too'),
      rope: z
        .enum(['sequential', 'shared', 'none'])
        .default('sequential')
        .describe("Positions of the audio's keys: one after the other, all the same, or none"),
      keyValueProjection: z
        .enum(['llm', 'separate'])
        .default('llm')
        .describe("The LLM's key and value projections, or separate ones that start as copies"),
    }),
  ])
  .superRefine(({ startLayer, layers }, context) => {
    if (startLayer === undefined || layers === undefined) return;
    context.addIssue({
      code: 'custom',
      path: ['layers'],
      message: 'startLayer and layers exclude each other; keep one of them',
    });
  })
  .transform((integration) =>
    integration.layers === undefined
      ? { ...integration, startLayer: integration.startLayer ?? 0 }
      : integration,
  )
  .describe('How the audio enters the LLM');

const streamSchema = z
  .strictObject({
    name: slug.describe('Name of the stream; its parameters are connector.<name>.*'),
    encoder: word.describe('The audio encoder: a name in encoders/ or a folder'),
    connector: connectorSchema,
    integration: streamIntegrationSchema,
  })
  .superRefine(({ connector, integration }, context) => {
    if (!connector.perLayer || integration.mode !== 'prefix') return;
    // Prefix rows are handed from layer to layer: there is one entrance.
    const message = 'has no effect with mode: prefix; only with mode: attention-only';
    context.addIssue({ code: 'custom', path: ['connector', 'perLayer'], message });
  });

const integrationSchema = z
  .strictObject({
    positions: z
      .enum(['reserve', 'compact'])
      .default('reserve')
      .describe('Text keeps room for audio positions in every layer, or only where audio is present'),
    attentionOnlyVisibleToPrefix: z
      .boolean()
      .default(true)
      .describe('Whether prefix audio attends to the keys of attention-only streams'),
  })
  .prefault({});

export const optimizerSchema = z
  .discriminatedUnion('kind', [
    z.strictObject({
      kind: z.literal('adamw').describe('Kind of optimizer'),
      beta1: z.number().min(0).lt(1).default(0.9).describe('Decay of the mean of the gradients'),
      beta2: z.number().min(0).lt(1).default(0.95).describe('Decay of the mean of their squares'),
      epsilon: z.number().gt(0).max(1).default(1e-8).describe('Added to the denominator'),
      weightDecay: rate.default(0.01).describe('Decoupled weight decay, on matrices only'),
    }),
  ])
  .prefault({ kind: 'adamw' });

const stageDataSchema = z
  .strictObject({
    categories: names('category').optional().describe('Question categories of this stage; all when left out'),
    kinds: z
      .array(z.enum(['choice', 'open']))
      .min(1)
      .superRefine(distinct('kind', (kind) => kind))
      .optional()
      .describe('Kinds of questions of this stage; all when left out'),
  })
  .prefault({});

const stageSchema = z
  .strictObject({
    name: slug.describe('Name of the stage'),
    trainable: names('pattern').describe(
      'Patterns on parameter names (*, ?, {4..7}); those with a ! take away; one that matches nothing is an error',
    ),
    data: stageDataSchema.describe('The questions of this stage'),
    steps: positive.max(100_000_000).describe('Optimizer steps'),
    learningRate: rate.describe('Peak learning rate'),
    warmupSteps: natural.default(0).describe('Steps over which it rises'),
    finalLearningRate: rate.default(0).describe('Where the cosine takes it by the last step'),
  })
  .superRefine(({ steps, learningRate, warmupSteps, finalLearningRate }, context) => {
    if (warmupSteps > steps) {
      const message = `${warmupSteps} steps of warm-up do not fit into ${steps} steps`;
      context.addIssue({ code: 'custom', path: ['warmupSteps'], message });
    }
    if (finalLearningRate > learningRate) {
      const message = `${finalLearningRate} is above learningRate (${learningRate}); the rate only falls`;
      context.addIssue({ code: 'custom', path: ['finalLearningRate'], message });
    }
  });

const recomputedLayers = 'Activations that the backward pass computes again instead of holding them';
const recomputeSchema = z
  .discriminatedUnion('kind', [
    z.strictObject({ kind: z.literal('none').describe(`${recomputedLayers}: none`) }),
    z.strictObject({ kind: z.literal('all').describe(`${recomputedLayers}: those of every layer`) }),
    z.strictObject({
      kind: z.literal('list').describe(`${recomputedLayers}: those of the listed layers`),
      layers: z
        .array(layer)
        .min(1)
        .superRefine(distinct('layer', (index) => index))
        .describe('Layers of the LLM (0-based)'),
    }),
    z.strictObject({
      kind: z.literal('interval').describe(`${recomputedLayers}: those of neighbouring layers`),
      from: layer.default(0).describe('The first of them (0-based)'),
      to: layer.describe('The last of them'),
    }),
    z.strictObject({
      kind: z.literal('budget').describe(`${recomputedLayers}: of as few layers as keep a budget`),
      activationMB: z
        .number()
        .gt(0)
        .describe('Most megabytes (10^6 bytes) that the values of a training program may hold at once'),
    }),
  ])
  .superRefine((asked, context) => {
    if (asked.kind !== 'interval' || asked.from <= asked.to) return;
    const message = `${asked.to} is below from (${asked.from})`;
    context.addIssue({ code: 'custom', path: ['to'], message });
  })
  .prefault({ kind: 'none' });

const trainSchema = z.strictObject({
  threads: positive
    .max(1024)
    .default(2)
    .describe('CPU threads inside one operation, of the encoders and of the onnx engine'),
  precision: z
    .enum(['float32', 'float16', 'bfloat16'])
    .default('float32')
    .describe(
      "Type of the training's matrix products; parameters, moments and loss stay float32, and so does evaluation",
    ),
  batchSize: positive.max(65_536).default(32).describe('Questions per micro-batch'),
  accumulate: positive.max(65_536).default(1).describe('Micro-batches per optimizer step'),
  batchShapes: positive
    .max(64)
    .default(1)
    .describe('Sizes that micro-batches are padded to at most, each a compiled program; 1: to the longest'),
  maxSteps: positive.nullable().default(null).describe('Caps the whole curriculum; null: no cap'),
  clipNorm: z
    .number()
    .gt(0)
    .nullable()
    .default(1)
    .describe('Largest norm of all gradients; null: no clipping'),
  lossOn: z
    .enum(['answer', 'all'])
    .default('answer')
    .describe('Tokens that are learned: the answer or all text'),
  recompute: recomputeSchema.describe('What the backward pass computes again instead of holding it'),
  optimizer: optimizerSchema.describe('The optimizer'),
  checkpoint: z
    .strictObject({
      everySteps: positive.default(100).describe('Steps between checkpoints'),
      keep: positive.default(2).describe('Checkpoints that are kept, newest first'),
    })
    .prefault({})
    .describe('When the run saves itself'),
  stages: z
    .array(stageSchema)
    .min(1)
    .superRefine(distinct('stage', ({ name }) => name))
    .describe('The curriculum, in order'),
});

const controls = ['silence', 'shuffledAudio', 'noAudio'] as const;

const evalSchema = z
  .strictObject({
    split: z.enum(['train', 'validation', 'test']).default('test').describe('Part of the dataset'),
    batchSize: positive.max(65_536).default(64).describe('Questions per batch'),
    controls: z
      .array(z.enum(controls))
      .superRefine(distinct('control', (control) => control))
      .default([...controls])
      .describe('The same questions with silence, with the audio of other questions, with none'),
    limit: positive
      .nullable()
      .default(null)
      .describe('Questions that are asked at most, drawn at random, for every run the same; null: all'),
    open: z
      .strictObject({
        maxNewTokens: positive.max(100_000).default(24).describe('Tokens of an answer at most'),
        decoding: z.enum(['greedy', 'sample']).default('greedy').describe('The likeliest token, or a draw'),
        temperature: z
          .number()
          .gt(0)
          .max(100)
          .default(1)
          .describe('Divides the logits when tokens are drawn'),
        topK: positive
          .nullable()
          .default(null)
          .describe('Drawn are only so many of the likeliest tokens; null: all'),
        topP: z
          .number()
          .gt(0)
          .max(1)
          .default(1)
          .describe('Drawn are only the likeliest tokens that together reach this probability'),
        minP: z
          .number()
          .min(0)
          .max(1)
          .default(0)
          .describe('Drawn are only tokens at least this times as likely as the likeliest'),
        repetitionPenalty: z
          .number()
          .gt(0)
          .max(100)
          .default(1)
          .describe('Makes tokens that were there before, prompt included, less likely; 1: not at all'),
        stop: z
          .array(z.string().min(1))
          .max(64)
          .default([])
          .describe('Texts before which an answer ends, besides the end-of-text token'),
      })
      .prefault({})
      .superRefine(({ decoding, ...settings }, context) => {
        const unused = { temperature: 1, topK: null, topP: 1, minP: 0 } as const;
        for (const [field, left] of Object.entries(unused)) {
          if (decoding === 'sample' || settings[field as keyof typeof unused] === left) continue;
          const message = `has no effect with decoding: greedy; leave it at ${left} or set decoding: sample`;
          context.addIssue({ code: 'custom', path: [field], message });
        }
      })
      .describe('How open questions are answered'),
  })
  .prefault({});

export const experimentSchema = z.strictObject({
  name: slug.describe('Name of the experiment'),
  seed: natural.default(7).describe('Seed of every random number'),
  run: z
    .strictObject({ dir: word.describe('Folder for metrics, checkpoints and results') })
    .describe('Where the run is written'),
  engine: engineSchema.describe('What computes'),
  llm: llmSchema.describe('The language model'),
  prompt: promptSchema.describe('How a question is worded'),
  data: dataSchema.describe('The questions and their audio'),
  streams: z
    .array(streamSchema)
    .min(1)
    .max(64)
    .superRefine(distinct('stream', ({ name }) => name))
    .describe('How audio reaches the LLM, one stream an encoder'),
  integration: integrationSchema.describe('What concerns all streams together'),
  train: trainSchema.describe('The training'),
  eval: evalSchema.describe('The evaluation'),
});

/** A fully resolved experiment: defaults are filled in. */
export type Experiment = z.output<typeof experimentSchema>;
