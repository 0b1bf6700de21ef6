// processes.cpp: ranks as processes.

#include "cli/ranks/processes.h"

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <nlohmann/json.hpp>

#include "cli/commands.h"
#include "cli/ranks/asked.h"
#include "distributed/communicators/mpi_communicator.h"
#include "distributed/launch/launch.h"
#include "distributed/mappings.h"
#include "gpu/tensor.h"

namespace moe {
namespace {

/// A record as bytes, for the other ranks.
class Writer {
  public:
    void number(std::int64_t value) { raw(&value, sizeof value); }
    void text(const std::string& value) {
        number(std::int64_t(value.size()));
        raw(value.data(), value.size());
    }
    void tensor(const Tensor& value) {
        number(std::int64_t(value.dtype()));
        number(std::int64_t(value.shape().size()));
        for (const std::int64_t size : value.shape()) number(size);
        raw(value.view().bytes, value.size_bytes());
    }
    void tensors(const TensorMap& map) {
        number(std::int64_t(map.size()));
        for (const auto& [name, value] : map) {
            text(name);
            tensor(value);
        }
    }
    std::vector<std::uint8_t> bytes;

  private:
    void raw(const void* data, std::size_t count) {
        const auto* first = static_cast<const std::uint8_t*>(data);
        bytes.insert(bytes.end(), first, first + count);
    }
};

/// The same bytes as a record again.
class Reader {
  public:
    explicit Reader(const TensorView& bytes) : at_(bytes.data<std::uint8_t>()) {}
    std::int64_t number() {
        std::int64_t value = 0;
        raw(&value, sizeof value);
        return value;
    }
    std::string text() {
        std::string value(number(), ' ');
        raw(value.data(), value.size());
        return value;
    }
    Tensor tensor() {
        const auto dtype = static_cast<DType>(number());
        Shape shape(number());
        for (std::int64_t& size : shape) size = number();
        Tensor value = Tensor::empty(shape, dtype);
        raw(value.view().bytes, value.size_bytes());
        return value;
    }
    TensorMap tensors() {
        TensorMap map;
        for (std::int64_t left = number(); left > 0; --left) {
            const std::string name = text();
            map[name] = tensor();
        }
        return map;
    }

