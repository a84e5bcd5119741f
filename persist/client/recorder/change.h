#pragma once

// One call that changes what is mapped, of type1 or of iommufd: intent, the kernel's call, result.
// Under the one lock.

#include <cerrno>
#include <cstdint>
#include <span>

#include "persist/client/recorder/calls.h"
#include "persist/client/recorder/memory.h"

namespace holdfast::recorder {

/// Keeps errno over what the program has not asked for.
class KeepErrno {
 public:
  ~KeepErrno() { errno = kept_; }

 private:
  int kept_ = errno;
};

/// The program's own call.
struct Asked {
  Ioctl real = nullptr;
  int fd = -1;
  unsigned long request = 0;
  void* argument = nullptr;
  int operator()() const { return real(fd, request, argument); }
};

/// Whether `size` bytes, at most 64, can be read there; a program that passes rubbish gets EFAULT
/// from the kernel.
[[nodiscard]] bool readable(const void* argument, uint64_t size);

struct MapAt {
  uint64_t iova = 0, size = 0;
  uint32_t access = 0;               ///< Access bits, ring::kLeaveBehind
  const uint64_t* placed = nullptr;  ///< the kernel chooses the IOVA, and says it here
};
int record_map(const Asked& call, int index, std::span<const Backed> backed, MapAt at);
/// `bytes`: how much it was, from the argument after the call.
int record_unmap(const Asked& call, int index, uint64_t iova, uint64_t size, bool all,
                 uint64_t (*bytes)(const void* argument));

}  // namespace holdfast::recorder
