#pragma once
// The exponential, and what gates are made of.
#include "kernels.h"
#include "lanes.h"

namespace vlmc {

// exp(x) for x <= 0, to 2 units in the last place (Cephes' polynomial); 0 far below.
LANES_INLINE Floats exponential(Floats x) {
  x = max(floats(-104.0f), x);  // the second of the two where one is no number
  const Floats n = nearest(mul(x, floats(1.44269504088896341f)));
  Floats r = fnmadd(n, floats(0.693359375f), x);
  r = fnmadd(n, floats(-2.12194440e-4f), r);
  Floats p = floats(1.9875691500e-4f);
  p = fmadd(p, r, floats(1.3981999507e-3f));
  p = fmadd(p, r, floats(8.3334519073e-3f));
  p = fmadd(p, r, floats(4.1665795894e-2f));
  p = fmadd(p, r, floats(1.6666665459e-1f));
  p = fmadd(p, r, floats(5.0000001201e-1f));
  p = fmadd(mul(p, r), r, add(r, floats(1.0f)));
  return scalef(p, n);
}

// 1 / x for 1 <= x <= 2^127, to 1e-7 of itself: a division would take as long as all of a gate.
LANES_INLINE Floats inverse(Floats x) {
  const Floats near = reciprocal_estimate(x);
  return fmadd(fnmadd(x, near, floats(1.0f)), near, near);
}

// 1 / (1 + exp(-x)), of x > -20 to 1e-6 of itself.
LANES_INLINE Floats sigmoid(Floats x) {
  // The second of two where one is no number.
  const Floats top = floats(126.0f), by = floats(-1.44269504088896341f);
  const Floats t = min(top, mul(x, by)), r = fraction(t);
  // 2^r, of least relative error between 0 and 1, 1 at 0.
  Floats p = floats(1.86713017e-3f);
  p = fmadd(p, r, floats(9.01702978e-3f));
  p = fmadd(p, r, floats(5.57999127e-2f));
  p = fmadd(p, r, floats(2.40164444e-1f));
  p = fmadd(p, r, floats(6.93151295e-1f));
  p = fmadd(p, r, floats(1.0f));
  return inverse(add(floats(1.0f), scalef(p, t)));
}

// erf(x) to 2e-7 (Abramowitz and Stegun 7.1.26).
LANES_INLINE Floats error_function(Floats x) {
  const Floats one = floats(1.0f);
  const Floats size = min(floats(1e9f), abs(x));
  const Floats t = inverse(fmadd(floats(0.3275911f), size, one));
  Floats p = floats(1.061405429f);
  p = fmadd(p, t, floats(-1.453152027f));
  p = fmadd(p, t, floats(1.421413741f));
  p = fmadd(p, t, floats(-0.284496736f));
  p = fmadd(p, t, floats(0.254829592f));
  const Floats e = exponential(mul(bit_xor(x, floats(-0.0f)), x));
  const Floats y = fnmadd(mul(p, t), e, one);
  return bit_or(y, bit_and(x, floats(-0.0f)));
}

LANES_INLINE Floats activated(Floats x, Gate gate) {
  if (gate == Gate::silu) return mul(x, sigmoid(x));
  if (gate == Gate::gelu_quick) return mul(x, sigmoid(mul(x, floats(1.702f))));
  if (gate == Gate::gelu) {
    const Floats half = mul(x, floats(0.5f));
    const Floats erf = error_function(mul(x, floats(0.70710678118654752f)));
    return fmadd(half, erf, half);
  }
  // tanh(u) = 2 sigmoid(2 u) - 1
  const Floats cube = mul(mul(x, x), mul(x, floats(0.044715f)));
  return mul(x, sigmoid(mul(floats(1.5957691216057308f), add(x, cube))));
}

// y = activation(y) (* by, where there is one), for `count` numbers in each of m rows.
LANES inline void gate_rows(Gate gate, size_t m, size_t count, const float* by, size_t by_stride,
                            float* y, size_t stride) {
  for (size_t r = 0; r < m; ++r)
    for (size_t c = 0; c < count; c += 16) {
      const Mask there = first16(count - c);
      const Floats x = load(there, y + r * stride + c);
      Floats v = activated(x, gate);
      if (by) v = mul(v, load(there, by + r * by_stride + c));
      store(y + r * stride + c, there, v);
    }
}

}  // namespace vlmc
