/** One line of the doctor's report. */
export interface Check {
  readonly what: string;
  /** `missing` keeps palkit from working; without something `optional` a part of it does. */
  readonly status: 'ok' | 'optional' | 'missing';
  readonly found: string;
  /** What to do; empty where there is nothing to do. */
  readonly advice: string;
}
