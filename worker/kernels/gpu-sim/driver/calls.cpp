#include "calls.h"

#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <vector>

#include "state.h"

namespace driver {

std::mutex mutex;

struct Injection {
    std::string function;
    uint64_t left;  // calls until it strikes
    int code;
};

// All of this is guarded by `mutex`.
static std::map<std::string, uint64_t> counts;
static uint64_t total;
static std::vector<Injection> injections;
static bool logging;
static std::vector<std::string> log_lines;
constexpr size_t MOST_LOG_LINES = 200000;

static thread_local bool in_host_function = false;

InHostFunction::InHostFunction() { in_host_function = true; }
InHostFunction::~InHostFunction() { in_host_function = false; }

// CUDASIM_FAIL=function:nth:code[,...]
static void read_environment() {
    const char* given = getenv("CUDASIM_FAIL");
    std::string rest = given != nullptr ? given : "";
    while (!rest.empty()) {
        const size_t comma = rest.find(',');
        const std::string one = rest.substr(0, comma);
        rest = comma == std::string::npos ? "" : rest.substr(comma + 1);
        char function[80];
        unsigned long long nth;
        int code;
        if (sscanf(one.c_str(), "%79[^:]:%llu:%d", function, &nth, &code) == 3) {
            injections.push_back({function, nth, code});
        } else {
            fprintf(stderr, "cudasim: CUDASIM_FAIL has '%s', which is not function:nth:code\n", one.c_str());
        }
    }
    if (const char* path = getenv("CUDASIM_LOG")) {
        logging = true;
        static const std::string file = path;
        atexit([] {
            FILE* out = file == "-" ? stderr : fopen(file.c_str(), "w");
            if (out != nullptr) {
                fputs(logged_calls().c_str(), out);
                fflush(out);
            }
        });
    }
}

static int count(const char* name) {
    static bool first = true;
    if (first) {
        first = false;
        read_environment();
    }
    counts[name]++;
    total++;
    if (logging && log_lines.size() < MOST_LOG_LINES) {
        log_lines.emplace_back(name);
    }
    for (size_t i = 0; i < injections.size(); i++) {
        Injection& injection = injections[i];
        if ((injection.function == "*" || injection.function == name) && --injection.left == 0) {
            const int code = injection.code;
            injections.erase(injections.begin() + (long)i);
            if (logging) {
                log_lines.back() += " (made to fail)";
            }
            return code;
        }
    }
    return SUCCESS;
}

Call::Call(const char* name, Needs needs) {
    if (in_host_function) {
        fprintf(stderr, "cudasim: %s is called from a host function of a stream\n", name);
        refused_ = NOT_PERMITTED;
        return;
    }
    lock_ = std::unique_lock<std::mutex>(mutex);
    refused_ = count(name);
    if (refused_ != SUCCESS || needs == Needs::Nothing) {
        return;
    }
    if (!initialized) {
        refused_ = NOT_INITIALIZED;
        return;
    }
    device_ = current_context;
    if (needs == Needs::Context) {
        refused_ = device_ == nullptr ? INVALID_CONTEXT : device_->sticky;
    }
}

void Call::detail(const char* format, ...) {
    if (!logging || log_lines.empty()) {
        return;
    }
    char text[400];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    log_lines.back() += ' ';
    log_lines.back() += text;
}

int count_library_call(const char* name) {
    const std::lock_guard<std::mutex> lock(mutex);
    return count(name);
}

void inject(const std::string& function, uint64_t nth, int code) {
    if (nth > 0) {
        injections.push_back({function, nth, code});
    }
}
void inject_nothing() { injections.clear(); }
uint64_t calls_of(const std::string& function) {
    if (function == "*") {
        return total;
    }
    const auto it = counts.find(function);
    return it == counts.end() ? 0 : it->second;
}
void log_calls(bool on) { logging = on; }
std::string logged_calls() {
    std::string text;
    for (const std::string& line : log_lines) {
        text += line + "\n";
    }
    return text;
}
void forget_logged_calls() { log_lines.clear(); }

}  // namespace driver
