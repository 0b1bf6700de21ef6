#include "core/past_cache.h"

#ifdef __SSE2__
#include <emmintrin.h>
#endif

#include <cstdint>
#include <cstring>

namespace moe {
namespace {

constexpr std::size_t kCacheBytes = std::size_t(8) << 20;  // a core's, about

void copy_through_cache(void* target, const void* source, std::size_t bytes) {
    if (bytes > 0) std::memcpy(target, source, bytes);
}

// TUTORIAL: an ordinary store reads the line of memory that it is about to overwrite, so
// that a copy moves three bytes for each one. A streaming store collects a whole line and
// writes it without reading; what it wrote is then in memory, not in the cache.
void copy_past_cache(void* target, const void* source, std::size_t bytes) {
#ifdef __SSE2__
    constexpr std::size_t kWord = sizeof(__m128i);
    if (reinterpret_cast<std::uintptr_t>(target) % kWord == 0) {
        auto* to = static_cast<__m128i*>(target);
        const auto* from = static_cast<const __m128i*>(source);
        for (; bytes >= kWord; bytes -= kWord)
            _mm_stream_si128(to++, _mm_loadu_si128(from++));
        _mm_sfence();  // others may read it from here on
        target = to;
        source = from;
    }
#endif
    copy_through_cache(target, source, bytes);
}

}  // namespace

CopyBytes copy_for(std::size_t total) {
    return total > kCacheBytes ? copy_past_cache : copy_through_cache;
}

}  // namespace moe
