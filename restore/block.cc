#include "restore/block.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cerrno>
#include <iterator>

namespace holdfast::restore {
namespace {

using Parked = std::vector<kernel::Port::Parked>;

bool keeps_parked(const Parked& parked, const std::string& bdf) {
  return std::ranges::any_of(parked, [&](const auto& domain) {
    return domain.inherited && std::ranges::find(domain.devices, bdf) != domain.devices.end();
  });
}

Blocked block(const Device& device, const Result<Parked>& parked, kernel::Port& port) {
  Blocked out;
  out.device = device.bdf;
  const auto failed = [&](Error why) {
    out.state = Blocked::State::kFailed;
    out.why = std::move(why);
    return out;
  };
  if (!parked) return failed(Error(parked.error()).in("what is parked"));
  if (!keeps_parked(*parked, device.bdf)) {
    const auto taken = port.is_taken(device);
    if (taken && !*taken) {
      out.state = Blocked::State::kCut;
      return out;
    }
    return failed(fail("device " + device.bdf, "is not parked: somebody has its domain").error());
  }
  auto was_on = port.block(device);
  if (was_on) {
    out.state = *was_on ? Blocked::State::kNow : Blocked::State::kAlready;
  } else if (was_on.error().sys_errno == ENOENT || was_on.error().sys_errno == ENODEV) {
    out.state = Blocked::State::kGone;
  } else {
    return failed(std::move(was_on).error());
  }
  return out;
}

/// What the kernel has in the container's domains and the record does not: it writes through the
/// same tables, a function of the same group for instance.
std::vector<std::string> unrecorded(const std::vector<Device>& recorded, const Parked& parked) {
  std::vector<std::string> out;
  const auto known = [&](const std::string& bdf) {
    return std::ranges::find(recorded, bdf, &Device::bdf) != recorded.end();
  };
  for (const auto& domain : parked)
    if (std::ranges::any_of(domain.devices, known))
      std::ranges::copy_if(domain.devices, std::back_inserter(out),
                           [&](const auto& bdf) { return !known(bdf); });
  return out;
}

Blocked block_unrecorded(const std::string& bdf, const Result<Parked>& parked, kernel::Port& port) {
  auto device = port.describe_device(bdf);
  if (device) return block(*device, parked, port);
  Blocked out{.device = bdf, .state = Blocked::State::kFailed, .why = std::move(device).error()};
  if (out.why->sys_errno == ENOENT || out.why->sys_errno == ENODEV)
    out.state = Blocked::State::kGone;
  return out;
}

std::string line(const Blocked& item) {
  switch (item.state) {
    case Blocked::State::kNow:
      return fmt::format(
          "device {}: its bus mastering was on and is off now; its hold and its tables are as they "
          "were",
          item.device);
    case Blocked::State::kAlready:
      return fmt::format("device {}: was blocked already, bus mastering is off", item.device);
    case Blocked::State::kGone:
      return fmt::format("device {}: is not there", item.device);
    case Blocked::State::kCut:
      return fmt::format("device {}: is in no preserved domain, and reaches nothing", item.device);
    case Blocked::State::kFailed:
      break;
  }
  return fmt::format("device {}: COULD NOT BE BLOCKED: {}", item.device, item.why->headline());
}

std::string remedy(const std::string& container) {
  return fmt::format("holdfast release {} stops it for good", container);
}

void tell(RestoreLog& log, const std::string& container, const Blocked& item) {
  const std::string object = fmt::format("container {}: device {}", container, item.device);
  if (item.state == Blocked::State::kNow)
    log.blocked(container, refuse(Exit::kVerification, "HF-DEVICE-BLOCKED", object,
                                  "its live tables are not what was saved: its bus mastering was "
                                  "turned off, and it writes nothing any more",
                                  remedy(container))
                               .error());
  if (item.state == Blocked::State::kFailed)
    log.blocked(container, refuse(Exit::kVerification, "HF-DEVICE-NOT-BLOCKED", object,
                                  "its live tables are not what was saved, and it may go on "
                                  "writing through them: " +
                                      item.why->headline(),
                                  remedy(container))
                               .error());
}

/// What the container's refusal says of it.
void add_to(Error& refusal, const ContainerPlan& container) {
  std::vector<std::string> off, on;
  for (const Blocked& item : container.blocked) {
    refusal.details.push_back(line(item));
    if (item.state == Blocked::State::kFailed) on.push_back(item.device);
    if (item.state == Blocked::State::kNow || item.state == Blocked::State::kAlready)
      off.push_back(item.device);
  }
  if (!off.empty()) refusal.cause += fmt::format("; blocked: device {}", fmt::join(off, ", "));
  if (!on.empty())
    refusal.cause +=
        fmt::format("; NOT BLOCKED, and may go on writing: device {}", fmt::join(on, ", "));
  if (!refusal.remedy.empty()) refusal.details.push_back(refusal.remedy);
  for (const auto& device : off)
    refusal.details.push_back(fmt::format(
        "to look at it: holdfast doctor, parked-domains; setpci -s {} COMMAND (0x4: bus master)",
        device));
  refusal.remedy = remedy(container.name);
}

}  // namespace

Plan block_devices(Plan plan, kernel::Port& port, RestoreLog& log,
                   const std::function<void()>& before_call) {
  if (plan.policy_refusal ||
      std::ranges::none_of(plan.containers, [](const auto& item) { return item.blocks; }))
    return plan;
  before_call();
  const auto parked = port.parked();
  for (ContainerPlan& container : plan.containers) {
    if (!container.blocks) continue;
    const auto& recorded = container.record->container.devices;
    for (const Device& device : recorded) {
      before_call();
      container.blocked.push_back(block(device, parked, port));
      tell(log, container.name, container.blocked.back());
    }
    if (parked)
      for (const std::string& bdf : unrecorded(recorded, *parked)) {
        before_call();
        container.blocked.push_back(block_unrecorded(bdf, parked, port));
        tell(log, container.name, container.blocked.back());
      }
    add_to(container.refusals.front(), container);
  }
  return plan;
}

}  // namespace holdfast::restore
