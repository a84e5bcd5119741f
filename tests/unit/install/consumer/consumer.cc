// The smallest program that uses libholdfast from C++: built with find_package(holdfast).
#include <cstdio>
#include <holdfast.hpp>

int main() {
  holdfast::client::Connection::Options options;
  options.optional = true;
  const auto connection = holdfast::client::Connection::connect(options);
  if (!connection) return 1;
  std::printf("libholdfast %s\n", hf_version());
}
