// CUDA's vector types with their alignments, and the make_ functions.
#pragma once

#define EMU_VECTOR2(type, name, alignment)                        \
    struct alignas(alignment) name##2 {                           \
        type x, y;                                                \
    };                                                            \
    inline name##2 make_##name##2(type x, type y) { return {x, y}; }

#define EMU_VECTOR3(type, name)                                              \
    struct name##3 {                                                         \
        type x, y, z;                                                        \
    };                                                                       \
    inline name##3 make_##name##3(type x, type y, type z) { return {x, y, z}; }

#define EMU_VECTOR4(type, name, alignment)                                               \
    struct alignas(alignment) name##4 {                                                  \
        type x, y, z, w;                                                                 \
    };                                                                                   \
    inline name##4 make_##name##4(type x, type y, type z, type w) { return {x, y, z, w}; }

EMU_VECTOR2(signed char, char, 2)
EMU_VECTOR4(signed char, char, 4)
EMU_VECTOR2(unsigned char, uchar, 2)
EMU_VECTOR4(unsigned char, uchar, 4)
EMU_VECTOR2(short, short, 4)
EMU_VECTOR4(short, short, 8)
EMU_VECTOR2(unsigned short, ushort, 4)
EMU_VECTOR4(unsigned short, ushort, 8)
EMU_VECTOR2(int, int, 8)
EMU_VECTOR3(int, int)
EMU_VECTOR4(int, int, 16)
EMU_VECTOR2(unsigned, uint, 8)
EMU_VECTOR3(unsigned, uint)
EMU_VECTOR4(unsigned, uint, 16)
EMU_VECTOR2(float, float, 8)
EMU_VECTOR3(float, float)
EMU_VECTOR4(float, float, 16)
EMU_VECTOR2(long long, longlong, 16)
EMU_VECTOR2(unsigned long long, ulonglong, 16)
EMU_VECTOR2(double, double, 16)

#undef EMU_VECTOR2
#undef EMU_VECTOR3
#undef EMU_VECTOR4
