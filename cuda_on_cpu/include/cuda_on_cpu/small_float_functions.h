// Functions that bf16 and half have under the same names. cuda_bf16.h and cuda_fp16.h
// include this file once each, with CUDA_SCALAR and CUDA_PAIR their two types. No include
// guard. Every result is the exact one, rounded once.

// ---------------------------------------------------------------------------- arithmetic
inline CUDA_SCALAR __hadd(CUDA_SCALAR a, CUDA_SCALAR b) {
    return cuda_on_cpu::rounded<CUDA_SCALAR>(cuda_on_cpu::odd_sum(float(a), float(b)));
}
inline CUDA_SCALAR __hsub(CUDA_SCALAR a, CUDA_SCALAR b) {
    return cuda_on_cpu::rounded<CUDA_SCALAR>(cuda_on_cpu::odd_sum(float(a), -float(b)));
}
// Products are exact in double. Quotients and roots of so few bits are never so near to
// the middle of two numbers that their own rounding, to 53 bits, could matter.
inline CUDA_SCALAR __hmul(CUDA_SCALAR a, CUDA_SCALAR b) {
    return cuda_on_cpu::rounded<CUDA_SCALAR>(double(float(a)) * float(b));
}
inline CUDA_SCALAR __hdiv(CUDA_SCALAR a, CUDA_SCALAR b) {
    return cuda_on_cpu::rounded<CUDA_SCALAR>(double(float(a)) / float(b));
}
inline CUDA_SCALAR __hfma(CUDA_SCALAR a, CUDA_SCALAR b, CUDA_SCALAR c) {
    return cuda_on_cpu::rounded<CUDA_SCALAR>(
        cuda_on_cpu::odd_sum(double(float(a)) * float(b), float(c)));
}
/// Only the sign bit changes, also a NaN's.
inline CUDA_SCALAR __hneg(CUDA_SCALAR a) {
    return cuda_on_cpu::from_16_bits<CUDA_SCALAR>(cuda_on_cpu::as_16_bits(a) ^ 0x8000u);
}
inline CUDA_SCALAR __habs(CUDA_SCALAR a) {
    return cuda_on_cpu::from_16_bits<CUDA_SCALAR>(cuda_on_cpu::as_16_bits(a) & 0x7fffu);
}
inline bool __hisnan(CUDA_SCALAR a) {
    return std::isnan(float(a));
}
/// -1, 0 or 1.
inline int __hisinf(CUDA_SCALAR a) {
    return !std::isinf(float(a)) ? 0 : float(a) < 0 ? -1 : 1;
}
/// The number, when the other one is NaN; +0 is above -0.
inline CUDA_SCALAR __hmax(CUDA_SCALAR a, CUDA_SCALAR b) {
    return cuda_on_cpu::rounded<CUDA_SCALAR>(max(float(a), float(b)));
}
inline CUDA_SCALAR __hmin(CUDA_SCALAR a, CUDA_SCALAR b) {
    return cuda_on_cpu::rounded<CUDA_SCALAR>(min(float(a), float(b)));
}
/// NaN, when one of them is.
inline CUDA_SCALAR __hmax_nan(CUDA_SCALAR a, CUDA_SCALAR b) {
    return __hisnan(a) || __hisnan(b) ? __hadd(a, b) : __hmax(a, b);
}
inline CUDA_SCALAR __hmin_nan(CUDA_SCALAR a, CUDA_SCALAR b) {
    return __hisnan(a) || __hisnan(b) ? __hadd(a, b) : __hmin(a, b);
}

// ----------------------------------------------------------------- variants and pairs
#define CUDA_ON_CPU_PAIR_OF_ONE(pair_name, name) \
    inline CUDA_PAIR pair_name(CUDA_PAIR a) {    \
        return {name(a.x), name(a.y)};           \
    }
CUDA_ON_CPU_PAIR_OF_ONE(__hneg2, __hneg)
CUDA_ON_CPU_PAIR_OF_ONE(__habs2, __habs)

#define CUDA_ON_CPU_PAIR_OF_TWO(pair_name, name)           \
    inline CUDA_PAIR pair_name(CUDA_PAIR a, CUDA_PAIR b) { \
        return {name(a.x, b.x), name(a.y, b.y)};           \
    }
