/** Hashing of bytes of any size. */
import type { Hash } from 'node:crypto';

/** Node's hashes take less than 2 GiB at once. */
const pieceBytes = 2 ** 30;

/** Feeds bytes to a hash. */
export function updateHash(hash: Hash, bytes: Uint8Array): Hash {
  for (let at = 0; at < bytes.length; at += pieceBytes) hash.update(bytes.subarray(at, at + pieceBytes));
  return hash;
}
