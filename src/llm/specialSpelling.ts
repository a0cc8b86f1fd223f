/**
 * Special tokens in texts. A chat template marks turns by spelling special tokens out, and a user may spell the same;
 * only the template's may become tokens. So the user's are escaped on their way in, and the ones that count are
 * spelled in a manner that no text can have: with a lone high surrogate, which is no character and has no UTF-8.
 */

const escapeMark = '\ud800';
const uniqueMark = '\ud801';

export interface SpecialSpelling {
  /** The spelling of a special token that no text has. */
  uniqueOf(id: number): string;
  /** The text with special tokens in their unique spelling; escaped ones lose their mark and stay as they are. */
  toUnique(text: string): string;
  /** Where the first special token of a text in unique spelling begins; at its end where there is none. */
  firstUnique(text: string): number;
  /** The text with special tokens as everybody spells them. */
  fromUnique(text: string): string;
  /** Marks every spelling of a special token in a text; lone surrogates in it become U+FFFD. */
  escapeSpecial(text: string): string;
}

/** @param special the special tokens by id, as everybody spells them */
export function specialSpelling(special: ReadonlyMap<number, string>): SpecialSpelling {
  const idOf = new Map([...special].map(([id, content]) => [content, id]));
  const anyOf =
    special.size === 0
      ? '(?!)'
      : [...idOf.keys()]
          // Where one begins with another, the longer one is meant.
          .sort((a, b) => b.length - a.length)
          .map((content) => content.replace(/[.*+?^${}()|[\]\\]/g, '\\$&'))
          .join('|');
  const spelled = new RegExp(`(?<!${escapeMark})(?:${anyOf})`, 'g');
  const beginsOne = new RegExp(`(?=${anyOf})`, 'g');
  const escapes = new RegExp(escapeMark, 'gu');
  const uniqueOf = (id: number) => `${uniqueMark}${id};`;
  return {
    uniqueOf,
    toUnique: (text) =>
      text.replace(spelled, (content) => uniqueOf(idOf.get(content) as number)).replace(escapes, ''),
    firstUnique: (text) => {
      const at = text.indexOf(uniqueMark);
      return at < 0 ? text.length : at;
    },
    fromUnique: (text) =>
      text.replace(new RegExp(`${uniqueMark}(\\d+);`, 'gu'), (_, id) => special.get(Number(id)) as string),
    escapeSpecial: (text) => text.replace(/\p{Surrogate}/gu, '\ufffd').replace(beginsOne, escapeMark),
  };
}
