#pragma once

// /health and /plan: what depends on the running host. Asked of the agent where one holds this
// arena, else worked out from the arena alone.

#include <functional>
#include <memory>
#include <string>

#include "fs/files.h"
#include "fs/retained.h"
#include "fs/source.h"
#include "fs/tree.h"

namespace holdfast::fs {

/// Whether what the page tables say agrees with the record, one line for each container of a
/// generation. Reads every page; `bad` is set where they differ or cannot be read.
struct Finding {
  enum class Grade { kGood, kWarning, kBad };
  Grade grade = Grade::kGood;
  std::string line;
};
[[nodiscard]] std::vector<Finding> compare_tables(const GenerationSource& source);

/// Everything that can be said of an arena without its agent.
[[nodiscard]] std::vector<Finding> arena_findings(const Source& source, Retained& retained);

/// A verdict on a line of its own (good, warning, bad: the worst grade), then one line each.
[[nodiscard]] std::string health_text(const std::vector<Finding>& findings);

/// The texts of a mount. `plan` is asked where no agent answers; it may be empty. The tree is
/// handed in with attach() because it is made from these texts.
class Live {
 public:
  Live(std::string socket, std::function<std::string()> plan);
  void attach(std::shared_ptr<Source> source, Retained* retained, std::shared_ptr<Files> files);
  [[nodiscard]] LiveTexts texts();

 private:
  struct State;
  std::shared_ptr<State> state_;
};

}  // namespace holdfast::fs
