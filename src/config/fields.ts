/** Reads the schema itself: which fields there are at a place, and what they mean. */
import { z } from 'zod';

type AnySchema = z.core.$ZodType;

/** The schema without defaults, optionality and what runs after it. */
function bare(schema: AnySchema): AnySchema {
  let inner = schema;
  for (;;) {
    if (
      inner instanceof z.ZodDefault ||
      inner instanceof z.ZodPrefault ||
      inner instanceof z.ZodOptional ||
      inner instanceof z.ZodNullable
    ) {
      inner = inner.unwrap();
    } else if (inner instanceof z.ZodPipe) inner = inner.in;
    else return inner;
  }
}

/** The objects that may stand in a place: one, or one for each kind of a union. */
function alternatives(schema: AnySchema): z.ZodObject[] {
  const inner = bare(schema);
  if (inner instanceof z.ZodObject) return [inner];
  return inner instanceof z.ZodUnion ? (inner.options as readonly AnySchema[]).flatMap(alternatives) : [];
}

/** The schemas that a step of a path leads to; undefined where the path leaves what the schema describes. */
function step(schema: AnySchema, name: PropertyKey): AnySchema[] {
  const inner = bare(schema);
  if (inner instanceof z.ZodArray) return /^\d+$/.test(String(name)) ? [inner.element] : [];
  if (inner instanceof z.ZodRecord) return [inner.valueType];
  if (inner instanceof z.ZodUnion)
    return (inner.options as readonly AnySchema[]).flatMap((one) => step(one, name));
  return alternatives(inner).flatMap((object) => {
    const field: AnySchema | undefined = Object.hasOwn(object.shape, name)
      ? object.shape[String(name)]
      : undefined;
    return field === undefined ? [] : [field];
  });
}

/** The schemas at a path; several where discriminated unions lie on it, none where nothing may stand. */
export function schemasAt(schema: AnySchema, path: readonly PropertyKey[]): AnySchema[] {
  return path.reduce<AnySchema[]>((found, name) => found.flatMap((one) => step(one, name)), [schema]);
}

/** What may stand in a place. */
export type Shape = 'map' | 'list' | 'value';

/** @param found what stands there: where a map may stand, or a list, it decides */
export function shapeOf(schema: AnySchema, found?: unknown): Shape {
  const inner = bare(schema);
  if (inner instanceof z.ZodArray) return 'list';
  if (found === 'list' && inner instanceof z.ZodUnion) {
    const options = inner.options as readonly AnySchema[];
    if (options.some((one) => shapeOf(one) === 'list')) return 'list';
  }
  return inner instanceof z.ZodRecord || alternatives(inner).length > 0 ? 'map' : 'value';
}

/**
 * The names of the fields at a path.
 * @param value what stands there, to tell the kinds of a discriminated union apart
 */
export function namesAt(schema: AnySchema, path: readonly PropertyKey[], value?: unknown): string[] {
  const objects = schemasAt(schema, path).flatMap(alternatives);
  const fitting = objects.filter((object) => fits(object, value));
  const chosen = fitting.length > 0 ? fitting : objects;
  return [...new Set(chosen.flatMap((object) => Object.keys(object.shape)))];
}

/** The literal fields of an object, which tell the kinds of a union apart. One with a default may be left out. */
function discriminators(object: z.ZodObject): [name: string, literal: z.ZodLiteral, optional: boolean][] {
  return Object.entries(object.shape).flatMap(([name, field]): [string, z.ZodLiteral, boolean][] => {
    const literal = bare(field);
    return literal instanceof z.ZodLiteral ? [[name, literal, field !== literal]] : [];
  });
}

function fits(object: z.ZodObject, value: unknown): boolean {
  if (typeof value !== 'object' || value === null) return true;
  const given = value as Readonly<Record<string, unknown>>;
  return discriminators(object).every(
    ([name, literal, optional]) =>
      literal.values.has(given[name] as string) || (optional && given[name] === undefined),
  );
}

/** The kind of a union that a value is of: `mode: prefix`; null where it is none. */
export function kindOf(schema: AnySchema, path: readonly PropertyKey[], value: unknown): string | null {
  const [object] = schemasAt(schema, path)
    .flatMap(alternatives)
    .filter((candidate) => discriminators(candidate).length > 0 && fits(candidate, value));
  const [kind] = object === undefined ? [] : discriminators(object);
  return kind === undefined ? null : `${kind[0]}: ${kind[1].value}`;
}

