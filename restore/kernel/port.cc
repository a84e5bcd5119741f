#include "restore/kernel/port.h"

namespace holdfast::kernel {

std::string_view answer_name(Answer answer) {
  switch (answer) {
    case Answer::kNo:
      return "no";
    case Answer::kYes:
      return "yes";
    case Answer::kUnknown:
      return "unknown";
  }
  return "unknown";
}

}  // namespace holdfast::kernel
