// Atomic operations on global and shared memory: relaxed, as on the device. Blocks run on several OS threads, so these
// are real atomics of the host.
#pragma once
#include <type_traits>

#include "keywords.h"

// The pointer alone decides the type, so that `atomicAdd(&unsigned_counter, 1)` compiles, as CUDA's overloads do.
template <class T>
using emu_value = std::common_type_t<T>;

// The place is reported before the access, which itself is not instrumented: as an access it would be a race.
template <class T, class Next>
__attribute__((no_sanitize("thread"))) inline T emu_atomic(T* p, Next next, emu::Site site) {
    emu::note_atomic(p, sizeof(T), site);
    T old;
    __atomic_load(p, &old, __ATOMIC_RELAXED);
    for (;;) {
        T value = next(old);
        if (__atomic_compare_exchange(p, &old, &value, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
            return old;
        }
    }
}

template <class T>
inline T atomicAdd(T* p, emu_value<T> v, EMU_SITE) {
    return emu_atomic(p, [v](T old) { return (T)(old + v); }, site);
}
template <class T>
inline T atomicSub(T* p, emu_value<T> v, EMU_SITE) {
    return emu_atomic(p, [v](T old) { return (T)(old - v); }, site);
}
template <class T>
inline T atomicMax(T* p, emu_value<T> v, EMU_SITE) {
    return emu_atomic(p, [v](T old) { return old < v ? v : old; }, site);
}
template <class T>
inline T atomicMin(T* p, emu_value<T> v, EMU_SITE) {
    return emu_atomic(p, [v](T old) { return v < old ? v : old; }, site);
}
template <class T>
inline T atomicAnd(T* p, emu_value<T> v, EMU_SITE) {
    return emu_atomic(p, [v](T old) { return (T)(old & v); }, site);
}
template <class T>
inline T atomicOr(T* p, emu_value<T> v, EMU_SITE) {
    return emu_atomic(p, [v](T old) { return (T)(old | v); }, site);
}
template <class T>
inline T atomicXor(T* p, emu_value<T> v, EMU_SITE) {
    return emu_atomic(p, [v](T old) { return (T)(old ^ v); }, site);
}
template <class T>
inline T atomicExch(T* p, emu_value<T> v, EMU_SITE) {
    return emu_atomic(p, [v](T) { return v; }, site);
}
template <class T>
inline T atomicCAS(T* p, emu_value<T> expected, emu_value<T> v, EMU_SITE) {
    return emu_atomic(p, [expected, v](T old) { return old == expected ? v : old; }, site);
}
// Wraps to zero at `limit`, and from zero to `limit`.
inline unsigned atomicInc(unsigned* p, unsigned limit, EMU_SITE) {
    return emu_atomic(p, [limit](unsigned old) { return old >= limit ? 0 : old + 1; }, site);
}
inline unsigned atomicDec(unsigned* p, unsigned limit, EMU_SITE) {
    return emu_atomic(p, [limit](unsigned old) { return old == 0 || old > limit ? limit : old - 1; }, site);
}
