/// @file
/// Streams that hold their work back, for as long as an object lives. Executor only.
#pragma once

#include <cuda_runtime.h>
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <vector>

namespace moe::test {

/// In both of these orders every wait between two streams that is missing shows.
inline constexpr const char* kStreamOrders[] = {"forward", "reverse"};

class HeldStreams {
  public:
    /// @param schedule  whose turn it is among streams, too
    explicit HeldStreams(const char* schedule = "forward")
        : before_(cuda_on_cpu::options()) {
        cuda_on_cpu::options().streams = cuda_on_cpu::Streams::held;
        EXPECT_TRUE(
            cuda_on_cpu::parse_schedule(schedule, cuda_on_cpu::options().schedule));
    }
    ~HeldStreams() {
        cudaDeviceSynchronize();
        cudaGetLastError();
        cuda_on_cpu::options() = before_;
    }
    HeldStreams(const HeldStreams&) = delete;
    HeldStreams& operator=(const HeldStreams&) = delete;

  private:
    cuda_on_cpu::Options before_;
};

/// A stream and an event that end with the test.
struct OwnStream {
    explicit OwnStream(unsigned flags = cudaStreamNonBlocking) {
        cudaStreamCreateWithFlags(&stream, flags);
        cudaEventCreate(&event);
    }
    ~OwnStream() {
        cudaStreamDestroy(stream);
        cudaEventDestroy(event);
    }
    operator cudaStream_t() const { return stream; }
    cudaStream_t stream = nullptr;
    cudaEvent_t event = nullptr;
};

/// Work that writes its letter down when it runs; outlives the streams' work.
class Log {
  public:
    void queue(cudaStream_t stream, char letter) {
        notes_.push_back(std::make_unique<Note>(Note{this, letter}));
        ASSERT_EQ(cudaLaunchHostFunc(
                      stream,
                      [](void* data) {
                          auto* note = static_cast<Note*>(data);
                          note->log->text += note->letter;
                      },
                      notes_.back().get()),
                  cudaSuccess);
    }
    std::string text;

  private:
    struct Note {
        Log* log;
        char letter;
    };
    std::vector<std::unique_ptr<Note>> notes_;
};

}  // namespace moe::test