/**
 * The kinds of a union that have a field: `mode: attention-only`.
 * @param value what stands at the path: where kinds have kinds, it decides which of them is to be another
 */
export function kindsWith(
  schema: AnySchema,
  path: readonly PropertyKey[],
  name: string,
  value?: unknown,
): string[] {
  const given = (value ?? {}) as Readonly<Record<string, unknown>>;
  const kinds = schemasAt(schema, path)
    .flatMap(alternatives)
    .filter((object) => Object.hasOwn(object.shape, name))
    .flatMap((object) => {
      const own = discriminators(object);
      const other = own.filter(([kind, literal]) => !literal.values.has(given[kind] as string));
      const [chosen = own[0]] = other.filter(([kind]) => given[kind] !== undefined);
      return chosen === undefined ? [] : [`${chosen[0]}: ${chosen[1].value}`];
    });
  return [...new Set(kinds)];
}

/** What a field is for; undefined where the schema does not say. */
export function descriptionAt(schema: AnySchema, path: readonly PropertyKey[]): string | undefined {
  return schemasAt(schema, path)
    .map(describedAs)
    .find((text) => text !== undefined);
}

function describedAs(schema: AnySchema): string | undefined {
  return z.globalRegistry.get(schema)?.description;
}

/** A field of a configuration file. */
export interface Field {
  /** `streams.*.connector.hidden`; `*` stands for an entry of a list. */
  readonly path: string;
  /** The kind that has the field, in a discriminated union: `kind: mlp`. */
  readonly only: string | null;
  /** What it takes: `cpu | webgpu | cuda`, `whole number`. */
  readonly takes: string;
  /** The default as JSON; null where the field is required or simply optional. */
  readonly fallback: string | null;
  readonly description: string | null;
}

/** Every field that a schema knows, in the order of the schema. */
export function listFields(schema: AnySchema): Field[] {
  return walk(schema, [], null);
}

function walk(schema: AnySchema, path: readonly string[], only: string | null): Field[] {
  const inner = bare(schema);
  if (inner instanceof z.ZodArray) return walk(inner.element, [...path, '*'], only);
  const objects = alternatives(inner);
  return objects.flatMap((object) => {
    const [kind] = objects.length > 1 ? discriminators(object) : [];
    const own = kind === undefined ? only : `${kind[0]}: ${kind[1].value}`;
    return Object.entries(object.shape).flatMap(([name, field]) => {
      const fieldPath = [...path, name];
      const deeper = walk(field, fieldPath, own);
      const listsItself = deeper.length === 0 || shapeOf(field) === 'list';
      const described = {
        path: fieldPath.join('.'),
        only: own,
        takes: takes(field),
        fallback: fallbackOf(field),
        description: describedAs(field) ?? null,
      };
      return [...(listsItself ? [described] : []), ...deeper];
    });
  });
}

function fallbackOf(schema: AnySchema): string | null {
  return schema instanceof z.ZodDefault ? JSON.stringify(schema.def.defaultValue) : null;
}

/** What a schema takes, in words. */
export function takes(schema: AnySchema): string {
  const inner = bare(schema);
  const orNull = hasNull(schema) ? ' | null' : '';
  if (inner instanceof z.ZodEnum || inner instanceof z.ZodLiteral) {
    const values = inner instanceof z.ZodEnum ? inner.options : [...inner.values];
    return values.map(String).join(' | ') + orNull;
  }
  if (inner instanceof z.ZodArray) return `list of ${takes(inner.element)}${orNull}`;
  if (inner instanceof z.ZodBoolean) return `true | false${orNull}`;
  if (inner instanceof z.ZodNumber) return `${inner.isInt ? 'whole number' : 'number'}${orNull}`;
  if (inner instanceof z.ZodString) return `text${orNull}`;
  if (shapeOf(inner) !== 'map')
    return inner instanceof z.ZodUnion
      ? (inner.options as readonly AnySchema[]).map(takes).join(' | ') + orNull
      : 'value';
  return shapeOf(inner, 'list') === 'list' ? 'map | list of maps' : 'map';
}

function hasNull(schema: AnySchema): boolean {
  if (schema instanceof z.ZodNullable) return true;
  return (
    (schema instanceof z.ZodDefault || schema instanceof z.ZodPrefault || schema instanceof z.ZodOptional) &&
    hasNull(schema.unwrap())
  );
}
