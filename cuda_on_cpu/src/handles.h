/// @file
/// Streams, events and graphs are handed out as pointers: which of them exist.
#pragma once

#include <mutex>
#include <set>
#include <string>
#include <utility>

#include "error.h"

namespace cuda_on_cpu {

inline std::mutex handles_mutex;
inline std::set<const void*> handles;

inline cudaError_t check_handle(const char* function, const void* handle) {
    const std::lock_guard lock(handles_mutex);
    if (handles.contains(handle)) return cudaSuccess;
    return set_error(cudaErrorInvalidResourceHandle,
                     std::string(function) + ": no such stream, event or graph");
}

template <typename Handle>
void make(Handle** handle, Handle content) {
    *handle = new Handle(std::move(content));
    const std::lock_guard lock(handles_mutex);
    handles.insert(*handle);
}

template <typename Handle>
cudaError_t destroy(const char* function, Handle* handle) {
    if (const cudaError_t error = check_handle(function, handle)) return error;
    {
        const std::lock_guard lock(handles_mutex);
        handles.erase(handle);
    }
    delete handle;
    return cudaSuccess;
}

}  // namespace cuda_on_cpu