// _rn: never part of a fused multiply-add, which here is true of all. _sat: to [0, 1].
#define CUDA_ON_CPU_VARIANTS(name)                                     \
    inline CUDA_SCALAR __h##name##_rn(CUDA_SCALAR a, CUDA_SCALAR b) {  \
        return __h##name(a, b);                                        \
    }                                                                  \
    inline CUDA_SCALAR __h##name##_sat(CUDA_SCALAR a, CUDA_SCALAR b) { \
        return CUDA_SCALAR(__saturatef(float(__h##name(a, b))));       \
    }                                                                  \
    CUDA_ON_CPU_PAIR_OF_TWO(__h##name##2, __h##name)                   \
    CUDA_ON_CPU_PAIR_OF_TWO(__h##name##2_rn, __h##name)                \
    CUDA_ON_CPU_PAIR_OF_TWO(__h##name##2_sat, __h##name##_sat)
CUDA_ON_CPU_VARIANTS(add)
CUDA_ON_CPU_VARIANTS(sub)
CUDA_ON_CPU_VARIANTS(mul)
#undef CUDA_ON_CPU_VARIANTS
CUDA_ON_CPU_PAIR_OF_TWO(__h2div, __hdiv)
CUDA_ON_CPU_PAIR_OF_TWO(__hmax2, __hmax)
CUDA_ON_CPU_PAIR_OF_TWO(__hmin2, __hmin)
CUDA_ON_CPU_PAIR_OF_TWO(__hmax2_nan, __hmax_nan)
CUDA_ON_CPU_PAIR_OF_TWO(__hmin2_nan, __hmin_nan)
#undef CUDA_ON_CPU_PAIR_OF_TWO

inline CUDA_SCALAR __hfma_sat(CUDA_SCALAR a, CUDA_SCALAR b, CUDA_SCALAR c) {
    return CUDA_SCALAR(__saturatef(float(__hfma(a, b, c))));
}
/// Negative results become 0; NaN stays.
inline CUDA_SCALAR __hfma_relu(CUDA_SCALAR a, CUDA_SCALAR b, CUDA_SCALAR c) {
    return __hmax_nan(__hfma(a, b, c), CUDA_SCALAR(0.0f));
}
#define CUDA_ON_CPU_PAIR_OF_THREE(pair_name, name)                      \
    inline CUDA_PAIR pair_name(CUDA_PAIR a, CUDA_PAIR b, CUDA_PAIR c) { \
        return {name(a.x, b.x, c.x), name(a.y, b.y, c.y)};              \
    }
CUDA_ON_CPU_PAIR_OF_THREE(__hfma2, __hfma)
CUDA_ON_CPU_PAIR_OF_THREE(__hfma2_sat, __hfma_sat)
CUDA_ON_CPU_PAIR_OF_THREE(__hfma2_relu, __hfma_relu)
#undef CUDA_ON_CPU_PAIR_OF_THREE

// --------------------------------------------------------------------------- comparisons
// __hlt: false when one is NaN; __hltu: true. For pairs, __hlt2 gives 1 and 0,
// __hlt2_mask 0xffff and 0, and __hblt2 says whether it holds for both; likewise with u.
#define CUDA_ON_CPU_PAIR_COMPARISON(name)                         \
    inline CUDA_PAIR __h##name##2(CUDA_PAIR a, CUDA_PAIR b) {     \
        return {CUDA_SCALAR(float(__h##name(a.x, b.x))),          \
                CUDA_SCALAR(float(__h##name(a.y, b.y)))};         \
    }                                                             \
    inline unsigned __h##name##2_mask(CUDA_PAIR a, CUDA_PAIR b) { \
        return (__h##name(a.x, b.x) ? 0xffffu : 0u) |             \
               (__h##name(a.y, b.y) ? 0xffff0000u : 0u);          \
    }                                                             \
    inline bool __hb##name##2(CUDA_PAIR a, CUDA_PAIR b) {         \
        return __h##name(a.x, b.x) && __h##name(a.y, b.y);        \
    }
#define CUDA_ON_CPU_COMPARISON(name, op)                             \
    inline bool __h##name(CUDA_SCALAR a, CUDA_SCALAR b) {            \
        return !__hisnan(a) && !__hisnan(b) && float(a) op float(b); \
    }                                                                \
    inline bool __h##name##u(CUDA_SCALAR a, CUDA_SCALAR b) {         \
        return __hisnan(a) || __hisnan(b) || float(a) op float(b);   \
    }                                                                \
    CUDA_ON_CPU_PAIR_COMPARISON(name)                                \
    CUDA_ON_CPU_PAIR_COMPARISON(name##u)
CUDA_ON_CPU_COMPARISON(eq, ==)
CUDA_ON_CPU_COMPARISON(ne, !=)
CUDA_ON_CPU_COMPARISON(lt, <)
CUDA_ON_CPU_COMPARISON(le, <=)
CUDA_ON_CPU_COMPARISON(gt, >)
CUDA_ON_CPU_COMPARISON(ge, >=)
#undef CUDA_ON_CPU_COMPARISON
#undef CUDA_ON_CPU_PAIR_COMPARISON
inline CUDA_PAIR __hisnan2(CUDA_PAIR a) {
    return {CUDA_SCALAR(float(__hisnan(a.x))), CUDA_SCALAR(float(__hisnan(a.y)))};
}

// ----------------------------------------------------------------------------- functions
#define CUDA_ON_CPU_FUNCTION(name, expression)                \
    inline CUDA_SCALAR h##name(CUDA_SCALAR a) {               \
        const double x = float(a);                            \
        return cuda_on_cpu::rounded<CUDA_SCALAR>(expression); \
    }                                                         \
    CUDA_ON_CPU_PAIR_OF_ONE(h2##name, h##name)
CUDA_ON_CPU_FUNCTION(sqrt, std::sqrt(x))
CUDA_ON_CPU_FUNCTION(rsqrt, 1 / std::sqrt(x))
CUDA_ON_CPU_FUNCTION(rcp, 1 / x)
CUDA_ON_CPU_FUNCTION(exp, std::exp(x))
CUDA_ON_CPU_FUNCTION(exp2, std::exp2(x))
CUDA_ON_CPU_FUNCTION(exp10, exp10(x))
CUDA_ON_CPU_FUNCTION(log, std::log(x))
CUDA_ON_CPU_FUNCTION(log2, std::log2(x))
CUDA_ON_CPU_FUNCTION(log10, std::log10(x))
CUDA_ON_CPU_FUNCTION(sin, std::sin(x))
CUDA_ON_CPU_FUNCTION(cos, std::cos(x))
CUDA_ON_CPU_FUNCTION(tanh, std::tanh(x))
CUDA_ON_CPU_FUNCTION(floor, std::floor(x))
CUDA_ON_CPU_FUNCTION(ceil, std::ceil(x))
CUDA_ON_CPU_FUNCTION(trunc, std::trunc(x))
CUDA_ON_CPU_FUNCTION(rint, std::nearbyint(x))
#undef CUDA_ON_CPU_FUNCTION
#undef CUDA_ON_CPU_PAIR_OF_ONE

// ----------------------------------------------------------------------------- operators
// Of pairs, a comparison says whether it holds for both halves, != as well.
#define CUDA_ON_CPU_OPERATORS(T, add, sub, mul, div, neg, one) \
    inline T operator+(const T& a, const T& b) {               \
        return add(a, b);                                      \
    }                                                          \
    inline T operator-(const T& a, const T& b) {               \
        return sub(a, b);                                      \
    }                                                          \
    inline T operator*(const T& a, const T& b) {               \
        return mul(a, b);                                      \
    }                                                          \
    inline T operator/(const T& a, const T& b) {               \
        return div(a, b);                                      \
    }                                                          \
    inline T operator+(const T& a) {                           \
        return a;                                              \
    }                                                          \
    inline T operator-(const T& a) {                           \
        return neg(a);                                         \
    }                                                          \
    inline T& operator+=(T& a, const T& b) {                   \
        return a = add(a, b);                                  \
    }                                                          \
    inline T& operator-=(T& a, const T& b) {                   \
        return a = sub(a, b);                                  \
    }                                                          \
    inline T& operator*=(T& a, const T& b) {                   \
        return a = mul(a, b);                                  \
    }                                                          \
    inline T& operator/=(T& a, const T& b) {                   \
        return a = div(a, b);                                  \
    }                                                          \
    inline T& operator++(T& a) {                               \
        return a = add(a, one);                                \
    }                                                          \
    inline T& operator--(T& a) {                               \
        return a = sub(a, one);                                \
    }                                                          \
    inline T operator++(T& a, int) {                           \
        const T before = a;                                    \
        ++a;                                                   \
        return before;                                         \
    }                                                          \
    inline T operator--(T& a, int) {                           \
        const T before = a;                                    \
        --a;                                                   \
        return before;                                         \
    }
CUDA_ON_CPU_OPERATORS(CUDA_SCALAR, __hadd, __hsub, __hmul, __hdiv, __hneg,
                      CUDA_SCALAR(1.0f))
CUDA_ON_CPU_OPERATORS(CUDA_PAIR, __hadd2, __hsub2, __hmul2, __h2div, __hneg2,
                      CUDA_PAIR(CUDA_SCALAR(1.0f), CUDA_SCALAR(1.0f)))
#undef CUDA_ON_CPU_OPERATORS

#define CUDA_ON_CPU_OPERATOR(op, name, pair_name)                         \
    inline bool operator op(const CUDA_SCALAR& a, const CUDA_SCALAR& b) { \
        return name(a, b);                                                \
    }                                                                     \
    inline bool operator op(const CUDA_PAIR& a, const CUDA_PAIR& b) {     \
        return pair_name(a, b);                                           \
    }
CUDA_ON_CPU_OPERATOR(==, __heq, __hbeq2)
CUDA_ON_CPU_OPERATOR(!=, __hneu, __hbneu2)
CUDA_ON_CPU_OPERATOR(<, __hlt, __hblt2)
CUDA_ON_CPU_OPERATOR(<=, __hle, __hble2)
CUDA_ON_CPU_OPERATOR(>, __hgt, __hbgt2)
CUDA_ON_CPU_OPERATOR(>=, __hge, __hbge2)
#undef CUDA_ON_CPU_OPERATOR
