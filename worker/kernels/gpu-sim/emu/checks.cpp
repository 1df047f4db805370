// Kernels are compiled with -fsanitize=alignment,bounds,integer-divide-by-zero. The compiler then calls these functions
// where a check fails; their parameters are the sanitizer ABI's.
#include <cstring>

#include "runtime.h"

namespace emu {

struct SourceLocation {
    const char* file;
    uint32_t line, column;
};
struct TypeDescriptor {
    uint16_t kind, info;
    char name[1];  // as long as it is
};
struct TypeMismatch {
    SourceLocation at;
    const TypeDescriptor* type;
    unsigned char log_alignment, kind;
};
struct OutOfBounds {
    SourceLocation at;
    const TypeDescriptor *array, *index;
};
struct DivisionOverflow {
    SourceLocation at;
    const TypeDescriptor* type;
};

// In the shim the kernel's own line is that of the frame which it is inlined into.
[[noreturn]] static void report(const std::string& what, const SourceLocation& at, uintptr_t pc) {
    if (strstr(at.file, "/shim/") != nullptr) {
        fault_at_pc(what, pc, false);
    }
    kernel_fault(what.c_str(), Site{at.file, (int)at.line});
}

}  // namespace emu

using namespace emu;

#define CHECK_FAILED extern "C" __attribute__((visibility("default"), noinline)) void
#define CALLER ((uintptr_t)__builtin_return_address(0) - 1)

CHECK_FAILED __ubsan_handle_type_mismatch_v1(TypeMismatch* check, uintptr_t pointer) {
    const size_t alignment = (size_t)1 << check->log_alignment;
    report("an access of type " + std::string(check->type->name) + " to an address that is " + std::to_string(pointer % alignment) +
               " bytes off its alignment of " + std::to_string(alignment),
           check->at, CALLER);
}
CHECK_FAILED __ubsan_handle_out_of_bounds(OutOfBounds* check, uintptr_t index) {
    report("index " + std::to_string((long long)index) + " is out of the bounds of " + check->array->name, check->at, CALLER);
}
CHECK_FAILED __ubsan_handle_divrem_overflow(DivisionOverflow* check, uintptr_t, uintptr_t) {
    report("an integer division by zero", check->at, CALLER);
}
