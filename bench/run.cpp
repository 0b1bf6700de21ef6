#include "bench/run.h"

#include <algorithm>
#include <cmath>
#include <map>

#include "bench/calibration.h"
#include "bench/eigen_products.h"
#include "bench/result_words.h"
#include "bench/roofline.h"
#include "bench/timing.h"
#include "core/buffer_pool.h"
#include "core/kept_bytes.h"
#include "gpu/counters.h"

namespace moe::bench {
namespace {

/// A measurement with what it takes to time it.
struct Candidate {
    Measurement measurement;
    Stopwatch* stopwatch = nullptr;  // null: never timed
    std::function<void()> prepare, run;
    bool on_device = false;
    std::vector<KernelCost> kernels;
};

/// What is asked of the device from its construction to add_to().
class CountedRun {
  public:
    CountedRun() {
        gpu::reset_peak();
        before_ = gpu::counters();
    }
    void add_to(Measurement& m) {
        const gpu::Counters now = gpu::counters();
        m.launches = now.launches - before_.launches;
        m.host_waits = now.host_waits - before_.host_waits;
        m.peak_device_bytes = now.peak_bytes - before_.bytes;
        peak_ = now.peak_bytes;
    }
    std::int64_t start() const { return before_.bytes; }
    std::int64_t peak() const { return peak_; }

  private:
    gpu::Counters before_;
    std::int64_t peak_ = 0;
};

void take_worse(Measurement& m, const Deviation& deviation) {
    // The pass with the larger share of its bound speaks for both
    if (m.bound == 0.0 || deviation.error / deviation.bound > m.error / m.bound) {
        m.error = deviation.error;
        m.bound = deviation.bound;
    }
}

class Bench {
  public:
    explicit Bench(const BenchRequest& request) : request_(request) {}

    BenchOutcome run() {
        request_.progress("drawing weights and tokens");
        Inputs inputs = make_inputs(request_.config, request_.routing, request_.tokens,
                                    request_.seed);
        request_.progress("the reference: every value");
        reference_ =
            run_reference(request_.config, std::move(inputs), request_.reference_dtype);
        outcome_.run.reference = to_string(reference_.supplier);
        outcome_.run.workload =
            describe_workload(reference_, request_.model, request_.routing_name);

        for (const ModuleSpec& spec : request_.specs)
            for (const std::string& subject : request_.subjects)
                add_part(subject, spec, request_.passes);
        const std::size_t in_ladder = candidates_.size();
        for (const ModuleSpec& spec : request_.waterfall)
            add_part("layer", spec, {"both"});
        if (times_the_host_alone()) add_peer();
        time_all();

        for (std::size_t i = 0; i < candidates_.size(); ++i) {
            const bool falls =
                i >= in_ladder && i < in_ladder + request_.waterfall.size();
            (falls ? outcome_.run.waterfall : outcome_.run.measurements)
                .push_back(candidates_[i].measurement);
        }
        return std::move(outcome_);
    }

  private:
    /// Runs a part once, holds it against the reference, and counts; then each pass is a
    /// candidate for timing.
    void add_part(const std::string& subject, const ModuleSpec& spec,
                  const std::vector<std::string>& passes) {
        request_.progress(
            fmt::format("{}, {}: against the reference", to_string(spec), subject));
        parts_.push_back(make_part(subject, spec, reference_));
        Part& part = *parts_.back();
        part.release_backward();
        std::map<std::string, Measurement> counted;
        CountedRun forward;
        part.forward();
        forward.add_to(counted["forward"]);
        const Deviation forward_deviation = part.forward_deviation();
        CountedRun backward;
        part.backward();
        backward.add_to(counted["backward"]);
        const Deviation backward_deviation = part.backward_deviation();
        // Both together hold the most when either does, seen from before the forward
        Measurement& both = counted["both"] = counted["forward"];
        both.launches += counted["backward"].launches;
        both.host_waits += counted["backward"].host_waits;
        both.peak_device_bytes =
            std::max(both.peak_device_bytes, backward.peak() - forward.start());
        for (const char* pass : {"forward", "both"})
            take_worse(counted[pass], forward_deviation);
        for (const char* pass : {"backward", "both"})
            take_worse(counted[pass], backward_deviation);
        bool ok = true;
        for (const Deviation* deviation : {&forward_deviation, &backward_deviation})
            if (!deviation->ok()) {
                ok = false;
                outcome_.failures.push_back(fmt::format("{}, {}: {}", to_string(spec),
                                                        subject, deviation->detail));
            }
        if (subject == "layer") {
            const std::int64_t bytes = part.kept_bytes();
            const Floor kept = kept_by_formula(reference_.config, reference_.sizes, spec);
            for (auto& [pass, measurement] : counted) {
                measurement.kept_bytes = bytes;
                measurement.kept_bytes_by_formula = kept.bytes;
                measurement.kept_formula = kept.formula;
            }
        }
        for (const std::string& pass : passes) {
            Candidate candidate =
                candidate_of(part, subject, pass, spec, counted.at(pass));
            if (!ok) candidate.stopwatch = nullptr;
            candidates_.push_back(std::move(candidate));
        }
        part.release_backward();
        part.release_forward();
    }

