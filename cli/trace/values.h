/// @file
/// Values as `moe trace` prints them: rows of tensors, each with the name of its token
/// and, between dispatch and combine, of its expert.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/config.h"
#include "core/steps.h"
#include "core/tensor.h"

namespace moe {

using Names = std::vector<std::string>;

/// "t0", "t1", …
Names name_tokens(std::int64_t tokens);

/// Rows of the last axis, at most 16 by 16 of them, each with its name if there are any,
/// in as many lines as the terminal needs.
void print_tensor(const std::string& name, const TensorView& tensor,
                  const Names& names = {});

/// Some rows of a tensor, all of which are named; of one axis each value is a row.
void print_rows(const std::string& name, const TensorView& tensor, const Names& names,
                const std::vector<std::int64_t>& rows);

/// Its name and shape alone: it belongs to all tokens together.
void print_summary(const std::string& name, const TensorView& tensor);

/// A heading where a step begins.
void print_step(Step step);

/// A row after dispatch.
struct DispatchedRow {
    std::int64_t token, expert;
};

/// Learns from the values of a run which row is whose.
class RowNames {
  public:
    RowNames(std::int64_t tokens, const MoEConfig& config)
        : tokens_(name_tokens(tokens)),
          sends_tokens_(config.moe_token_dispatcher_type == "allgather") {}

    void learn(const std::string& name, const TensorView& view);

    /// A row for each of the tensor's first axis.
    enum class Rows { tokens, dispatched, none };
    Rows rows_of(Step step, const std::string& name, const TensorView& view) const;
    /// Empty when the rows are none.
    const Names& names_of(Step step, const std::string& name,
                          const TensorView& view) const;

    /// Expert by expert; a row that pads an expert's share is in the routing map too.
    const std::vector<DispatchedRow>& dispatched() const { return rows_; }

  private:
    Names tokens_, names_;
    bool sends_tokens_;  // rows for experts come into being where they arrive
    std::vector<DispatchedRow> rows_;
    std::vector<double> map_;  // (T, E), after dropping
    std::int64_t num_experts_ = 0;
};

}  // namespace moe
