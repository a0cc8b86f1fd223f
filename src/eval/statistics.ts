/** What a handful of right answers says about a model. */

/**
 * Wilson's 95 % interval of a proportion (Wilson 1927).
 * @returns [0, 1] for no trials
 */
export function wilsonInterval(successes: number, trials: number): [low: number, high: number] {
  if (trials === 0) return [0, 1];
  const z = 1.959963984540054;
  const share = successes / trials;
  const spread = z * Math.sqrt((share * (1 - share)) / trials + (z * z) / (4 * trials * trials));
  const middle = share + (z * z) / (2 * trials);
  const scale = 1 + (z * z) / trials;
  return [Math.max(0, (middle - spread) / scale), Math.min(1, (middle + spread) / scale)];
}

/** The most frequent answer of each template; the alphabet breaks ties. */
export function majorityAnswers(
  examples: readonly { readonly template: string; readonly answer: string }[],
): Map<string, string> {
  const counts = new Map<string, Map<string, number>>();
  for (const { template, answer } of examples) {
    const own = counts.get(template) ?? new Map<string, number>();
    counts.set(template, own.set(answer, (own.get(answer) ?? 0) + 1));
  }
  return new Map(
    [...counts].map(([template, own]) => {
      const [best] = [...own].sort(([a, countA], [b, countB]) => countB - countA || (a < b ? -1 : 1));
      return [template, (best as [string, number])[0]];
    }),
  );
}

/** Word overlap of two texts as F1 (SQuAD's measure, words compared in lower case without punctuation). */
export function tokenF1(answer: string, reference: string): number {
  const [given, wanted] = [words(answer), words(reference)];
  const left = new Map<string, number>();
  for (const word of wanted) left.set(word, (left.get(word) ?? 0) + 1);
  let shared = 0;
  for (const word of given) {
    const count = left.get(word) ?? 0;
    if (count > 0) shared++;
    left.set(word, count - 1);
  }
  return shared === 0 ? 0 : (2 * shared) / (given.length + wanted.length);
}

/** Same words in the same order, in lower case without punctuation. */
export function normalizedMatch(answer: string, reference: string): boolean {
  return words(answer).join(' ') === words(reference).join(' ');
}

function words(text: string): string[] {
  return text.toLowerCase().match(/[\p{L}\p{N}]+/gu) ?? [];
}