  private:
    void raw(void* data, std::size_t count) {
        if (count > 0) std::memcpy(data, at_, count);
        at_ += count;
    }
    const std::uint8_t* at_;
};

void write(Writer& out, const gpu::LogEntry& entry) {
    out.number(std::int64_t(entry.kind));
    out.text(entry.name);
    for (const int value : {entry.stream, entry.other, int(entry.on_host),
                            int(entry.backward), int(entry.members.size())})
        out.number(value);
    for (const int member : entry.members) out.number(member);
}

gpu::LogEntry read_entry(Reader& in) {
    gpu::LogEntry entry;
    entry.kind = static_cast<gpu::LogEntry::Kind>(in.number());
    entry.name = in.text();
    entry.stream = int(in.number());
    entry.other = int(in.number());
    entry.on_host = in.number() != 0;
    entry.backward = in.number() != 0;
    entry.members.resize(in.number());
    for (int& member : entry.members) member = int(in.number());
    return entry;
}

void write(Writer& out, const RankRecord& record) {
    out.number(std::int64_t(record.values.size()));
    for (const auto& [step, values] : record.values) {
        out.number(std::int64_t(step));
        out.tensors(values);
    }
    out.tensor(record.output);
    out.tensor(record.d_hidden);
    out.tensors(record.gradients);
    out.tensors(record.losses);
    out.number(std::int64_t(record.sent.size()));
    for (const auto& [step, bytes_by_peer] : record.sent) {
        out.number(std::int64_t(step));
        out.number(std::int64_t(bytes_by_peer.size()));
        for (const auto& [peer, bytes] : bytes_by_peer) {
            out.number(peer);
            out.number(bytes);
        }
    }
    out.number(record.host_waits);
    for (const auto count : kCountsAsked) out.number(record.asked.counts.*count);
    out.number(std::int64_t(record.asked.log.size()));
    for (const gpu::LogEntry& entry : record.asked.log) write(out, entry);
    out.number(record.dropped_rows);
    out.number(record.dense);
}

RankRecord read_record(Reader& in) {
    RankRecord record;
    for (std::int64_t left = in.number(); left > 0; --left) {
        const auto step = static_cast<Step>(in.number());
        record.values[step] = in.tensors();
    }
    record.output = in.tensor();
    record.d_hidden = in.tensor();
    record.gradients = in.tensors();
    record.losses = in.tensors();
    for (std::int64_t steps = in.number(); steps > 0; --steps) {
        auto& bytes_by_peer = record.sent[static_cast<Step>(in.number())];
        for (std::int64_t left = in.number(); left > 0; --left) {
            const int peer = int(in.number());
            bytes_by_peer[peer] = in.number();
        }
    }
    record.host_waits = in.number();
    for (const auto count : kCountsAsked) record.asked.counts.*count = in.number();
    record.asked.log.resize(in.number());
    for (gpu::LogEntry& entry : record.asked.log) entry = read_entry(in);
    record.dropped_rows = in.number();
    record.dense = in.number() != 0;
    return record;
}

std::vector<std::uint8_t> write(const RankStep& step) {
    Writer out;
    out.number(std::int64_t(step.micro_batches.size()));
    for (const RankRecord& record : step.micro_batches) write(out, record);
    out.tensors(step.main_grads);
    out.tensors(step.updated);
    return out.bytes;
}

RankStep read(const TensorView& bytes) {
    Reader in(bytes);
    RankStep step;
    for (std::int64_t left = in.number(); left > 0; --left)
        step.micro_batches.push_back(read_record(in));
    step.main_grads = in.tensors();
    step.updated = in.tensors();
    return step;
}

/// What every rank's bytes read as, by rank.
template <typename Read>
auto gather(distributed::Communicator& world, const std::vector<std::uint8_t>& bytes,
            Read read) {
    const auto size = std::int64_t(bytes.size());
    const Tensor sizes = distributed::gather_from_sequence_parallel_region(
        world, Tensor::from<std::int64_t>({1}, {size}));
    const std::int64_t* first_size = sizes.data<std::int64_t>();
    const distributed::Splits splits(first_size, first_size + world.size());
    const Tensor all = distributed::gather_from_sequence_parallel_region(
        world, Tensor::from({size}, bytes), splits);
    std::vector<decltype(read(all.view()))> records;
    std::int64_t first = 0;
    for (const std::int64_t part : splits) {
        records.push_back(read(distributed::rows_of(all, first, part)));
        first += part;
    }
    return records;
}

int largest_of_all(distributed::Communicator& world, int code) {
    const Tensor codes = distributed::gather_from_sequence_parallel_region(
        world, Tensor::from<std::int64_t>({1}, {code}));
    const std::int64_t* first = codes.data<std::int64_t>();
    return int(*std::max_element(first, first + world.size()));
}

/// Every rank goes the same way, and says the same.
void be_silent() {
    if (std::freopen("/dev/null", "w", stdout) == nullptr)
        reject("/dev/null", std::strerror(errno), "must be there to be written to");
}

}  // namespace

int launched_ranks(const RankFlags& flags) {
    const auto identity = distributed::identify_rank(
        flags.rank, flags.world_size, [](const char* name) { return std::getenv(name); });
    if (!identity)
        reject("--processes", "no launcher",
               "start with mpirun, srun or torchrun, use --spawn, or give --rank and "
               "--world-size");
    return identity->world_size;
}

int spawn_ranks(int ranks) {
    if (gpu::is_emulated() && !distributed::MpiSession::available())
        reject("--spawn", ranks,
               "this build has no MPI; get it with: apt-get update && apt-get install "
               "libopenmpi-dev openmpi-bin, then configure again");
    std::vector<std::string> command = {"/proc/self/exe"};
    const std::vector<std::string>& arguments = program_arguments();
    // In its place: what comes before may be a list, which ends here
    for (std::size_t i = 0; i < arguments.size(); ++i) {
        const bool spawn = arguments[i] == "--spawn";
        const bool with_number = arguments[i].starts_with("--spawn=");
        command.push_back(spawn || with_number ? "--processes" : arguments[i]);
        if (spawn) ++i;  // its number
    }
    char path[4096] = {};
    if (realpath("/proc/self/exe", path) != nullptr) command[0] = path;
    return gpu::is_emulated() ? distributed::spawn_with_mpirun(ranks, command)
                              : distributed::spawn_processes(ranks, command);
}

std::string in_words(const std::vector<MoEConfig>& configs) {
    nlohmann::ordered_json words;
    for (const MoEConfig& config : configs)
        words[config.moe_token_dispatcher_type] = config_to_json(config);
    return words.dump();
}

int run_as_process(const RankFlags& flags, const std::string& asked_for,
                   const std::function<int(distributed::Communicator& world)>& program) {
    distributed::LaunchOptions options;
    options.rank = flags.rank;
    options.world_size = flags.world_size;
    options.fingerprint = asked_for;
    options.deadline = std::chrono::minutes(5);  // ranks may share a few cores
    options.gpus = !gpu::is_emulated();
    int code = kExitOk;
    const int failed =
        distributed::run_as_rank(options, [&](distributed::Communicator& world) {
            if (world.rank() != 0) be_silent();
            code = largest_of_all(world, program(world));
            return 0;  // a difference is a result, not a failure of the ranks
        });
    return failed != 0 ? failed : code;
}

std::vector<RankStep> gather_steps(distributed::Communicator& world,
                                   const RankStep& mine) {
    return gather(world, write(mine), read);
}

std::vector<TensorMap> gather_tensors(distributed::Communicator& world,
                                      const TensorMap& mine) {
    Writer out;
    out.tensors(mine);
    return gather(world, out.bytes,
                  [](const TensorView& bytes) { return Reader(bytes).tensors(); });
}

}  // namespace moe
