#include "restore/execute.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>

#include "persist/base/checked.h"
#include "restore/block.h"

namespace holdfast::restore {
namespace {

constexpr uint64_t kProgressEvery = 65536;

uint64_t now_ns() {
  return static_cast<uint64_t>(std::chrono::duration_cast<std::chrono::nanoseconds>(
                                   std::chrono::steady_clock::now().time_since_epoch())
                                   .count());
}

std::string container_object(const std::string& name) {
  return fmt::format("container {}", name);
}

/// Counts the calls that leave this file, and tells the test that wants to kill at one of them.
class Points {
 public:
  explicit Points(const std::function<void(uint64_t)>& hook) : hook_(hook) {}
  void pass() {
    if (hook_) hook_(next_);
    ++next_;
  }

 private:
  const std::function<void(uint64_t)>& hook_;
  uint64_t next_ = 0;
};

/// One container being taken up: what has been done so far, so that it can be undone.
class Attempt {
 public:
  Attempt(const Plan& plan, const ContainerPlan& container, kernel::Port& port, Custody& custody,
          RestoreLog* log, Points& points)
      : plan_(plan),
        container_(container),
        port_(serving(port, container)),
        custody_(custody),
        log_(log),
        points_(points) {
    restored_.name = container.name;
    restored_.strategy = container.strategy;
    restored_.in_owner = !container.in_owner.empty();
    settled_ = container.strategy == Strategy::kSettled;
  }

  Result<void> run(const Step& step, const std::function<void(uint64_t)>& mapped) {
    switch (step.verb) {
      case Verb::kOpenRegion:
        return open_region(step);
      case Verb::kOpenContainer:
        return open_container(step);
      case Verb::kAttachGroup:
        return attach_group(step);
      case Verb::kCheckLimits:
        return check_limits();
      case Verb::kMapRanges:
        return map_ranges(step, mapped);
      case Verb::kOpenDevice:
        return open_device(step);
      case Verb::kDeposit:
        return deposit();
      case Verb::kCommit:
        return commit();
      case Verb::kLogDone:
        points_.pass();
        return log_ == nullptr ? Result<void>() : log_->done(container_.name);
    }
    return fail(container_object(container_.name), "the plan holds a step of no known kind");
  }

  /// Takes back everything, newest first. What could not be taken back is in the error.
  Result<void> undo() {
    restored_.devices.clear();
    Result<void> outcome;
    uint64_t left = mapped_;
    // In the order of the table: unmapping has no order, and the table can only be read forward
    // without a lookup per entry.
    container_.table.for_each(0, mapped_, [&](const Mapping& mapping) {
      points_.pass();
      Result<void> one;
      if (mode_ == kernel::MapMode::kAdopt) {
        one = port_.forget(restored_.container, mapping.iova, mapping.size);
      } else if (auto bytes = port_.unmap(restored_.container, mapping.iova, mapping.size);
                 !bytes) {
        one = std::unexpected(std::move(bytes).error());
      }
      if (one) --left;
      if (!one && outcome) outcome = std::move(one);
      return true;
    });
    if (!outcome)
      outcome.error().details.push_back(
          fmt::format("roll-back: {} of {} ranges are still registered", left, mapped_));
    mapped_ = 0;
    restored_.groups.clear();
    restored_.container.reset();
    restored_.memory.clear();
    return outcome;
  }

  /// After the deposit: takes the container back out of custody, so that undo() can undo it.
  Result<void> withdraw() {
    points_.pass();
    HOLDFAST_TRY_ASSIGN(restored_, custody_.withdraw(container_.name));
    return {};
  }

  [[nodiscard]] uint64_t mapped() const { return mapped_; }

 private:
  [[nodiscard]] const Device& device(const Step& step) const {
    return container_.devices.at(step.device);
  }
  [[nodiscard]] static kernel::Port& serving(kernel::Port& port, const ContainerPlan& container) {
    kernel::Port* own =
        container.record == nullptr ? nullptr : port.serving(container.record->container.kind);
    return own == nullptr ? port : *own;
  }
  [[nodiscard]] bool has_groups() const { return port_.kind() != ContainerKind::kIommufd; }
  [[nodiscard]] const std::string& group_of(const Device& device) const {
    return device.group.empty() || !has_groups() ? device.bdf : device.group;
  }

