/** Parts of a model by the names of its values: what belongs to `layers.*.attention`, going forward or back. */
import type { Value } from './program.ts';
import { shapeRules } from './shapes.ts';

export type Direction = 'forward' | 'backward' | 'update';

export interface Part {
  /** Scopes joined by dots, numbers as stars: `layers.*.attention`. */
  readonly name: string;
  readonly direction: Direction;
  /** The scopes as they are: `layers`, `3`, `attention`. */
  readonly path: readonly string[];
}

/** Where gradients that reach a value on several ways are added up. */
const gradientSums = 'sums of gradients';
/** What stands in no scope: cutting the sequence, joining it. */
const unscoped = 'between the parts';

/**
 * The part that makes a value. The gradient of a value belongs to the value's part, backward.
 * @param value named as `trace`, `gradients` and the training step name it
 */
export function partOf({ name }: Pick<Value, 'name'>): Part {
  const segments = name.split('.');
  const [first] = segments;
  if (first === 'gradient') {
    // gradient.<name of the forward value>.<primitive>
    const forward = segments.slice(1, -1);
    const path = forward.length === 0 ? [gradientSums] : scopeOf(forward);
    return { name: partName(path), direction: 'backward', path };
  }
  const path = scopeOf(segments);
  return { name: partName(path), direction: first === 'update' ? 'update' : 'forward', path };
}

/** A value's scopes; one without any that has a name of its own is a part by itself. */
function scopeOf(segments: readonly string[]): string[] {
  if (segments.length > 1) return segments.slice(0, -1);
  const [name = ''] = segments;
  return [Object.hasOwn(shapeRules, name.replace(/_\d+$/, '')) ? unscoped : name];
}

function partName(path: readonly string[]): string {
  return path.map((segment) => (/^\d+$/.test(segment) ? '*' : segment)).join('.');
}
