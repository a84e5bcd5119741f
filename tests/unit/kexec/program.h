#pragma once

// Runs a program as a person at a shell would, and keeps what it said.

#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace holdfast::testing {

struct Said {
  int status = -1;  ///< exit status; 128 + N where signal N ended it
  std::string out, err;
  /// stdout as JSON; null where it is none.
  [[nodiscard]] nlohmann::ordered_json json() const;
};

using Environment = std::map<std::string, std::string>;

/// `environment` is all that the program gets, besides PATH unless that is given too.
[[nodiscard]] Said run_program(const std::vector<std::string>& arguments,
                               const Environment& environment = {});

}  // namespace holdfast::testing