  Result<void> open_region(const Step& step) {
    const Region* region = plan_.manifest->find_region(step.region);
    if (region == nullptr)
      return fail(fmt::format("region {}", step.region), "is not in the generation");
    points_.pass();
    HOLDFAST_TRY_ASSIGN(UniqueFd fd, port_.open_region(*region));
    // The name was compared before; this is about what has just been opened.
    points_.pass();
    HOLDFAST_TRY_ASSIGN(const Region opened, port_.describe_region(BorrowedFd(fd)));
    auto problems = compare_region(*region, &opened, {});
    if (!problems.empty()) return std::unexpected(std::move(problems.front()));
    HOLDFAST_TRY_ASSIGN(MappedRange range,
                        MappedRange::map(fd, 0, region->length, MappedRange::Mode::kReadWrite));
    restored_.memory.push_back({region->id, region->name, std::move(fd), std::move(range)});
    return {};
  }

  Result<void> open_container(const Step& step) {
    points_.pass();
    HOLDFAST_TRY_ASSIGN(restored_.container, port_.open_container(step.preserved));
    return {};
  }

  Result<void> attach_group(const Step& step) {
    points_.pass();
    HOLDFAST_TRY_ASSIGN(UniqueFd group, port_.attach(restored_.container, device(step)));
    restored_.groups.push_back({group_of(device(step)), std::move(group)});
    return {};
  }

  Result<void> check_limits() {
    points_.pass();
    HOLDFAST_TRY_ASSIGN(restored_.limits, port_.limits(restored_.container));
    const auto& limits = restored_.limits;
    const std::string object = container_object(container_.name);
    if (container_.mappings > limits.dma_available)
      return refuse(Exit::kUnsupported, "HF-LIMIT-DMA-ENTRIES", object,
                    fmt::format("has {} mappings; the kernel allows {} more", container_.mappings,
                                limits.dma_available),
                    fmt::format("echo {} > /sys/module/vfio_iommu_type1/parameters/dma_entry_limit",
                                container_.mappings));
    if (limits.aperture.empty()) return {};
    std::optional<Mapping> outside;
    const IovaRange* window = &limits.aperture.front();
    container_.table.for_each_run([&](std::span<const Mapping> run) {
      for (const Mapping& mapping : run) {
        if (outside) return;
        const auto within = [&](const IovaRange& range) {
          return mapping.iova >= range.start && mapping.end() - 1 <= range.last;
        };
        if (within(*window)) continue;
        const auto it = std::find_if(limits.aperture.begin(), limits.aperture.end(), within);
        if (it == limits.aperture.end())
          outside = mapping;
        else
          window = &*it;
      }
    });
    if (outside)
      return refuse(Exit::kUnsupported, "HF-LIMIT-APERTURE", object,
                    fmt::format("mapping {} lies outside what this kernel lets the container map",
                                describe(*outside)));
    return {};
  }

  Result<void> map_ranges(const Step& step, const std::function<void(uint64_t)>& mapped) {
    mode_ = step.mode;
    const Restored::Memory* memory = nullptr;
    Result<void> outcome;
    container_.table.for_each(0, step.count, [&](const Mapping& mapping) {
      if (memory == nullptr || memory->region != mapping.region) {
        const auto it = std::find_if(
            restored_.memory.begin(), restored_.memory.end(),
            [&](const Restored::Memory& entry) { return entry.region == mapping.region; });
        memory = it == restored_.memory.end() ? nullptr : &*it;
      }
      if (memory == nullptr || !fits(mapping.region_offset, mapping.size, memory->range.size())) {
        outcome = fail(describe(mapping), "its memory is not open");
      } else {
        points_.pass();
        outcome =
            port_.map(restored_.container, {.iova = mapping.iova,
                                            .size = mapping.size,
                                            .vaddr = memory->range.data() + mapping.region_offset,
                                            .access = mapping.access,
                                            .memory = BorrowedFd(memory->fd),
                                            .memory_offset = mapping.region_offset,
                                            .mode = mode_});
      }
      if (!outcome) {
        outcome.error().in(
            fmt::format("mapping {} of {} at iova {:#x}", mapped_ + 1, step.count, mapping.iova));
        return false;
      }
      ++mapped_;
      if (mapped_ % kProgressEvery == 0) mapped(mapped_);
      return true;
    });
    if (outcome && mapped_ != step.count)
      return fail(container_object(container_.name),
                  fmt::format("its table ended after {} of {} mappings", mapped_, step.count));
    return outcome;
  }

  Result<void> deposit() {
    points_.pass();
    HOLDFAST_TRY(custody_.deposit(restored_));
    // What custody took is custody's; nothing of it is looked at here any more.
    restored_ = Restored();
    restored_.name = container_.name;
    restored_.strategy = container_.strategy;
    return {};
  }

