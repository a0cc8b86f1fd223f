/**
 * float16 (IEEE 754 binary16) and bfloat16 as bit patterns. Everything works on bit patterns, never on numbers,
 * so that infinities, signed zeros, subnormals and the payloads of NaNs survive a round trip.
 */
import type { DType, Tensor } from './tensor.ts';

/** A tensor between float32 and a half type; undefined for any other pair of types. */
export function castTensor(tensor: Tensor, dtype: DType): Tensor | undefined {
  const { shape } = tensor;
  if (tensor.dtype === 'float32' && dtype === 'float16')
    return { dtype, shape, data: halfFromFloat32(tensor.data) };
  if (tensor.dtype === 'float32' && dtype === 'bfloat16')
    return { dtype, shape, data: bfloat16FromFloat32(tensor.data) };
  if (dtype !== 'float32') return undefined;
  if (tensor.dtype === 'float16') return { dtype, shape, data: float32FromHalf(tensor.data) };
  if (tensor.dtype === 'bfloat16') return { dtype, shape, data: float32FromBfloat16(tensor.data) };
  return undefined;
}

/** All 65,536 float16 patterns as float32 patterns; made at first use. */
let widenedHalves: Uint32Array | undefined;

/**
 * Widens float16 bit patterns. Exact: every float16 is a float32.
 * @param into where to; may be the memory that ends with the bits, since no bit is overwritten before it is read
 */
export function float32FromHalf(
  bits: Uint16Array,
  into?: Float32Array<ArrayBuffer>,
): Float32Array<ArrayBuffer> {
  widenedHalves ??= Uint32Array.from({ length: 65_536 }, (_, half) => widenHalf(half));
  const table = widenedHalves;
  return float32FromPatterns(bits, (half) => table[half] ?? 0, into);
}

/** Rounds to float16, to nearest, ties to even; what is too large becomes infinity. NaN stays NaN. */
export function halfFromFloat32(values: Float32Array): Uint16Array {
  return patternsFromFloat32(values, roundToHalf);
}

/** Widens bfloat16 bit patterns: they are the upper halves of float32 patterns. @param into as of `float32FromHalf` */
export function float32FromBfloat16(
  bits: Uint16Array,
  into?: Float32Array<ArrayBuffer>,
): Float32Array<ArrayBuffer> {
  return float32FromPatterns(bits, (upper) => upper << 16, into);
}

/** Rounds to bfloat16, to nearest, ties to even; what is too large becomes infinity. NaN stays NaN. */
export function bfloat16FromFloat32(values: Float32Array): Uint16Array {
  return patternsFromFloat32(values, roundToBfloat16);
}

function float32FromPatterns(
  bits: Uint16Array,
  widen: (pattern: number) => number,
  values = new Float32Array(bits.length),
): Float32Array<ArrayBuffer> {
  const patterns = new Uint32Array(values.buffer, values.byteOffset, values.length);
  for (let index = 0; index < bits.length; index++) patterns[index] = widen(bits[index] ?? 0);
  return values;
}

function patternsFromFloat32(values: Float32Array, round: (pattern: number) => number): Uint16Array {
  const patterns = new Uint32Array(values.buffer, values.byteOffset, values.length);
  const bits = new Uint16Array(values.length);
  for (let index = 0; index < bits.length; index++) bits[index] = round(patterns[index] ?? 0);
  return bits;
}

function widenHalf(half: number): number {
  const sign = (half & 0x8000) << 16;
  const exponent = (half >>> 10) & 0x1f;
  const mantissa = half & 0x3ff;
  if (exponent === 0x1f) return sign | 0x7f80_0000 | (mantissa << 13);
  if (exponent > 0) return sign | ((exponent + 112) << 23) | (mantissa << 13);
  if (mantissa === 0) return sign;
  // Subnormal: move the leading one to the place of the hidden bit.
  const shift = Math.clz32(mantissa) - 21;
  return sign | ((113 - shift) << 23) | (((mantissa << shift) & 0x3ff) << 13);
}

function roundToHalf(pattern: number): number {
  const sign = (pattern >>> 16) & 0x8000;
  const magnitude = pattern & 0x7fff_ffff;
  if (magnitude > 0x7f80_0000) return sign | 0x7c00 | ((magnitude >>> 13) & 0x3ff || 0x200);
  // 65520 is halfway between the largest float16, 65504, and the 65536 that would come next.
  if (magnitude >= 0x477f_f000) return sign | 0x7c00;
  if (magnitude >= 0x3880_0000) return sign | shiftRoundingToEven(magnitude - 0x3800_0000, 13);
  // Below 2^-14: multiples of 2^-24. At or below 2^-25 zero is nearest.
  if (magnitude <= 0x3300_0000) return sign;
  const mantissa = (magnitude & 0x7f_ffff) | 0x80_0000;
  return sign | shiftRoundingToEven(mantissa, 126 - (magnitude >>> 23));
}

function roundToBfloat16(pattern: number): number {
  const magnitude = pattern & 0x7fff_ffff;
  const upper = pattern >>> 16;
  if (magnitude > 0x7f80_0000) return (upper & 0x7f) === 0 ? upper | 0x40 : upper;
  // A carry out of the mantissa raises the exponent, up to infinity: the order of patterns is that of values.
  return ((pattern >>> 16) & 0x8000) | shiftRoundingToEven(magnitude, 16);
}

/** `value / 2^shift` rounded to the nearest integer, ties to the even one. `value` is below 2^31. */
function shiftRoundingToEven(value: number, shift: number): number {
  const quotient = value >>> shift;
  const rest = value & ((1 << shift) - 1);
  const halfway = 1 << (shift - 1);
  return rest > halfway || (rest === halfway && (quotient & 1) === 1) ? quotient + 1 : quotient;
}
