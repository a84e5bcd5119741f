#include "kexec/command_line.h"

#include <algorithm>
#include <array>

namespace holdfast::command {
namespace {

// Parameters that keep memory or page tables out of the next kernel's hands.
constexpr std::array<std::string_view, 2> kReservations = {"memmap=", "iommu_preserve="};

bool is_blank(char c) {
  return c == ' ' || c == '\t' || c == '\n' || c == '\r';
}

bool is_reservation(std::string_view parameter) {
  return std::any_of(kReservations.begin(), kReservations.end(),
                     [&](std::string_view prefix) { return parameter.starts_with(prefix); });
}

}  // namespace

CommandLine::CommandLine(std::string_view text) {
  std::string parameter;
  bool quoted = false;
  bool for_init = false;
  const auto end_parameter = [&] {
    if (!for_init && parameter == "--")
      for_init = true;
    else if (!parameter.empty())
      (for_init ? init_ : parameters_).push_back(parameter);
    parameter.clear();
  };
  for (const char c : text) {
    if (c == '"') quoted = !quoted;
    if (is_blank(c) && !quoted)
      end_parameter();
    else
      parameter += c;
  }
  end_parameter();
}

void CommandLine::append(const CommandLine& other) {
  parameters_.insert(parameters_.end(), other.parameters_.begin(), other.parameters_.end());
  init_.insert(init_.end(), other.init_.begin(), other.init_.end());
}

std::vector<std::string> CommandLine::values(std::string_view name) const {
  std::vector<std::string> out;
  for (std::string_view parameter : parameters_) {
    // next_arg() takes quotes around the whole parameter as well as around the value.
    if (parameter.starts_with('"')) parameter.remove_prefix(1);
    if (!parameter.starts_with(name) || parameter.size() <= name.size() ||
        parameter[name.size()] != '=')
      continue;
    std::string value(parameter.substr(name.size() + 1));
    std::erase(value, '"');
    out.push_back(std::move(value));
  }
  return out;
}

std::string CommandLine::last(std::string_view name) const {
  const auto all = values(name);
  return all.empty() ? std::string() : all.back();
}

bool CommandLine::contains(std::string_view parameter) const {
  return std::find(parameters_.begin(), parameters_.end(), parameter) != parameters_.end();
}

void CommandLine::remove_prefixed(std::string_view prefix) {
  std::erase_if(parameters_, [&](const std::string& parameter) {
    std::string_view bare = parameter;
    if (bare.starts_with('"')) bare.remove_prefix(1);
    return bare.starts_with(prefix);
  });
}

std::string CommandLine::text() const {
  std::string out;
  const auto add = [&out](std::string_view word) {
    if (!out.empty()) out += ' ';
    out += word;
  };
  for (const auto& parameter : parameters_) add(parameter);
  if (!init_.empty()) add("--");
  for (const auto& word : init_) add(word);
  return out;
}

NextCommandLine next_command_line(const CommandLine& base, const CommandLine& running,
                                  std::string_view arena_uuid, std::string_view nonce) {
  NextCommandLine next{base, {}};
  next.line.remove_prefixed("holdfast.");
  // The boot loader's note about the image that it started, not a parameter of ours to pass on.
  next.line.remove_prefixed("BOOT_IMAGE=");
  for (const auto& parameter : running.parameters()) {
    if (!is_reservation(parameter) || next.line.contains(parameter)) continue;
    next.line.append(parameter);
    next.carried.push_back(parameter);
  }
  next.line.append("holdfast.arena=" + std::string(arena_uuid));
  next.line.append("holdfast.nonce=" + std::string(nonce));
  return next;
}

}  // namespace holdfast::command