  /// The container is in custody by now, with all but its last mapping. In a run after one that was
  /// killed the last one may be there, too.
  Result<void> commit() {
    points_.pass();
    HOLDFAST_TRY_ASSIGN(const Custody::Held held, custody_.held(container_.name));
    if (held.strategy != Strategy::kAdopt || container_.mappings == 0) return {};
    const Mapping last = container_.table.at(container_.mappings - 1);
    if (restored_.memory.empty()) {
      // Deposited in this run: the region's descriptor went along; it is opened once more.
      const Region* region = plan_.manifest->find_region(last.region);
      if (region == nullptr)
        return fail(fmt::format("region {}", last.region), "is not in the generation");
      HOLDFAST_TRY(open_region({.verb = Verb::kOpenRegion, .region = last.region}));
    }
    const Restored::Memory* memory = memory_of(last);
    if (memory == nullptr) return fail(describe(last), "its memory is not open");
    points_.pass();
    auto outcome = port_.map(held.container, request(last, *memory, kernel::MapMode::kAdopt));
    if (!outcome && settled_ && outcome.error().sys_errno == EEXIST) return {};
    if (!outcome)
      return pass(std::move(outcome).error(),
                  fmt::format("mapping {} of {} at iova {:#x}", container_.mappings,
                              container_.mappings, last.iova));
    ++mapped_;
    // The address that was mapped lives as long as the region's mapping in custody.
    return {};
  }

  [[nodiscard]] const Restored::Memory* memory_of(const Mapping& mapping) const {
    const auto it =
        std::find_if(restored_.memory.begin(), restored_.memory.end(),
                     [&](const Restored::Memory& entry) { return entry.region == mapping.region; });
    if (it == restored_.memory.end() ||
        !fits(mapping.region_offset, mapping.size, it->range.size()))
      return nullptr;
    return &*it;
  }

  [[nodiscard]] static kernel::MapRequest request(const Mapping& mapping,
                                                  const Restored::Memory& memory,
                                                  kernel::MapMode mode) {
    return {.iova = mapping.iova,
            .size = mapping.size,
            .vaddr = memory.range.data() + mapping.region_offset,
            .access = mapping.access,
            .memory = BorrowedFd(memory.fd),
            .memory_offset = mapping.region_offset,
            .mode = mode};
  }

  Result<void> open_device(const Step& step) {
    const Device& which = device(step);
    const auto group =
        std::find_if(restored_.groups.begin(), restored_.groups.end(),
                     [&](const Restored::NamedFd& entry) { return entry.name == group_of(which); });
    if (group == restored_.groups.end())
      return fail(fmt::format("device {}", which.bdf), "its group is not attached");
    points_.pass();
    HOLDFAST_TRY_ASSIGN(UniqueFd fd, port_.open_device(group->fd, which));
    restored_.devices.push_back({which.bdf, std::move(fd)});
    // What took the place of the group is the device itself, which is kept as such.
    if (!has_groups()) group->fd.reset();
    return {};
  }

  const Plan& plan_;
  const ContainerPlan& container_;
  kernel::Port& port_;
  Custody& custody_;
  RestoreLog* log_;  ///< nullptr: it has all of it already
  Points& points_;
  Restored restored_;
  bool settled_ = false;  ///< an earlier run of this boot deposited it
  kernel::MapMode mode_ = kernel::MapMode::kMap;
  uint64_t mapped_ = 0;
};

class Execution {
 public:
  Execution(const Plan& plan, kernel::Port& port, Custody& custody, RestoreLog& log,
            const ExecuteOptions& options, Points& points)
      : plan_(plan),
        port_(port),
        custody_(custody),
        log_(options.again ? nullptr : &log),
        options_(options),
        points_(points),
        total_(plan.step_count()) {}

  Result<Report> run() {
    if (auto refusal = plan_.refusal()) return std::unexpected(*std::move(refusal));
    report_.generation = plan_.generation;
    if (log_ != nullptr) {
      points_.pass();
      HOLDFAST_TRY(log_->started(plan_.generation, options_.boot));
    }
    for (const auto& container : plan_.containers) take_up(container);
    finish();
    if (!report_.error) report_.error = conclusion(report_, stands_from_before());
    return std::move(report_);
  }

