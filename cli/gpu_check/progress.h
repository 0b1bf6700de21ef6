/// @file
/// What `moe gpu-check` says while it runs, and at its end.
#pragma once

#include <string>
#include <vector>

#include "cli/gpu_check/evidence.h"

namespace moe::gpu_check {

/// On a terminal one line that counts the seconds; into a pipe a line when a stage starts
/// and one when it has ended.
class Progress {
  public:
    Progress();
    void begin(const std::string& stage, double budget);
    void tick(const std::string& what, double seconds);
    void end(const Record& record);

  private:
    bool terminal_;
    std::string stage_;
    double budget_ = 0.0;
    int shown_second_ = -1;
};

/// One screen: a row for each stage, then where the files are and how to file them.
/// @param names  all stages that were asked for, by number; those without a record did
///               not run
void print_summary(const std::map<int, std::string>& names, const Evidence& evidence,
                   double seconds);

}  // namespace moe::gpu_check
