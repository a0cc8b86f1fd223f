/** A model's file that cannot be used: it names the file, what is wrong, and what to do. */
export class ModelError extends Error {
  override readonly name = 'ModelError';
}
