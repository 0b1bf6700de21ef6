// rank_processes.cpp: ranks as processes.

#include "cli/ranks/processes.h"

#include <cstdlib>
#include <cstring>
#include <nlohmann/json.hpp>

#include "cli/commands.h"
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

std::vector<std::uint8_t> write(const RankRecord& record) {
    Writer out;
    out.number(std::int64_t(record.values.size()));
    for (const auto& [step, values] : record.values) {
        out.number(std::int64_t(step));
        out.tensors(values);
    }
    out.tensor(record.output);
    out.tensor(record.d_hidden);
    out.tensors(record.gradients);
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
    out.number(record.dense);
    return out.bytes;
}

RankRecord read(const TensorView& bytes) {
    Reader in(bytes);
    RankRecord record;
    for (std::int64_t left = in.number(); left > 0; --left) {
        const auto step = static_cast<Step>(in.number());
        record.values[step] = in.tensors();
    }
    record.output = in.tensor();
    record.d_hidden = in.tensor();
    record.gradients = in.tensors();
    for (std::int64_t steps = in.number(); steps > 0; --steps) {
        auto& bytes_by_peer = record.sent[static_cast<Step>(in.number())];
        for (std::int64_t left = in.number(); left > 0; --left) {
            const int peer = int(in.number());
            bytes_by_peer[peer] = in.number();
        }
    }
    record.host_waits = in.number();
    record.dense = in.number() != 0;
    return record;
}

}  // namespace

int launched_ranks() {
    const auto identity = distributed::identify_rank(
        {}, {}, [](const char* name) { return std::getenv(name); });
    if (!identity)
        reject("--processes", "no launcher",
               "start with mpirun, srun or torchrun, or use --spawn");
    return identity->world_size;
}

int spawn_ranks(int ranks) {
    if (gpu::is_emulated() && !distributed::MpiSession::available())
        reject("--spawn", ranks,
               "this build has no MPI; get it with: apt-get update && apt-get install "
               "libopenmpi-dev openmpi-bin, then configure again");
    std::vector<std::string> command = {"/proc/self/exe"};
    const std::vector<std::string>& arguments = program_arguments();
    for (std::size_t i = 0; i < arguments.size(); ++i) {
        if (arguments[i] == "--spawn")
            ++i;  // and its number
        else if (!arguments[i].starts_with("--spawn="))
            command.push_back(arguments[i]);
    }
    command.push_back("--processes");
    char path[4096] = {};
    if (realpath("/proc/self/exe", path) != nullptr) command[0] = path;
    return gpu::is_emulated() ? distributed::spawn_with_mpirun(ranks, command)
                              : distributed::spawn_processes(ranks, command);
}

int run_as_process(const std::vector<MoEConfig>& configs,
                   const std::function<int(distributed::Communicator& world)>& program) {
    distributed::LaunchOptions options;
    nlohmann::ordered_json fingerprint;
    for (const MoEConfig& config : configs)
        fingerprint[config.moe_token_dispatcher_type] = config_to_json(config);
    options.fingerprint = fingerprint.dump();
    options.deadline = std::chrono::minutes(5);  // ranks may share a few cores
    options.gpus = !gpu::is_emulated();
    int code = kExitOk;
    const int failed =
        distributed::run_as_rank(options, [&](distributed::Communicator& world) {
            code = program(world);
            return 0;  // a difference is a result, not a failure of the ranks
        });
    return failed != 0 ? failed : code;
}

std::vector<RankRecord> gather_records(distributed::Communicator& world,
                                       const RankRecord& mine) {
    const std::vector<std::uint8_t> bytes = write(mine);
    const auto size = std::int64_t(bytes.size());
    const Tensor sizes = distributed::gather_from_sequence_parallel_region(
        world, Tensor::from<std::int64_t>({1}, {size}));
    const std::int64_t* first_size = sizes.data<std::int64_t>();
    const distributed::Splits splits(first_size, first_size + world.size());
    const Tensor all = distributed::gather_from_sequence_parallel_region(
        world, Tensor::from({size}, bytes), splits);
    std::vector<RankRecord> records;
    std::int64_t first = 0;
    for (const std::int64_t part : splits) {
        records.push_back(read(distributed::rows_of(all, first, part)));
        first += part;
    }
    return records;
}

}  // namespace moe
