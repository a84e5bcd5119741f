#include "persist/base/result.h"

#include <cstring>

namespace holdfast {

Error&& Error::in(std::string doing) && {
  if (!doing.empty()) context.push_back(std::move(doing));
  return std::move(*this);
}

Error& Error::in(std::string doing) & {
  if (!doing.empty()) context.push_back(std::move(doing));
  return *this;
}

Error&& Error::with_remedy(std::string text) && {
  remedy = std::move(text);
  return std::move(*this);
}

Error&& Error::with_detail(std::string line) && {
  details.push_back(std::move(line));
  return std::move(*this);
}

std::string Error::headline() const {
  std::string out;
  for (auto it = context.rbegin(); it != context.rend(); ++it) {
    out += *it;
    out += ": ";
  }
  if (!object.empty()) {
    out += object;
    out += ": ";
  }
  out += cause;
  if (!code.empty()) {
    out += " [";
    out += code;
    out += ']';
  }
  return out;
}

std::string Error::message() const {
  std::string out = headline();
  for (const auto& line : details) {
    out += "\n  ";
    out += line;
  }
  if (!remedy.empty()) {
    out += "\n  remedy: ";
    out += remedy;
  }
  return out;
}

std::unexpected<Error> fail_errno(int err, std::string_view object, std::string_view act) {
  Error error;
  error.object = object;
  error.cause = std::string(act) + ": " + strerrordesc_np(err);
  error.sys_errno = err;
  return std::unexpected(std::move(error));
}

std::unexpected<Error> fail(std::string_view object, std::string_view cause,
                            std::string_view remedy) {
  Error error;
  error.object = object;
  error.cause = cause;
  error.remedy = remedy;
  return std::unexpected(std::move(error));
}

std::unexpected<Error> refuse(Exit exit, std::string_view code, std::string_view object,
                              std::string_view cause, std::string_view remedy) {
  Error error;
  error.exit = exit;
  error.code = code;
  error.object = object;
  error.cause = cause;
  error.remedy = remedy;
  return std::unexpected(std::move(error));
}

std::unexpected<Error> pass(Error error, std::string doing) {
  return std::unexpected(std::move(error).in(std::move(doing)));
}

}  // namespace holdfast
