#include "fs/options.h"

#include <fmt/format.h>
#include <grp.h>
#include <pwd.h>

#include <algorithm>
#include <charconv>

namespace holdfast::fs {
namespace {

// Meant for mount(8), systemd or the boot, not for the file system.
constexpr std::string_view kForOthers[] = {"rw",    "defaults", "auto",   "noauto",  "user",
                                           "users", "nouser",   "nofail", "_netdev", "owner",
                                           "group", "nosuid",   "nodev"};
constexpr std::string_view kForKernel[] = {"noatime",    "atime",   "nodiratime", "relatime",
                                           "norelatime", "noexec",  "exec",       "sync",
                                           "async",      "dirsync", "strictatime"};

template <typename List>
bool contains(const List& list, std::string_view word) {
  return std::ranges::find(list, word) != std::end(list);
}

std::unexpected<Error> usage(std::string object, std::string cause) {
  Error error;
  error.exit = Exit::kUsage;
  error.object = std::move(object);
  error.cause = std::move(cause);
  error.remedy = "mount.holdfast --help";
  return std::unexpected(std::move(error));
}

std::optional<uint32_t> number(std::string_view text) {
  uint32_t out = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), out);
  if (error != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return out;
}

Result<uint32_t> user_id(std::string_view text) {
  if (const auto id = number(text)) return *id;
  if (const passwd* entry = getpwnam(std::string(text).c_str())) return entry->pw_uid;
  return usage(fmt::format("uid={}", text), "no such user");
}

Result<uint32_t> group_id(std::string_view text) {
  if (const auto id = number(text)) return *id;
  if (const struct group* entry = getgrnam(std::string(text).c_str())) return entry->gr_gid;
  return usage(fmt::format("gid={}", text), "no such group");
}

Result<void> parse_one(std::string_view option, MountOptions& out) {
  const size_t equals = option.find('=');
  const std::string_view name = option.substr(0, equals);
  const bool has_value = equals != std::string_view::npos;
  const std::string_view value = has_value ? option.substr(equals + 1) : std::string_view();
  if (name.starts_with("x-") || name == "comment") return {};
  if (!has_value) {
    if (option.empty() || contains(kForOthers, option)) return {};
    if (option == "ro")
      out.read_only = true;
    else if (option == "allow_other")
      out.allow_other = true;
    else if (option == "foreground")
      out.foreground = true;
    else if (contains(kForKernel, option))
      out.kernel_options.emplace_back(option);
    else
      return usage(fmt::format("-o {}", option), "is no option of a Holdfast mount");
    return {};
  }
  if (name == "uid") {
    HOLDFAST_TRY_ASSIGN(out.uid, user_id(value));
  } else if (name == "gid") {
    HOLDFAST_TRY_ASSIGN(out.gid, group_id(value));
  } else if (name == "agent") {
    if (value.empty()) return usage("-o agent=", "needs the path of the agent's socket");
    out.agent_socket = value;
  } else if (name == "files") {
    if (value == "auto")
      out.files = FilesMode::kAuto;
    else if (value == "ro")
      out.files = FilesMode::kReadOnly;
    else if (value == "rw")
      out.files = FilesMode::kWritable;
    else
      return usage(fmt::format("-o {}", option), "is none of files=auto, files=ro, files=rw");
  } else {
    return usage(fmt::format("-o {}", option), "is no option of a Holdfast mount");
  }
  return {};
}

}  // namespace

Result<void> parse_option_list(std::string_view list, MountOptions& options) {
  while (!list.empty()) {
    const size_t comma = list.find(',');
    HOLDFAST_TRY(parse_one(list.substr(0, comma), options));
    if (comma == std::string_view::npos) break;
    list.remove_prefix(comma + 1);
  }
  if (options.read_only && options.files == FilesMode::kWritable)
    return usage("-o ro,files=rw", "contradict each other");
  return {};
}

Result<MountOptions> parse_arguments(std::span<const std::string> arguments, Caller caller) {
  MountOptions out;
  std::vector<std::string> places;
  for (size_t i = 0; i < arguments.size(); ++i) {
    const std::string& argument = arguments[i];
    const auto value = [&]() -> Result<std::string> {
      if (++i >= arguments.size()) return usage(argument, "needs a value");
      return arguments[i];
    };
    if (argument == "-o") {
      HOLDFAST_TRY_ASSIGN(const std::string list, value());
      HOLDFAST_TRY(parse_option_list(list, out));
    } else if (argument == "-N" || argument == "-t") {
      HOLDFAST_TRY(value());
    } else if (argument == "--foreground") {
      out.foreground = true;
    } else if (argument.size() > 1 && argument[0] == '-') {
      if (argument.find_first_not_of("sfnv", 1) != std::string::npos)
        return usage(argument, "is no option");
      if (argument.find('f') != std::string::npos)
        (caller == Caller::kMount ? out.fake : out.foreground) = true;
    } else {
      places.push_back(argument);
    }
  }
  if (places.size() != 2) return usage("mount.holdfast", "needs an arena and a folder");
  out.arena = places[0];
  out.directory = places[1];
  return out;
}

}  // namespace holdfast::fs
