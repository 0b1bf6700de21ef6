/// @file
/// Flags that several subcommands share: the layer's config by Megatron's flag names, the
/// sizes of the input, tiers, precisions and threads.
#pragma once

#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "cli/flags.h"
#include "core/config.h"
#include "core/module_spec.h"
#include "core/tier.h"

namespace moe {

/// Flags that describe a layer and its input.
class LayerOptions {
  public:
    /// Where a command starts when the user says nothing.
    struct Defaults {
        std::string preset;  ///< of preset(), or the name of `config`
        std::int64_t scale, seq_length, micro_batch_size;
        std::optional<MoEConfig> config = {};  ///< instead of a preset
    };
    /// Adds --preset, --scale, --config, --megatron-args, every config field,
    /// --seq-length, --micro-batch-size and --seed to `command`.
    LayerOptions(Command& command, Defaults defaults);

    /// Where to start instead, for a command that knows better only when it runs.
    void set_defaults(Defaults defaults) { defaults_ = std::move(defaults); }

    const Defaults& defaults() const { return defaults_; }
    /// The flag by which the user says where to start, "--preset"; "" without one.
    std::string start_flag() const;

    struct Chosen {
        MoEConfig config;             ///< not finalized
        std::set<std::string> given;  ///< fields that the user named, in a file or a flag
    };
    /// The preset, the file of --config or the arguments of --megatron-args, with the
    /// flags on top. Reads the file. The first time that arguments are read it says on
    /// stderr what of them is not taken.
    Chosen choose() const;
    /// The same, finalized.
    MoEConfig config() const;
    /// E.g. "mixtral_8x7b, widths / 16, changed: num_moe_experts 8 → 16". How ranks
    /// share it is no change of the layer. Reads the file of --config if flags change it.
    std::string model() const;
    std::int64_t seq_length() const;
    /// Ranks will share the layer: what pasted arguments say of that is taken as well.
    void share_among_ranks() { ranks_ = true; }
    bool seq_length_given() const { return seq_length_.has_value(); }
    std::int64_t micro_batch_size() const;
    bool micro_batch_size_given() const { return micro_batch_size_.has_value(); }
    std::uint64_t seed() const { return seed_; }

  private:
    /// Config fields as flags give them.
    struct FieldFlags {
        std::map<std::string, std::vector<std::string>> texts;  // by field name
        std::map<std::string, bool> booleans;                   // those given
        bool swiglu = false, squared_relu = false, quick_geglu = false;
        bool recompute_activations = false, moe_layer_recompute = false;
        bool any() const;
        void apply(Chosen& chosen) const;
    };
    void add_field_flags(Command& command);
    /// Where the flags start from.
    Chosen start() const;
    Chosen start_from_script() const;
    std::string changes() const;

    Defaults defaults_;
    std::optional<std::string> preset_, config_path_, megatron_args_;
    std::optional<std::int64_t> scale_, seq_length_, micro_batch_size_;
    std::uint64_t seed_ = 1234;
    FieldFlags flags_;
    bool ranks_ = false;
    mutable bool told_ = false;  // what is not taken of megatron_args_
};

/// Megatron's flag for a config field: "moe_router_topk" gives "--moe-router-topk".
std::string flag_name(const std::string& field);

/// The flag that turns a boolean field off.
std::string opposite_name(const std::string& field);

/// Whether a field says how ranks share a layer, which is no part of the layer.
/// @param values  given to the field, if known: of all dispatchers only flex needs ranks
bool is_of_ranks(const std::string& field, const std::vector<std::string>& values = {});

/// The suppliers that --spec names; `otherwise` for the rest. InputError naming the flag.
ModuleSpec parse_spec(const std::string& spec, const ComponentSpec& otherwise);

/// What --tier and --dtype may be, for a shell to offer.
std::vector<std::string> tier_names();
std::vector<std::string> dtype_names();

/// Adds --threads; applies it when parsed.
void add_threads_flag(Command& command);

/// Adds --grouped-gemm-rung; applies it when parsed.
void add_rung_flag(Command& command);

/// Suppliers for --tier and --dtype: every dtype of every chosen tier. Empty lists mean
/// all that can run here, and do this layer; a note on stderr names the others.
/// InputError for a tier or dtype that is not there, or a named tier that cannot.
/// @param config  of the layer, or null: any
std::vector<ComponentSpec> choose_suppliers(const std::vector<std::string>& tiers,
                                            const std::vector<std::string>& dtypes,
                                            const MoEConfig* config = nullptr);

/// Why a tier cannot do a layer, or nothing.
std::string refusal(const Tier& tier, const MoEConfig& config);

}  // namespace moe
