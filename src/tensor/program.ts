/**
 * The tensor program: a model as data. A flat list of named primitive operations with static shapes, in an
 * order in which every value is made before it is used.
 */
import type { DType, Shape, Tensor } from './tensor.ts';

/** What each primitive needs to know besides its input values. Axes are non-negative. */
export interface Attributes {
  // leaves
  input: { readonly name: string };
  constant: { readonly tensor: Tensor };
  // element by element, with numpy's broadcasting
  add: Nothing;
  subtract: Nothing;
  multiply: Nothing;
  divide: Nothing;
  negate: Nothing;
  exp: Nothing;
  log: Nothing;
  sqrt: Nothing;
  sigmoid: Nothing;
  tanh: Nothing;
  erf: Nothing;
  /** x * sigmoid(x) (Elfwing et al. 2018) */
  silu: Nothing;
  /** The value itself; no gradient flows through it. */
  detach: Nothing;
  /**
   * The first input, but not before the others are there: it says when memory is used and freed. What nobody else
   * needs is not computed for it.
   */
  after: Nothing;
  equal: Nothing;
  less: Nothing;
  /** inputs: condition (bool), then, otherwise */
  where: Nothing;
  cast: { readonly dtype: DType };
  // along the last axis
  softmax: Nothing;
  logSoftmax: Nothing;
  /** outputs: values, and their int64 indices, in falling order unless `sorted` is false; the lower index wins a tie */
  topK: { readonly k: number; readonly sorted?: false };
  /** Root-mean-square normalisation (Zhang and Sennrich 2019). inputs: x [..., D], weight [D] */
  rmsNorm: { readonly epsilon: number };
  // positions
  /**
   * Rotary position embedding (Su et al. 2021) in the half-split layout of Llama checkpoints. inputs: x
   * [B, heads, T, H], cosines and sines [B or 1, T, H / 2]
   */
  rotary: Nothing;
  // reductions
  sum: { readonly axes: readonly number[]; readonly keepDimensions: boolean };
  max: { readonly axes: readonly number[]; readonly keepDimensions: boolean };
  // linear algebra over the last two axes; leading axes broadcast. scale * op(A) op(B)
  matmul: { readonly transposeA: boolean; readonly transposeB: boolean; readonly scale: number };
  // shape
  reshape: { readonly shape: Shape };
  transpose: { readonly permutation: readonly number[] };
  slice: { readonly starts: readonly number[]; readonly ends: readonly number[] };
  pad: { readonly before: readonly number[]; readonly after: readonly number[] };
  concat: { readonly axis: number };
  expand: { readonly shape: Shape };
  // indexing
  /** inputs: data, integer indices of any shape; the axis is replaced by the indices' shape */
  gather: { readonly axis: number };
  /** inputs: data, integer indices of the same rank; one element per index */
  gatherElements: { readonly axis: number };
  /** inputs: data, integer indices, updates of the indices' shape; an update replaces what its index points to */
  scatterElements: { readonly axis: number };
  /** inputs: data, integer indices, updates of the indices' shape; repeated indices add up */
  scatterAdd: { readonly axis: number };
}

type Nothing = Readonly<Record<string, never>>;

export type Primitive = keyof Attributes;

/** A handle on something a program computes. */
export interface Value {
  readonly id: number;
  /** Unique in its program: scopes joined by dots. */
  readonly name: string;
  readonly dtype: DType;
  readonly shape: Shape;
  /** What makes it. */
  readonly node: Node;
}

export interface NodeOf<P extends Primitive> {
  readonly primitive: P;
  readonly attributes: Attributes[P];
  readonly inputs: readonly Value[];
  readonly outputs: readonly Value[];
}

export type Node = { [P in Primitive]: NodeOf<P> }[Primitive];

export interface Program {
  /** In order: every input of a node is an output of an earlier one. */
  readonly nodes: readonly Node[];
  readonly inputs: ReadonlyMap<string, Value>;
  readonly outputs: ReadonlyMap<string, Value>;
}

/** What a run is given: nothing computes it. */
export function isLeaf(node: Node): boolean {
  return node.primitive === 'input' || node.primitive === 'constant';
}

/** What a node's values are computed from: not what it merely waits for. */
export function sourcesOf({ primitive, inputs }: Node): readonly Value[] {
  return primitive === 'after' ? inputs.slice(0, 1) : inputs;
}

/** The first of the ids that no value of a program has, and none above it. */
export function unusedId({ nodes }: Program): number {
  let next = 1;
  for (const { outputs } of nodes) for (const { id } of outputs) next = Math.max(next, id + 1);
  return next;
}

export interface ValueType {
  readonly dtype: DType;
  readonly shape: Shape;
}

/** A program that cannot be built: a shape, dtype or name that does not fit. */
export class ProgramError extends Error {
  override readonly name = 'ProgramError';
}
