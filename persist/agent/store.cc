#include "persist/agent/store.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <span>

#include "persist/agent/transport.h"
#include "persist/base/same_file.h"

namespace holdfast::agent {

Result<FileFacts> facts_of(BorrowedFd fd) {
  struct stat facts{};
  if (::fstat(fd.get(), &facts) != 0) return fail_errno(errno, "descriptor", "fstat");
  return FileFacts{facts.st_mode, facts.st_dev, facts.st_ino, facts.st_rdev};
}

bool one_open_file(BorrowedFd a, BorrowedFd b) {
  if (a.get() == b.get()) return true;
  if (const auto same = same_open_file(a, ::getpid(), b.get())) return *same;
  const auto first = facts_of(a), second = facts_of(b);
  if (!first || !second || *first != *second) return false;
  // Two openings of one device node are two things.
  if (S_ISCHR(first->mode) || S_ISBLK(first->mode)) return false;
  return ::fcntl(a.get(), F_GETFL) == ::fcntl(b.get(), F_GETFL);
}

std::string bdf_in_name(std::string bdf) {
  std::ranges::replace(bdf, ':', '_');
  return bdf;
}

std::optional<StoreName> parse_store_name(std::string_view name) {
  std::vector<std::string_view> parts;
  for (size_t at = 0; at <= name.size();) {
    const size_t end = std::min(name.find('/', at), name.size());
    parts.push_back(name.substr(at, end - at));
    at = end + 1;
  }
  static constexpr std::array kThree = {std::string_view("state"), std::string_view("container"),
                                        std::string_view("memory")};
  static constexpr std::array kFour = {std::string_view("group"), std::string_view("device")};
  const auto is_one_of = [&](const auto& kinds) {
    return std::ranges::find(kinds, parts.front()) != kinds.end();
  };
  if (!(parts.size() == 3 && is_one_of(kThree)) && !(parts.size() == 4 && is_one_of(kFour)))
    return std::nullopt;
  StoreName out;
  const std::string_view number = parts.back();
  const auto [end, error] =
      std::from_chars(number.data(), number.data() + number.size(), out.number);
  constexpr uint64_t kHighest = uint64_t{1} << 62;  // nobody comes that far
  if (error != std::errc() || end != number.data() + number.size() || out.number > kHighest ||
      parts[1].empty())
    return std::nullopt;
  out.kind = parts[0];
  out.owner = parts[1];
  return out;
}

void StoreKeeper::has(std::string name, UniqueFd fd) {
  const auto parsed = parse_store_name(name);
  if (!parsed) return;
  next_ = std::max(next_, parsed->number + 1);
  if (parsed->kind == "state") {
    states_[parsed->owner] = {std::move(name), true};
    return;
  }
  auto facts = facts_of(fd);
  if (facts) files_.insert_or_assign(std::move(name), File{std::move(fd), *facts, true});
}

Result<void> StoreKeeper::refuse(const std::string& name) {
  HOLDFAST_TRY(store_->drop(name));
  if (const auto good = files_.find(name); good != files_.end())
    return store_->keep(name, good->second.fd);
  return {};
}

Result<void> StoreKeeper::keep(const std::string& name, BorrowedFd fd) {
  if (const auto most = room(); most && size() >= *most)
    return fail("descriptor store", fmt::format("is full: it keeps {}", *most),
                "FileDescriptorStoreMax= in holdfastd.service");
  return store_->keep(name, fd);
}

Result<std::string> StoreKeeper::put(const std::string& wish, BorrowedFd fd) {
  HOLDFAST_TRY_ASSIGN(const FileFacts facts, facts_of(fd));
  for (auto& [name, file] : files_)
    if (file.facts == facts && one_open_file(file.fd, fd)) {
      file.wanted = true;
      return name;
    }
  std::string name = fmt::format("{}/{}", wish, next_++);
  const int copy = ::fcntl(fd.get(), F_DUPFD_CLOEXEC, 3);
  if (copy < 0) return fail_errno(errno, name, "duplicate");
  UniqueFd own(copy);
  HOLDFAST_TRY(keep(name, fd));
  files_.insert_or_assign(name, File{std::move(own), facts, true});
  return name;
}

Result<void> StoreKeeper::say(const std::string& container, std::string_view text) {
  HOLDFAST_TRY_ASSIGN(const UniqueFd sealed,
                      protocol::sealed_memfd("holdfast-custody",
                                             std::as_bytes(std::span(text.data(), text.size()))));
  const std::string name = fmt::format("state/{}/{}", container, next_++);
  const auto before = states_.find(container);
  // In place of another there is room for a moment.
  HOLDFAST_TRY(before == states_.end() ? keep(name, sealed) : store_->keep(name, sealed));
  const std::string old = before == states_.end() ? std::string() : before->second.name;
  states_[container] = {name, true};
  return old.empty() ? Result<void>() : store_->drop(old);
}

void StoreKeeper::begin() {
  for (auto& [name, file] : files_) file.wanted = false;
  for (auto& [container, state] : states_) state.wanted = false;
}

void StoreKeeper::stays(const std::string& container, const std::vector<std::string>& names) {
  if (const auto state = states_.find(container); state != states_.end())
    state->second.wanted = true;
  for (const auto& name : names) stays(name);
}

void StoreKeeper::stays(const std::string& name) {
  if (const auto file = files_.find(name); file != files_.end()) file->second.wanted = true;
}

Result<void> StoreKeeper::finish() {
  Result<void> outcome;
  const auto drop = [&](const std::string& name) {
    if (auto dropped = store_->drop(name); !dropped && outcome) outcome = std::move(dropped);
  };
  for (auto it = states_.begin(); it != states_.end();) {
    if (it->second.wanted) {
      ++it;
      continue;
    }
    drop(it->second.name);
    it = states_.erase(it);
  }
  bool any = false;
  for (auto it = files_.begin(); it != files_.end();) {
    if (it->second.wanted) {
      ++it;
      continue;
    }
    drop(it->first);
    any = true;
    it = files_.erase(it);
  }
  // Who gave it up may open its group again at once.
  if (any && outcome) outcome = store_->settle();
  return outcome;
}

}  // namespace holdfast::agent