    Candidate candidate_of(Part& part, const std::string& subject,
                           const std::string& pass, const ModuleSpec& spec,
                           Measurement measurement) {
        Candidate c;
        c.measurement = std::move(measurement);
        c.measurement.subject = subject;
        c.measurement.pass = pass;
        c.measurement.spec = to_string(spec);
        c.measurement.emulated = spec.is_emulated();
        c.on_device = spec.uses_device();
        c.kernels = kernels_of(subject, pass, reference_.config, reference_.sizes,
                               spec.coarsest_dtype());
        c.measurement.flops = total_flops(c.kernels);
        c.measurement.bytes = total_bytes(c.kernels);
        if (!c.measurement.emulated) c.stopwatch = &stopwatch(c.on_device);
        if (pass == "backward") {
            // Needs what a forward keeps; the samples before may have freed it
            c.prepare = [&part] {
                part.release_backward();
                part.release_forward();
                part.forward();
            };
            c.run = [&part] { part.backward(); };
        } else {
            c.prepare = [&part] {
                part.release_backward();
                part.release_forward();
            };
            c.run = [&part, both = pass == "both"] {
                part.forward();
                if (both) part.backward();
            };
        }
        return c;
    }

    /// The experts' products alone, on the CPU.
    void add_peer() {
        if (std::count(request_.subjects.begin(), request_.subjects.end(), "experts") ==
            0)
            return;
        const Tensor& counts = reference_.at("tokens_per_expert");
        const std::int32_t* rows = counts.data<std::int32_t>();
        peer_ = std::make_unique<EigenProducts>(
            reference_.config, std::vector<std::int64_t>(rows, rows + counts.numel()));
        for (const std::string& pass : request_.passes) {
            Candidate c;
            c.measurement.subject = "experts";
            c.measurement.pass = pass;
            c.measurement.spec = "Eigen's products:fp32";
            c.kernels = kernels_of("experts", pass, reference_.config, reference_.sizes,
                                   DType::f32);
            c.measurement.flops = total_flops(c.kernels);
            c.measurement.bytes = total_bytes(c.kernels);
            c.stopwatch = &stopwatch(false);
            c.prepare = [] {};
            c.run = [this, pass] {
                if (pass != "backward") peer_->forward();
                if (pass != "forward") peer_->backward();
            };
            candidates_.push_back(std::move(c));
        }
    }

    void time_all() {
        std::vector<TimedWork> works;
        std::vector<Candidate*> timed;
        for (Candidate& c : candidates_) {
            if (c.stopwatch == nullptr) continue;
            timed.push_back(&c);
            works.push_back({c.measurement.spec + ", " + c.measurement.subject + " " +
                                 c.measurement.pass,
                             c.stopwatch, c.prepare, c.run});
        }
        if (works.empty()) return;
        const bool on_device = !times_the_host_alone();
        request_.progress("calibrating");
        const auto calibrator =
            on_device ? make_device_calibrator() : make_host_calibrator();
        if (const std::string missing = calibrator->missing(); !missing.empty())
            outcome_.notes.push_back("no calibrating product: " + missing);
        Run& run = outcome_.run;
        run.product = calibrator->product();
        run.before = calibrator->measure();
        TimingPlan plan;
        plan.seconds = request_.seconds;
        plan.seed = request_.seed;
        plan.progress = request_.progress;
        // A training step finds its memory where the step before left it; else fresh pages
        // and cudaMalloc() would be timed as well.
        BufferPool pool;
        const BufferPool::Scope scope(pool);
        const std::vector<Timing> timings = time_interleaved(works, plan);
        request_.progress("calibrating again");
        run.after = calibrator->measure();
        const Calibration best = ceilings(run).value();
        for (std::size_t i = 0; i < timed.size(); ++i) {
            timed[i]->measurement.ms = timings[i];
            if (timed[i]->on_device == on_device)
                timed[i]->measurement.floor_ms = floor_ms(timed[i]->kernels, best);
        }
    }

    Stopwatch& stopwatch(bool on_device) {
        auto& slot = on_device ? device_stopwatch_ : host_stopwatch_;
        if (slot == nullptr)
            slot = on_device ? make_device_stopwatch() : make_host_stopwatch();
        return *slot;
    }

    /// True when something can be timed, and nothing of it runs on a device.
    bool times_the_host_alone() const {
        const auto timed_on = [&](bool device) {
            return std::any_of(candidates_.begin(), candidates_.end(),
                               [&](const Candidate& c) {
                                   return c.stopwatch != nullptr && c.on_device == device;
                               });
        };
        return timed_on(false) && !timed_on(true);
    }

    const BenchRequest& request_;
    Reference reference_;
    std::vector<std::unique_ptr<Part>> parts_;
    std::unique_ptr<EigenProducts> peer_;
    std::unique_ptr<Stopwatch> host_stopwatch_, device_stopwatch_;
    std::vector<Candidate> candidates_;
    BenchOutcome outcome_;
};

}  // namespace

BenchOutcome run_bench(const BenchRequest& request) {
    return Bench(request).run();
}

std::vector<ModuleSpec> waterfall_specs(const std::vector<ComponentSpec>& suppliers) {
    std::vector<ModuleSpec> specs;
    for (std::size_t i = 0; i < suppliers.size(); ++i) {
        if (i < 2) {
            specs.push_back(ModuleSpec::uniform(suppliers[i]));
            continue;
        }
        ModuleSpec spec = specs.back();
        for (ComponentSpec ModuleSpec::*component :
             {&ModuleSpec::router, &ModuleSpec::dispatcher, &ModuleSpec::experts,
              &ModuleSpec::shared_experts}) {
            spec.*component = suppliers[i];
            specs.push_back(spec);
        }
    }
    return specs;
}

}  // namespace moe::bench
