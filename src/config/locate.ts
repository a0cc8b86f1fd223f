import { existsSync } from 'node:fs';
import { fileURLToPath } from 'node:url';

/**
 * Where something that palkit ships stands: as named from the working folder, or else in the package itself
 * (`models/sound-world`, `encoders/timbre`, `datasets/sound-world.yaml`).
 */
export function locate(path: string): string {
  if (existsSync(path)) return path;
  const shipped = fileURLToPath(new URL(`../../${path}`, import.meta.url));
  return existsSync(shipped) ? shipped : path;
}
