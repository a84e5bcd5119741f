#pragma once

// Errors are values. An Error says which object, what happened to it, and what to type next; each
// layer on the way up adds the context that only it knows. Nothing here throws.

#include <expected>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace holdfast {

/// Exit status of every Holdfast command; stable, documented in docs/operator.md.
enum class Exit : int {
  kDone = 0,
  kFailed = 1,  ///< failed; nothing was changed, or it was taken back (the message says which)
  kUsage = 2,   ///< wrong usage
  kVerification = 3,  ///< what was found is not what was saved
  kUnsupported = 4,   ///< this kernel or host lacks what was asked for
  kRefused = 5,       ///< refused by a safety rule
  kPartly = 6,        ///< partly done; the message says what stands and how to go on
};

/// One failure, with everything a person at 3 am needs. A plain value; copying is cheap enough for
/// an error path.
struct Error {
  Exit exit = Exit::kFailed;
  std::string code;    ///< stable `HF-…` name; never empty for exits 3, 4 and 5
  std::string object;  ///< what it is about: "container vm0: mapping 3 of 512 at iova 0x80000000"
  std::string cause;   ///< what was found, in one clause
  std::string remedy;  ///< what to type or change next; may be empty
  int sys_errno = 0;   ///< errno of the failed system call, 0 if none
  std::vector<std::string> details;  ///< further lines, shown indented below the first
  std::vector<std::string> context;  ///< what was being done, innermost first

  /// Adds what the caller was doing ("freeze", "open arena /var/lib/holdfast/arena").
  Error&& in(std::string doing) &&;
  Error& in(std::string doing) &;

  Error&& with_remedy(std::string text) &&;
  Error&& with_detail(std::string line) &&;

  /// "restore: container vm0: mapping 3 …: differs from the page tables [HF-…]" then the details
  /// and the remedy on indented lines of their own. No trailing newline.
  [[nodiscard]] std::string message() const;
  /// The first line of message() only.
  [[nodiscard]] std::string headline() const;
};

template <typename T>
using Result = std::expected<T, Error>;

/// A failure of a system call: cause is "ACT: strerror(err)". `err` must be read before anything
/// else can change errno, hence it is passed in.
[[nodiscard]] std::unexpected<Error> fail_errno(int err, std::string_view object,
                                                std::string_view act);

/// A failure without errno, exit 1.
[[nodiscard]] std::unexpected<Error> fail(std::string_view object, std::string_view cause,
                                          std::string_view remedy = {});

/// A refusal or verification failure with its stable code.
[[nodiscard]] std::unexpected<Error> refuse(Exit exit, std::string_view code,
                                            std::string_view object, std::string_view cause,
                                            std::string_view remedy = {});

/// Passes an error on, with context: `return pass(std::move(r).error(), "freeze");`
[[nodiscard]] std::unexpected<Error> pass(Error error, std::string doing = {});

}  // namespace holdfast

// HOLDFAST_TRY(expr): returns the error of a Result<void> from the enclosing function.
// HOLDFAST_TRY_ASSIGN(auto x, expr): the same, and keeps the value.
#define HOLDFAST_CONCAT_(a, b) a##b
#define HOLDFAST_CONCAT(a, b) HOLDFAST_CONCAT_(a, b)
#define HOLDFAST_TRY(expr)                                        \
  do {                                                            \
    if (auto holdfast_result = (expr); !holdfast_result)          \
      return std::unexpected(std::move(holdfast_result).error()); \
  } while (false)
#define HOLDFAST_TRY_ASSIGN_(tmp, decl, expr)               \
  auto tmp = (expr);                                        \
  if (!tmp) return std::unexpected(std::move(tmp).error()); \
  decl = std::move(*tmp)
#define HOLDFAST_TRY_ASSIGN(decl, expr) \
  HOLDFAST_TRY_ASSIGN_(HOLDFAST_CONCAT(holdfast_try_, __COUNTER__), decl, expr)
