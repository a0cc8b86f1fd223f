/**
 * How alike two representations of the same items are, by the two measures of Pires et al. 2023 (arXiv 2309.01826):
 * linear CKA (Kornblith et al. 2019, arXiv 1905.00414) and local neighbourhood similarity. Widths may differ.
 *
 * Shape suffixes: N items, D width.
 */
import type { Tensor } from '../tensor/tensor.ts';

/** What the measures know of a representation: how its items lie to each other. */
export interface Geometry {
  readonly items: number;
  /** Inner products of the items [N, N], after the mean item is subtracted. */
  readonly gram: Float64Array;
  /** Of every item the others that are nearest by the cosine, nearest first; the lower item wins a tie. */
  readonly neighbours: readonly (readonly number[])[];
}

/** Share of the items that count as an item's neighbourhood. */
const neighbourhood = 0.05;

/** Items of a neighbourhood: 5 % of all, at least one. */
export function neighboursOf(items: number): number {
  return Math.max(1, Math.round(neighbourhood * items));
}

/**
 * The geometry of a representation, in float64.
 * @param states one row an item, [N, D]
 * @throws RangeError for fewer than three items: two are always alike
 */
export function geometryOf(states: Tensor & { dtype: 'float32' }): Geometry {
  const { shape, data } = states;
  const [items, width] = shape as [number, number];
  if (items < 3) throw new RangeError(`the geometry of ${items} items: there must be three`);
  const centred = Float64Array.from(data);
  for (let column = 0; column < width; column++) {
    let total = 0;
    for (let item = 0; item < items; item++) total += centred[item * width + column] as number;
    for (let item = 0; item < items; item++) (centred[item * width + column] as number) -= total / items;
  }
  return { items, gram: innerProducts(centred, items, width), neighbours: nearest(data, items, width) };
}

/** [N, N] of [N, D] */
function innerProducts(rows: ArrayLike<number>, items: number, width: number): Float64Array {
  const products = new Float64Array(items * items);
  for (let one = 0; one < items; one++) {
    for (let other = 0; other <= one; other++) {
      let sum = 0;
      for (let column = 0; column < width; column++)
        sum += (rows[one * width + column] as number) * (rows[other * width + column] as number);
      products[one * items + other] = sum;
      products[other * items + one] = sum;
    }
  }
  return products;
}

function nearest(rows: ArrayLike<number>, items: number, width: number): number[][] {
  const products = innerProducts(rows, items, width);
  const norms = Array.from({ length: items }, (_, item) =>
    Math.sqrt(products[item * items + item] as number),
  );
  return norms.map((_, item) => {
    // The item's own norm divides all alike. What is zero lies at no angle.
    const cosine = (other: number) =>
      (products[item * items + other] as number) / ((norms[other] as number) || 1);
    const others = norms.map((_, other) => other).filter((other) => other !== item);
    return others.sort((a, b) => cosine(b) - cosine(a) || a - b).slice(0, neighboursOf(items));
  });
}

/**
 * Linear CKA: |AᵀB|² / (|AᵀA| |BᵀB|) of the centred representations, in Frobenius norms, from 0 to 1. It does not
 * change where one is rotated, reflected or scaled. Computed from inner products of items: |AᵀB|² = tr(AAᵀ BBᵀ).
 * @returns NaN where all items of one are the same
 */
export function linearCka(a: Geometry, b: Geometry): number {
  mustMatch(a, b);
  return product(a.gram, b.gram) / Math.sqrt(product(a.gram, a.gram) * product(b.gram, b.gram));
}

/** Local neighbourhood similarity: of each item's two neighbourhoods the share that is common (Jaccard), on average. */
export function localNeighbourhoodSimilarity(a: Geometry, b: Geometry): number {
  mustMatch(a, b);
  const shares = a.neighbours.map((own, item) => {
    const others = new Set(b.neighbours[item]);
    const common = own.filter((neighbour) => others.has(neighbour)).length;
    return common / (own.length + others.size - common);
  });
  return shares.reduce((total, share) => total + share, 0) / a.items;
}

function mustMatch(a: Geometry, b: Geometry): void {
  if (a.items !== b.items) throw new RangeError(`representations of ${a.items} and of ${b.items} items`);
}

function product(a: Float64Array, b: Float64Array): number {
  return a.reduce((total, value, at) => total + value * (b[at] as number), 0);
}
