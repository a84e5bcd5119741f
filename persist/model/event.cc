#include <time.h>

#include "persist/model/generation.h"

namespace holdfast {

Event event_of(const Error& error) {
  timespec now{};
  ::clock_gettime(CLOCK_REALTIME, &now);
  Event out;
  out.at_ns =
      static_cast<uint64_t>(now.tv_sec) * 1'000'000'000 + static_cast<uint64_t>(now.tv_nsec);
  out.exit = static_cast<uint32_t>(error.exit);
  out.code = error.code;
  out.object = error.object;
  for (const auto& doing : error.context) out.object = doing + ": " + out.object;
  out.cause = error.cause;
  for (const auto& line : error.details) out.cause += "; " + line;
  out.remedy = error.remedy;
  return out;
}

}  // namespace holdfast
