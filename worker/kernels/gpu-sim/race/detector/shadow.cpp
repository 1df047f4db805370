#include "shadow.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <unordered_map>

#include "../../emu/runtime.h"
#include "../race.h"

namespace emu::race {

Region dynamic_shared, static_shared;
static std::map<uintptr_t, Region> global;
static Region* last_found;

void Region::reset(uintptr_t at, size_t size, size_t with_slack, int on_device, const char* what) {
    base = at;
    bytes = size;
    body = with_slack;
    device = on_device;
    kind = what;
    pages.resize((size + 4 * PAGE_GRANULES - 1) / (4 * PAGE_GRANULES));
    written.assign(size, false);
}

Granule& Region::granule(size_t offset, uint64_t life) {
    const size_t index = offset / 4;
    std::unique_ptr<Page>& page = pages[index / PAGE_GRANULES];
    if (page == nullptr) {
        page = std::make_unique<Page>();
    }
    if (page->life != life) {
        memset((void*)page->granules, 0, sizeof page->granules);
        page->life = life;
    }
    return page->granules[index % PAGE_GRANULES];
}

void Region::set_written(uintptr_t address, size_t n, bool is) {
    const size_t from = std::min(address - base, bytes), to = std::min(from + n, bytes);
    std::fill(written.begin() + (long)from, written.begin() + (long)to, is);
}

Region* find_region(uintptr_t address) {
    if (dynamic_shared.holds(address)) {
        return &dynamic_shared;
    }
    if (static_shared.holds(address)) {
        return &static_shared;
    }
    if (last_found != nullptr && last_found->holds(address)) {
        return last_found;
    }
    auto it = global.upper_bound(address);
    if (it == global.begin()) {
        return nullptr;
    }
    --it;
    return it->second.holds(address) ? last_found = &it->second : nullptr;
}

// ---- places ----

struct Place {
    uintptr_t pc;
    const char* file;
    int line;
};
static std::vector<Place> places{{0, nullptr, 0}};

uint16_t site_of_pc(uintptr_t pc) {
    static std::unordered_map<uintptr_t, uint16_t> known;
    const auto [it, is_new] = known.try_emplace(pc, (uint16_t)places.size());
    if (is_new) {
        places.push_back({pc, nullptr, 0});
    }
    return it->second;
}
uint16_t site_of_line(const char* file, int line) {
    static std::map<std::pair<const char*, int>, uint16_t> known;
    const auto [it, is_new] = known.try_emplace({file, line}, (uint16_t)places.size());
    if (is_new) {
        places.push_back({0, file, line});
    }
    return it->second;
}
std::string site_text(uint16_t site) {
    const Place& place = places[site];
    if (place.pc != 0) {
        return source_of(place.pc);
    }
    if (place.file == nullptr) {
        return "unknown place";
    }
    const char* name = strrchr(place.file, '/');
    return std::string(name != nullptr ? name + 1 : place.file) + ":" + std::to_string(place.line);
}

// ---- device memory, as the driver tells of it ----

void allocated(const void* p, size_t bytes, int device) {
    constexpr size_t ALIGNMENT = 256;  // of the driver's allocations
    last_found = nullptr;
    global[(uintptr_t)p] = Region{};
    global[(uintptr_t)p].reset((uintptr_t)p, bytes, (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT, device, "device memory");
}
void freed(const void* p) {
    last_found = nullptr;
    global.erase((uintptr_t)p);
}
// Calls `each(region, address, bytes)` for the parts of a range, which mappings side by side may cut.
template <class Each>
static void for_regions(const void* p, size_t bytes, Each each) {
    for (auto at = (uintptr_t)p, end = at + bytes; at < end;) {
        Region* region = find_region(at);
        if (region == nullptr) {
            return;
        }
        const size_t n = std::min(end - at, region->base + region->body - at);
        each(*region, at, n);
        at += n;
    }
}
void written(const void* p, size_t bytes) {
    for_regions(p, bytes, [](Region& region, uintptr_t at, size_t n) { region.set_written(at, n, true); });
}
// Copies carry along what was never written.
void copied(const void* dst, const void* src, size_t bytes) {
    std::vector<bool> was(bytes, true);
    for_regions(src, bytes, [&](Region& region, uintptr_t at, size_t n) {
        for (size_t i = 0; i < n && at + i - region.base < region.bytes; i++) {
            was[at - (uintptr_t)src + i] = region.written[at + i - region.base];
        }
    });
    for_regions(dst, bytes, [&](Region& region, uintptr_t at, size_t n) {
        for (size_t i = 0; i < n && at + i - region.base < region.bytes; i++) {
            region.written[at + i - region.base] = was[at - (uintptr_t)dst + i];
        }
    });
}

}  // namespace emu::race
