#pragma once

// An agent of the test's making: speaks the protocol and answers every verb as it was told.

#include <functional>
#include <string>
#include <thread>

#include "persist/agent/control_client.h"
#include "persist/base/unique_fd.h"

namespace holdfast::testing {

class FakeAgent {
 public:
  using Answer = std::function<Result<Json>(const std::string& verb)>;
  /// Listens until destruction; one peer at a time.
  FakeAgent(const std::string& socket, Answer answer);
  ~FakeAgent();
  FakeAgent(const FakeAgent&) = delete;
  FakeAgent& operator=(const FakeAgent&) = delete;

 private:
  void serve();
  void talk(const UniqueFd& peer);

  Answer answer_;
  UniqueFd listener_, stop_;
  std::thread thread_;
};

}  // namespace holdfast::testing
