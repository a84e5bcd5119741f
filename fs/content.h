#pragma once

// What an open file of the view shows. Immutable while it lives; read from any thread.

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>

#include "fs/source.h"
#include "persist/base/hash.h"
#include "persist/base/result.h"

namespace holdfast::fs {

/// A buffer that a thread reuses from read to read; grows, is never cleared.
class Scratch {
 public:
  [[nodiscard]] char* room(size_t bytes);

 private:
  std::unique_ptr<char[]> data_;
  size_t size_ = 0;
};

class Content {
 public:
  virtual ~Content() = default;
  [[nodiscard]] virtual uint64_t size() const = 0;  ///< bytes
  /// Up to `length` bytes from `offset`, fewer only at the end. They lie in `scratch` or in the
  /// arena itself and stay valid until the next use of `scratch` or the end of this object.
  [[nodiscard]] virtual std::span<const char> read(uint64_t offset, uint64_t length,
                                                   Scratch& scratch) const = 0;
};

using ContentPtr = std::shared_ptr<const Content>;

/// A text that is kept whole.
[[nodiscard]] ContentPtr text_content(std::string text);
[[nodiscard]] ContentPtr text_content(std::shared_ptr<const std::string> text);

/// Bytes that lie in the arena; `lease` keeps them there.
[[nodiscard]] ContentPtr mapped_content(std::span<const std::byte> bytes,
                                        std::shared_ptr<const void> lease);

/// Header, `count` lines of `width` bytes, footer. `render(first, count, out)` writes lines.
struct Lines {
  std::string header, footer;
  uint64_t width = 0, count = 0;
  std::function<void(uint64_t first, uint64_t count, char* out)> render;
  [[nodiscard]] uint64_t size() const { return header.size() + width * count + footer.size(); }
};
[[nodiscard]] ContentPtr lines_content(Lines lines);

/// XXH3-128 over all of it, in pieces.
[[nodiscard]] Hash128 hash_of(const Content& content, Scratch& scratch);

}  // namespace holdfast::fs
