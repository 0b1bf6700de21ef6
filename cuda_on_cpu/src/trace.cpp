#include "trace.h"

#include <cstdio>
#include <map>
#include <mutex>
#include <set>

#include "cluster.h"
#include "error.h"

namespace cuda_on_cpu {
namespace trace {
namespace {

constexpr int kMostEvents = 200'000;
constexpr const char* kEnd = "\n]}\n";

struct Writer {
    std::mutex mutex;
    FILE* file = nullptr;
    int events = 0, blocks = 0;
    std::uint64_t steps_before = 0;       // of the clusters that have ended
    std::map<const Block*, int> process;  // of the blocks that run
    std::set<std::pair<int, int>> named;  // rows that have their name
};

Writer& writer() {
    static auto* one = new Writer;
    return *one;
}

std::string quoted(const std::string& text) {
    std::string result = "\"";
    for (const char c : text) {
        if (c == '"' || c == '\\') result += '\\';
        result += c;
    }
    return result + "\"";
}

/// One event, unless there are too many already.
void write(const std::string& event) {
    Writer& all = writer();
    if (all.events == kMostEvents) return;
    const bool last = ++all.events == kMostEvents;
    std::fprintf(all.file, "%s\n%s", all.events == 1 ? "" : ",",
                 last ? "{\"name\":\"cut off: too many events\",\"ph\":\"i\",\"s\":\"g\","
                        "\"pid\":0,\"tid\":0,\"ts\":0}"
                      : event.c_str());
}

std::string head(const char* phase, int process, int row, const std::string& name) {
    return std::string("{\"ph\":\"") + phase + "\",\"pid\":" + std::to_string(process) +
           ",\"tid\":" + std::to_string(row) + ",\"name\":" + quoted(name);
}

std::string name_of(Row row, int number) {
    switch (row) {
        case Row::warp: return "warp " + std::to_string(number);
        case Row::loads: return "TMA loads";
        case Row::stores: return "TMA stores";
        case Row::copies: return "cp.async";
        case Row::products: return "products of warp " + std::to_string(number);
        case Row::phases: return "mbarriers";
    }
    return "";
}

/// The block's process and the row's number; a row gets its name with its first event.
std::pair<int, int> place_of(const Block& block, Row row, int number) {
    Writer& all = writer();
    const std::pair<int, int> place(all.process[&block], int(row) + number);
    if (all.named.insert(place).second)
        write(head("M", place.first, place.second, "thread_name") +
              ",\"args\":{\"name\":" + quoted(name_of(row, number)) + "}}");
    return place;
}

}  // namespace

bool is_on() {
    return writer().file != nullptr;
}

std::uint64_t now(const Block& block) {
    return writer().steps_before + block.cluster().steps();
}

void lasted(const Block& block, const Bar& bar) {
    const std::lock_guard lock(writer().mutex);
    const auto [process, thread] = place_of(block, bar.row, bar.number);
    const std::uint64_t until = bar.end != 0 ? bar.end : now(block);
    const std::uint64_t end = std::max(until, bar.begin + 1);
    write(head("X", process, thread, bar.what) + ",\"ts\":" + std::to_string(bar.begin) +
          ",\"dur\":" + std::to_string(end - bar.begin) + ",\"args\":{\"at\":" +
          quoted(std::string(bar.site.file) + ":" + std::to_string(bar.site.line)) +
          (bar.on.empty() ? "" : ",\"on\":" + quoted(bar.on)) + "}}");
}

void happened(const Block& block, Row row, int number, const std::string& what) {
    const std::lock_guard lock(writer().mutex);
    const auto [process, thread] = place_of(block, row, number);
    write(head("i", process, thread, what) +
          ",\"s\":\"t\",\"ts\":" + std::to_string(now(block)) + "}");
}

void block_begins(const Block& block) {
    Writer& all = writer();
    const std::lock_guard lock(all.mutex);
    const int process = all.process[&block] = ++all.blocks;
    const uint3& index = block.index();
    write(head("M", process, 0, "process_name") + ",\"args\":{\"name\":" +
          quoted(block.launch().name + ", block (" + std::to_string(index.x) + "," +
                 std::to_string(index.y) + "," + std::to_string(index.z) + ")") +
          "}}");
}

void cluster_ends(std::uint64_t steps) {
    writer().steps_before += steps + 1;
}

void launch_ends() {
    // The file is whole after each launch, whatever becomes of the program.
    Writer& all = writer();
    const std::lock_guard lock(all.mutex);
    const long position = std::ftell(all.file);
    std::fputs(kEnd, all.file);
    std::fflush(all.file);
    std::fseek(all.file, position, SEEK_SET);
}

}  // namespace trace

bool trace_to(const std::string& file) {
    trace::Writer& all = trace::writer();
    const std::lock_guard lock(all.mutex);
    if (all.file != nullptr) {
        std::fputs(trace::kEnd, all.file);
        std::fclose(all.file);
        all.file = nullptr;
        all.process.clear();
        all.named.clear();
        all.events = all.blocks = 0;
        all.steps_before = 0;
    }
    if (file.empty()) return true;
    all.file = std::fopen(file.c_str(), "w");
    if (all.file == nullptr) return false;
    std::fputs(
        "{\"otherData\":{\"units\":\"ts and dur count the scheduler's steps, not "
        "time; emulated on a CPU\"},\"traceEvents\":[",
        all.file);
    return true;
}

}  // namespace cuda_on_cpu
