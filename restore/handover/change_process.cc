#include "restore/handover/change_process.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <linux/kcmp.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

namespace holdfast::handover {
namespace {

constexpr size_t kListed = 8;

std::string text(const ContextArea& area) {
  return fmt::format("container {}, mapping {:#x}-{:#x} of {}", area.container, area.iova,
                     area.iova + area.size,
                     area.memory.empty() ? "memory without a file" : area.memory);
}

/// What the kernel's refusal means, where the record is known to say that it should not refuse.
Error explained(Error error, size_t areas) {
  switch (error.sys_errno) {
    case EINVAL:
      error.details.push_back(
          fmt::format("all {} recorded areas were mapped by file: one is mapped by address that "
                      "is not in the record",
                      areas));
      error.remedy = "its owner maps it with IOMMU_IOAS_MAP_FILE (hf_map does), or unmaps it";
      break;
    case EBUSY:
      error.remedy = "a map or unmap is under way: try again when it is over";
      break;
    case ENOMEM:
      error.remedy = "raise RLIMIT_MEMLOCK of the new owner, or give it CAP_IPC_LOCK";
      break;
    case ENOTTY: {
      Error lacking = refuse(Exit::kUnsupported, "HF-HANDOVER-UNSUPPORTED", error.object,
                             "this kernel cannot give an iommufd descriptor to another process "
                             "(no IOMMU_IOAS_CHANGE_PROCESS)",
                             "Linux 6.13 or newer")
                          .error();
      lacking.sys_errno = ENOTTY;
      return lacking;
    }
    default:
      break;
  }
  return error;
}

Result<void> call(ChangeProcessCalls& calls, std::span<const ContextArea> areas) {
  HOLDFAST_TRY(check_areas(areas));
  auto changed = calls.change_process();
  if (!changed) return std::unexpected(explained(std::move(changed).error(), areas.size()));
  return {};
}

}  // namespace

Result<bool> is_same_context(BorrowedFd a, BorrowedFd b) {
  const pid_t self = ::getpid();
  const long order = ::syscall(SYS_kcmp, self, self, KCMP_FILE, static_cast<unsigned long>(a.get()),
                               static_cast<unsigned long>(b.get()));
  if (order < 0)
    return fail_errno(errno, fmt::format("descriptors {} and {}", a.get(), b.get()), "kcmp");
  return order == 0;
}

std::vector<std::string> together_with(std::string_view name,
                                       std::span<const ContextMember> members) {
  const auto self = std::ranges::find(members, name, &ContextMember::name);
  std::vector<std::string> out;
  for (const ContextMember& member : members) {
    const bool same = self != members.end() &&
                      (member.name == name || is_same_context(self->fd, member.fd).value_or(true));
    if (same) out.push_back(member.name);
  }
  return out;
}

Result<void> check_together(std::span<const std::string> asked,
                            std::span<const std::string> needed) {
  std::vector<std::string> missing;
  for (const auto& name : needed)
    if (std::ranges::find(asked, name) == asked.end()) missing.push_back(name);
  if (missing.empty()) return {};
  return refuse(Exit::kRefused, "HF-HANDOVER-CONTEXT",
                fmt::format("container {}", asked.empty() ? needed.front() : asked.front()),
                fmt::format("shares its iommufd descriptor with {}, and the kernel changes the "
                            "process of all of them at once",
                            fmt::join(missing, ", ")),
                fmt::format("hand over {} together", fmt::join(needed, ", ")));
}

Result<void> check_areas(std::span<const ContextArea> areas) {
  std::vector<const ContextArea*> plain;
  for (const ContextArea& area : areas)
    if (!area.by_file) plain.push_back(&area);
  if (plain.empty()) return {};
  Error error =
      refuse(Exit::kUnsupported, "HF-HANDOVER-PLAIN", text(*plain.front()),
             fmt::format("was mapped by address (IOMMU_IOAS_MAP), as {} of {} areas of its iommufd "
                         "descriptor: the kernel gives none of them to another process",
                         plain.size(), areas.size()),
             "keep the memory in a memfd, hugetlb or tmpfs file; for devdax the new owner maps it "
             "itself")
          .error();
  error.sys_errno = EINVAL;
  for (size_t i = 1; i < plain.size() && i <= kListed; ++i)
    error.details.push_back("also: " + text(*plain[i]));
  if (plain.size() > kListed + 1)
    error.details.push_back(fmt::format("and {} more", plain.size() - kListed - 1));
  return std::unexpected(std::move(error));
}

Result<void> rehearse(ChangeProcessCalls& calls, std::span<const ContextArea> areas) {
  return call(calls, areas);
}

Result<void> take(ChangeProcessCalls& calls, std::span<const ContextArea> areas) {
  return call(calls, areas);
}

Result<void> take_back(ChangeProcessCalls& calls) {
  // For who owns it still the call changes nothing.
  auto changed = calls.change_process();
  if (!changed) return std::unexpected(explained(std::move(changed).error(), 0));
  return {};
}

}  // namespace holdfast::handover
