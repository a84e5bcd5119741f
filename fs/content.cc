#include "fs/content.h"

#include <algorithm>
#include <cstring>

#include "persist/base/checked.h"

namespace holdfast::fs {
namespace {

using namespace literals;

// The part of [offset, offset+length) that lies within `size` bytes.
uint64_t clip(uint64_t offset, uint64_t length, uint64_t size) {
  return offset >= size ? 0 : std::min(length, size - offset);
}

class TextContent final : public Content {
 public:
  explicit TextContent(std::shared_ptr<const std::string> text) : text_(std::move(text)) {}
  uint64_t size() const override { return text_->size(); }
  std::span<const char> read(uint64_t offset, uint64_t length, Scratch&) const override {
    const uint64_t take = clip(offset, length, text_->size());
    return take == 0 ? std::span<const char>() : std::span(text_->data() + offset, take);
  }

 private:
  std::shared_ptr<const std::string> text_;
};

class MappedContent final : public Content {
 public:
  MappedContent(std::span<const std::byte> bytes, std::shared_ptr<const void> lease)
      : bytes_(bytes), lease_(std::move(lease)) {}
  uint64_t size() const override { return bytes_.size(); }
  std::span<const char> read(uint64_t offset, uint64_t length, Scratch&) const override {
    const uint64_t take = clip(offset, length, bytes_.size());
    if (take == 0) return {};
    return {reinterpret_cast<const char*>(bytes_.data()) + offset, take};
  }

 private:
  std::span<const std::byte> bytes_;
  std::shared_ptr<const void> lease_;
};

class LinesContent final : public Content {
 public:
  explicit LinesContent(Lines lines) : lines_(std::move(lines)) {}
  uint64_t size() const override { return lines_.size(); }

  std::span<const char> read(uint64_t offset, uint64_t length, Scratch& scratch) const override {
    const uint64_t take = clip(offset, length, size());
    if (take == 0) return {};
    const uint64_t head = lines_.header.size();
    const uint64_t body_end = head + lines_.width * lines_.count;
    const uint64_t end = offset + take;
    // Lines are rendered whole, so up to one line before and one behind is rendered too much.
    const uint64_t begin_line = offset <= head ? 0 : (offset - head) / lines_.width;
    const uint64_t stop = std::min(end, body_end);
    const uint64_t end_line =
        stop <= head ? begin_line : (stop - head + lines_.width - 1) / lines_.width;
    const uint64_t count = end_line > begin_line ? end_line - begin_line : 0;
    char* const buffer = scratch.room(head + count * lines_.width + lines_.footer.size());
    char* out = buffer;
    uint64_t start = head + begin_line * lines_.width;  // file offset of buffer[0]
    if (offset < head) {
      std::memcpy(out, lines_.header.data(), head);
      out += head;
      start = 0;
    } else if (offset >= body_end) {
      start = body_end;
    }
    if (count > 0 && offset < body_end) {
      lines_.render(begin_line, count, out);
      out += count * lines_.width;
    }
    if (end > body_end) std::memcpy(out, lines_.footer.data(), lines_.footer.size());
    return {buffer + (offset - start), take};
  }

 private:
  Lines lines_;
};

}  // namespace

char* Scratch::room(size_t bytes) {
  if (bytes > size_) {
    size_ = std::max(bytes, 2 * size_);
    data_ = std::make_unique_for_overwrite<char[]>(size_);
  }
  return data_.get();
}

ContentPtr text_content(std::string text) {
  return std::make_shared<TextContent>(std::make_shared<const std::string>(std::move(text)));
}
ContentPtr text_content(std::shared_ptr<const std::string> text) {
  return std::make_shared<TextContent>(std::move(text));
}
ContentPtr mapped_content(std::span<const std::byte> bytes, std::shared_ptr<const void> lease) {
  return std::make_shared<MappedContent>(bytes, std::move(lease));
}
ContentPtr lines_content(Lines lines) {
  return std::make_shared<LinesContent>(std::move(lines));
}

Hash128 hash_of(const Content& content, Scratch& scratch) {
  if (content.size() <= 256_KiB)
    return xxh3_128(std::as_bytes(content.read(0, content.size(), scratch)));
  StreamHash hash;
  for (uint64_t offset = 0;;) {
    const auto piece = content.read(offset, 256_KiB, scratch);
    if (piece.empty()) return hash.digest();
    hash.update(std::as_bytes(piece));
    offset += piece.size();
  }
}

}  // namespace holdfast::fs
