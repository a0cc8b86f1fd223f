/**
 * What a tokenizer.json does to a text beside its vocabulary: it normalises, cuts into words, and puts tokens together
 * again. The file may come from anybody, so only steps whose work is bounded are taken, and they are put in the words
 * that the library understands as Hugging Face's own does.
 */
import { createContext, Script } from 'node:vm';
import { z } from 'zod';
import { ModelError } from './modelError.ts';
import { digitPattern, digitsPattern, gpt2WordPattern, knownPatterns } from './wordPatterns.ts';

const pattern = z.union([
  z.strictObject({ String: z.string().min(1).max(1000) }),
  z.strictObject({ Regex: z.string().min(1).max(10_000) }),
]);
/** What is put in a text; a few steps that double it would fill the memory. */
const content = z.string().max(16);
const replace = z.looseObject({ type: z.literal('Replace'), pattern, content });
const plain = (...types: [string, ...string[]]) => z.looseObject({ type: z.enum(types) });

const normalizer = z.union([
  plain('NFC', 'NFD', 'NFKC', 'NFKD', 'Lowercase', 'StripAccents', 'Strip', 'BertNormalizer', 'Precompiled'),
  z.looseObject({ type: z.literal('Prepend'), prepend: content }),
  replace,
]);
const preTokenizer = z.union([
  plain(
    'ByteLevel',
    'Whitespace',
    'WhitespaceSplit',
    'Metaspace',
    'Digits',
    'Punctuation',
    'BertPreTokenizer',
  ),
  z.looseObject({
    type: z.literal('Split'),
    pattern,
    // The library takes the others for Isolated.
    behavior: z.enum(['Isolated', 'Removed']),
    invert: z.boolean().optional(),
  }),
]);
const decoder = z.union([
  plain('ByteLevel', 'WordPiece', 'Metaspace', 'BPEDecoder', 'CTC', 'Fuse', 'ByteFallback', 'Strip'),
  replace,
]);

type Step = { readonly type: string } & Readonly<Record<string, unknown>>;

/** Steps of one kind, and how a list of them is spelled. */
const kinds = {
  normalizer: { schema: normalizer, list: 'normalizers' },
  pre_tokenizer: { schema: preTokenizer, list: 'pretokenizers' },
  decoder: { schema: decoder, list: 'decoders' },
} as const;

const maximumSteps = 16;
const maximumGrowth = 256;

export interface TokenizerSteps {
  readonly normalizer: unknown;
  readonly pre_tokenizer: unknown;
  readonly decoder: unknown;
  /** True when nothing in them can take longer than in proportion to the text. */
  readonly linear: boolean;
  /** Whether one of them puts a space in front of a text, as SentencePiece does. */
  readonly addsSpace: boolean;
}

/**
 * @param continues leaves out what puts a space in front of a text
 * @throws ModelError for a step that is not known, or that could take any amount of time or memory
 */
export function checkSteps(
  json: Readonly<Record<keyof typeof kinds, unknown>>,
  where: string,
  { continues = false } = {},
): TokenizerSteps {
  const of = (kind: keyof typeof kinds) => flatten(json[kind], kind, where);
  const given = [of('normalizer'), of('pre_tokenizer')];
  const [normalizers = [], preTokenizers = []] = continues
    ? given.map((steps) => steps.flatMap(withoutSpace))
    : given;
  const decoders = of('decoder');
  // A step alone stays alone: inside a sequence the library's ByteLevel decoder takes added tokens for bytes.
  const sequence = (kind: keyof typeof kinds, steps: readonly Step[]) =>
    steps.length > 1 ? { type: 'Sequence', [kinds[kind].list]: steps } : (steps[0] ?? null);
  return {
    normalizer: sequence('normalizer', normalizers),
    pre_tokenizer: sequence('pre_tokenizer', preTokenizers.flatMap(respelled)),
    decoder: sequence('decoder', decoders),
    linear: [...normalizers, ...preTokenizers, ...decoders].every(isLinear),
    addsSpace: given.flat().some(putsSpace),
  };
}

function putsSpace({ type, prepend_scheme, add_prefix_space }: Step): boolean {
  if (type === 'Metaspace') return prepend_scheme !== 'never';
  return type === 'Prepend' || (type === 'ByteLevel' && add_prefix_space === true);
}

function withoutSpace(step: Step): Step[] {
  if (!putsSpace(step)) return [step];
  return step.type === 'Prepend' ? [] : [{ ...step, prepend_scheme: 'never', add_prefix_space: false }];
}

/** The steps inside a step and its lists, checked. */
function flatten(step: unknown, kind: keyof typeof kinds, where: string): Step[] {
  const { schema, list } = kinds[kind];
  const steps: Step[] = [];
  const visit = (inner: unknown) => {
    const { type, [list]: children } = (inner ?? {}) as Record<string, unknown>;
    if (type === 'Sequence' && Array.isArray(children)) return children.forEach(visit);
    const parsed = schema.safeParse(inner);
    if (!parsed.success) {
      throw new ModelError(
        `${where}: ${kind}: ${JSON.stringify(inner).slice(0, 200)} is no step that palkit takes from a file`,
      );
    }
    if (steps.push(parsed.data) > maximumSteps) {
      throw new ModelError(`${where}: ${kind} has more than ${maximumSteps} steps`);
    }
  };
  if (step !== null && step !== undefined) visit(step);
  if (steps.reduce((product, inner) => product * growth(inner), 1) > maximumGrowth) {
    throw new ModelError(`${where}: ${kind} could make a text more than ${maximumGrowth} times as long`);
  }
  return steps;
}

/** How many times as long a step can make a text; a regular expression may find nothing between any two characters. */
function growth({ type, pattern, content }: Step): number {
  if (type !== 'Replace') return 1;
  return Math.max(1, String(content).length + (regexOf(pattern) === undefined ? 0 : 1));
}

const regexOf = (pattern: unknown) => (pattern as { readonly Regex?: string } | undefined)?.Regex;

function isLinear({ pattern }: Step): boolean {
  const regex = regexOf(pattern);
  return regex === undefined || knownPatterns.has(regex);
}

/** Where the library has its own idea of digits and of spaces, the step is spelled as a pattern, which it keeps to. */
function respelled(step: Step): Step[] {
  const split = (regex: string): Step => ({
    type: 'Split',
    pattern: { Regex: regex },
    behavior: 'Isolated',
    invert: false,
  });
  if (step.type === 'Digits') return [split(step.individual_digits ? digitPattern : digitsPattern)];
  if (step.type === 'ByteLevel' && step.use_regex !== false && !step.add_prefix_space) {
    return [split(gpt2WordPattern), { ...step, use_regex: false }];
  }
  return [step];
}

const context = createContext({ work: undefined as unknown });
const script = new Script('work()');

/**
 * Does work that somebody else's regular expressions steer, for as long as an honest text of this length could take.
 * @throws ModelError when it takes longer
 */
export function withinDeadline<T>(work: () => T, characters: number, where: string): T {
  const timeout = Math.round(500 + characters / 100);
  let result: T | undefined;
  context.work = () => {
    result = work();
  };
  try {
    script.runInContext(context, { timeout });
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ERR_SCRIPT_EXECUTION_TIMEOUT') throw error;
    throw new ModelError(
      `${where}: the tokenizer took more than ${timeout} ms for ${characters} characters; its patterns are broken or malicious`,
    );
  } finally {
    context.work = undefined;
  }
  return result as T;
}