 private:
  void take_up(const ContainerPlan& container) {
    ContainerReport result;
    result.name = container.name;
    result.strategy = container.strategy;
    if (container.strategy == Strategy::kRefuse) return leave_alone(container, result);
    const uint64_t start = now_ns();
    Attempt attempt(plan_, container, port_, custody_, log_, points_);
    const bool settled = container.strategy == Strategy::kSettled;
    bool deposited = settled;
    Result<void> outcome;
    for (const auto& step : container.steps) {
      outcome = one_step(container, step, attempt);
      if (!outcome && step.verb == Verb::kCommit && !settled) {
        // Whole or not at all: what is one mapping short comes back out of custody.
        if (auto back = attempt.withdraw())
          deposited = false;
        else
          outcome.error().details.push_back(back.error().headline());
      }
      if (!outcome) break;
      if (step.verb == Verb::kDeposit) deposited = true;
    }
    result.mappings = attempt.mapped();
    if (outcome) {
      result.done = true;
    } else {
      result.error = std::move(outcome).error().in(container_object(container.name));
      result.held = deposited;
      if (deposited)
        // It is up, its device runs, its owner can take it: tearing it down because a log write
        // failed would turn a nuisance into an outage. Running again writes the missing entry.
        result.error->details.emplace_back(
            "the container is restored and held by holdfastd; only the log does not say so: run "
            "holdfast restore again");
      else
        roll_back(container, attempt, result);
    }
    result.duration_ns = now_ns() - start;
    report_.containers.push_back(std::move(result));
  }

  void leave_alone(const ContainerPlan& container, ContainerReport& result) {
    result.refusals = container.refusals;
    result.blocked = container.blocked;
    result.error = result.refusals.empty()
                       ? fail(container_object(container.name), "is refused").error()
                       : result.refusals.front();
    points_.pass();
    if (log_ != nullptr)
      if (auto logged = log_->failed(container.name, *result.error); !logged)
        result.error->details.push_back("and the log could not be written: " +
                                        logged.error().headline());
    report_.containers.push_back(std::move(result));
  }

  Result<void> one_step(const ContainerPlan& container, const Step& step, Attempt& attempt) {
    ++index_;
    if (step.in_owner) return {};
    const auto tell = [&](uint64_t done) {
      if (options_.progress) options_.progress({container.name, &step, index_, total_, done});
    };
    tell(0);
    StepReport entry{container.name, step.verb, step.text, now_ns(), 0, false};
    auto outcome = attempt.run(step, tell);
    entry.duration_ns = now_ns() - entry.start_ns;
    entry.ok = outcome.has_value();
    report_.steps.push_back(std::move(entry));
    if (!outcome) outcome.error().in(step.text);
    return outcome;
  }

  void roll_back(const ContainerPlan& container, Attempt& attempt, ContainerReport& result) {
    Error& error = *result.error;
    if (auto undone = attempt.undo()) {
      result.undone = true;
      error.details.emplace_back("it was rolled back; no live mapping was touched");
    } else {
      error.details.push_back(undone.error().headline());
      for (auto& line : undone.error().details) error.details.push_back(std::move(line));
    }
    points_.pass();
    if (log_ == nullptr) return;
    if (auto logged = log_->failed(container.name, error); !logged)
      error.details.push_back("and the log could not be written: " + logged.error().headline());
  }

  [[nodiscard]] bool stands_from_before() const {
    return std::ranges::any_of(options_.settled, [&](const std::string& name) {
      return std::ranges::find(options_.released, name) == options_.released.end();
    });
  }

  void finish() {
    const auto settled = [&](const std::string& name) {
      const auto& names = options_.settled;
      return std::find(names.begin(), names.end(), name) != names.end() ||
             std::any_of(report_.containers.begin(), report_.containers.end(),
                         [&](const auto& item) { return item.name == name && item.done; });
    };
    for (const auto& record : plan_.manifest->containers)
      if (!settled(record.container.name)) return;
    points_.pass();
    if (auto logged = log_ == nullptr ? Result<void>() : log_->finished(); logged)
      report_.finished = true;
    else
      report_.error = std::move(logged).error().in("restore log");
  }

  const Plan& plan_;
  kernel::Port& port_;
  Custody& custody_;
  RestoreLog* log_;
  const ExecuteOptions& options_;
  Points& points_;
  uint64_t total_ = 0;
  uint64_t index_ = 0;
  Report report_;
};

}  // namespace

Result<Report> execute(const Plan& plan, kernel::Port& port, Custody& custody, RestoreLog& log,
                       const ExecuteOptions& options) {
  Points points(options.before_call);
  const Plan blocked = block_devices(plan, port, log, [&points] { points.pass(); });
  return Execution(blocked, port, custody, log, options, points).run();
}

}  // namespace holdfast::restore
