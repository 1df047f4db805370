// The table of a kernel library's entries, by which the driver finds the host build of a kernel of a device image.
#pragma once
#include <cstddef>
#include <cstdint>
#include <utility>

namespace emu {

struct Entry {
    const char* name;
    void (*call)(void** arguments);
    const uint32_t* parameter_bytes;
    uint32_t parameters;
};

template <class... Args>
struct Invoke {
    // Never empty: an array of length zero is not C++.
    static constexpr uint32_t bytes[sizeof...(Args) + 1] = {(uint32_t)sizeof(Args)..., 0};

    template <void (*kernel)(Args...)>
    static void call([[maybe_unused]] void** arguments) {
        with<kernel>(arguments, std::index_sequence_for<Args...>{});
    }

    template <void (*kernel)(Args...), std::size_t... I>
    static void with([[maybe_unused]] void** arguments, std::index_sequence<I...>) {
        kernel(*(Args*)arguments[I]...);
    }
};

template <auto kernel>
struct EntryOf;

template <class... Args, void (*kernel)(Args...)>
struct EntryOf<kernel> {
    static Entry named(const char* name) {
        return {name, &Invoke<Args...>::template call<kernel>, Invoke<Args...>::bytes, (uint32_t)sizeof...(Args)};
    }
};

}  // namespace emu

#define EMU_ENTRY(kernel) emu::EntryOf<&kernel>::named(#kernel),
