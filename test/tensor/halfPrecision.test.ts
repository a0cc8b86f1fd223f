import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import {
  bfloat16FromFloat32,
  float32FromBfloat16,
  float32FromHalf,
  halfFromFloat32,
} from '../../src/tensor/halfPrecision.ts';

const everyPattern = Uint16Array.from({ length: 65_536 }, (_, bits) => bits);

const formats = [
  { name: 'float16', mantissaBits: 10, bias: 15, widen: float32FromHalf, round: halfFromFloat32 },
  { name: 'bfloat16', mantissaBits: 7, bias: 127, widen: float32FromBfloat16, round: bfloat16FromFloat32 },
];

describe.each(formats)('$name', ({ mantissaBits, bias, widen, round }) => {
  const mantissas = 2 ** mantissaBits;
  const infinity = 2 ** 15 - mantissas;

  /** The value of a non-negative pattern by the definition of the format. */
  function numberOf(bits: number): number {
    const exponent = Math.floor(bits / mantissas);
    const mantissa = bits % mantissas;
    if (exponent === 2 * bias + 1) return mantissa === 0 ? Number.POSITIVE_INFINITY : Number.NaN;
    return exponent === 0
      ? mantissa * 2 ** (1 - bias - mantissaBits)
      : (1 + mantissa / mantissas) * 2 ** (exponent - bias);
  }

  test('every pattern survives widening and rounding', () => {
    expect(round(widen(everyPattern))).toEqual(everyPattern);
  });

  test('every pattern widens to its value', () => {
    const expected = Float64Array.from(everyPattern, (bits) =>
      bits < 2 ** 15 ? numberOf(bits) : -numberOf(bits - 2 ** 15),
    );
    expect(Float64Array.from(widen(everyPattern))).toEqual(expected);
  });

  test('between any two neighbours the nearer one is chosen, the even one at the middle', () => {
    const wrong: number[] = [];
    for (let bits = 0; bits < infinity; bits++) {
      const low = numberOf(bits);
      // The value that would follow the largest finite one, were there more exponents.
      const high = bits + 1 === infinity ? 2 ** (bias + 1) : numberOf(bits + 1);
      const middle = Float32Array.of((low + high) / 2);
      const pattern = new Int32Array(middle.buffer)[0] ?? 0;
      const around = new Float32Array(Int32Array.of(pattern - 1, pattern, pattern + 1).buffer);
      const even = bits % 2 === 0 ? bits : bits + 1;
      const [below, at, above] = round(around);
      const [minusBelow, minusAt, minusAbove] = round(around.map((value) => -value));
      const expected = [bits, even, bits + 1];
      const negative = expected.map((value) => value + 2 ** 15);
      if (
        String([below, at, above, minusBelow, minusAt, minusAbove]) !== String([...expected, ...negative])
      ) {
        wrong.push(bits);
      }
    }
    expect(wrong).toEqual([]);
  });

  test('rounding keeps the order and the sign of any numbers', () => {
    fc.assert(
      fc.property(fc.float({ noNaN: true }), fc.float({ noNaN: true }), (a, b) => {
        const [low, high] = widen(round(Float32Array.of(Math.min(a, b), Math.max(a, b))));
        expect(low).toBeLessThanOrEqual(high ?? Number.NaN);
        expect(
          Math.sign(widen(round(Float32Array.of(a)))[0] ?? Number.NaN) * Math.sign(a),
        ).toBeGreaterThanOrEqual(0);
      }),
    );
  });

  test('a NaN whose payload does not fit stays NaN', () => {
    const values = new Float32Array(Uint32Array.of(0x7f80_0001, 0xff80_0001).buffer);
    expect([...widen(round(values))]).toEqual([Number.NaN, Number.NaN]);
  });
});
