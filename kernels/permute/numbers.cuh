// Numbers of one element type, and their 8-bit codes.  Also plain C++: a host compiler accepts it.
//
// A code is the nearest integer to value / scale, ties to even, where scale is the largest
// magnitude of a group / 127 and at least the smallest normal number, every step rounded as IEEE
// float32.  Groups that hold NaN or an infinity have scale NaN and codes 0; groups of zeros have
// scale 0.

#if defined(__CUDA_ARCH__)
#define ON_DEVICE 1
#else
#define ON_DEVICE 0
#endif

KDSL_LEAF float as_float(unsigned bits) {
#if ON_DEVICE
  return __uint_as_float(bits);
#else
  float value;
  __builtin_memcpy(&value, &bits, 4);
  return value;
#endif
}

KDSL_LEAF unsigned as_bits(float value) {
#if ON_DEVICE
  return __float_as_uint(value);
#else
  unsigned bits;
  __builtin_memcpy(&bits, &value, 4);
  return bits;
#endif
}

KDSL_LEAF float divide(float a, float b) {
#if ON_DEVICE
  return __fdiv_rn(a, b);
#else
  return a / b;
#endif
}

KDSL_LEAF float multiply_add(float a, float b, float c) {
#if ON_DEVICE
  return __fmaf_rn(a, b, c);
#else
  return __builtin_fmaf(a, b, c);
#endif
}

KDSL_LEAF float from_bfloat16(unsigned bits) { return as_float(bits << 16); }

KDSL_LEAF float from_float16(unsigned bits) {
#if ON_DEVICE
  // Inline PTX because cuda_fp16.h would ask NVRTC for an include path.
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"((unsigned short)bits));
  return value;
#else
  // The exponent is rebased by a product, which also makes subnormal numbers normal.
  const unsigned shifted = (bits & 0x7fff) << 13;
  const float size = shifted < 0x0f800000u ? as_float(shifted) * 0x1p112f
                                           : as_float(shifted | 0x7f800000u);
  return as_float(as_bits(size) | (bits & 0x8000) << 16);
#endif
}

// Largest magnitudes are compared as bits: a larger number has larger bits, and NaN and infinities
// are larger than all numbers.
KDSL_LEAF unsigned magnitude(float value) { return as_bits(value) & 0x7fffffffu; }

KDSL_LEAF unsigned larger(unsigned a, unsigned b) { return a > b ? a : b; }

KDSL_LEAF float scale_of(unsigned peak) {
  if (peak == 0) return 0.0f;
  if (peak >= 0x7f800000u) return as_float(0x7fc00000u);
  const float scale = divide(as_float(peak), 127.0f);
  return scale > 0x1p-126f ? scale : 0x1p-126f;
}

// The factor for `code_by_product`, or 0 where only `code_by_division` is exact: for NaN, and where
// the remainders below could leave the range of normal numbers.
KDSL_LEAF float factor_of(float scale) {
  if (scale == 0.0f) return 1.0f; // All values are 0.
  return scale >= 0x1p-100f ? divide(1.0f, scale) : 0.0f;
}

// Adding 1.5 * 2**23 rounds to an integer, ties to even, and leaves it in the lowest bits.
KDSL_LEAF unsigned nearest_integer(float value) { return as_bits(value + 12582912.0f); }

// The low byte is the code.  A product with the rounded reciprocal, and one correction by the exact
// remainder.  That is the quotient as division rounds it, but where the exact one lies within 2**-22
// units in the last place of the middle between two floats.  For the code only middles next to
// n + 1/2 matter, and there are so few such pairs of numbers that the tests go through all of them.
KDSL_LEAF unsigned code_by_product(float value, float scale, float factor) {
  const float quotient = value * factor;
  const float rest = multiply_add(-quotient, scale, value);
  return nearest_integer(multiply_add(rest, factor, quotient));
}

// The low byte is the code, for any scale.
KDSL_LEAF unsigned code_by_division(float value, float scale) {
  return scale > 0.0f ? nearest_integer(divide(value, scale)) : 0u;
}

// The low bytes of four words as one word, the first in the lowest byte.
KDSL_LEAF unsigned low_bytes(unsigned a, unsigned b, unsigned c, unsigned d) {
#if ON_DEVICE
  return __byte_perm(__byte_perm(a, b, 0x0040), __byte_perm(c, d, 0x0040), 0x5410);
#else
  return (a & 255) | (b & 255) << 8 | (c & 255) << 16 | (d & 255) << 24;
#endif
}
