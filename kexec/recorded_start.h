#pragma once

// Starting an unmodified program with the recorder in it: what `record` and `handover NAME --` do
// with what comes after `--`. This process becomes the program: same pid, same parent, same exit
// status.

#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "persist/base/result.h"
#include "persist/model/json.h"

namespace holdfast::command {

class Context;

class RecordedStart {
 public:
  /// Refuses what cannot be started or recorded (HF-NO-PROGRAM, HF-RECORD-CANNOT).
  static Result<RecordedStart> of(std::vector<std::string> words);
  [[nodiscard]] const std::string& program() const { return program_; }
  /// One more variable of its environment.
  void set(std::string name, std::string value) {
    environment_.emplace_back(std::move(name), std::move(value));
  }
  /// In a cgroup that a freeze can stop, where one can be made. `kernel`: the agent's, as health
  /// has it; `name`: of the container. Returns only where it fails.
  [[nodiscard]] Result<Exit> run(const Context& context, const Json& kernel,
                                 const std::string& name);

 private:
  std::string program_, recorder_;
  std::vector<std::string> words_;
  std::vector<std::pair<std::string, std::string>> environment_;
};

}  // namespace holdfast::command
