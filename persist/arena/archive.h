#pragma once

// Boost archives over memory, with limits. Private to catalog.cc: the only file that sees a Boost
// exception.

#include <boost/archive/archive_exception.hpp>
#include <boost/archive/binary_iarchive.hpp>
#include <boost/archive/binary_oarchive.hpp>
#include <cstring>
#include <span>
#include <streambuf>
#include <string>
#include <type_traits>
#include <vector>

#include "persist/arena/format.h"

namespace holdfast::arena {

class ByteSink final : public std::streambuf {
 public:
  explicit ByteSink(std::vector<std::byte>& out) : out_(out) {}

 protected:
  std::streamsize xsputn(const char* data, std::streamsize count) override {
    const auto* from = reinterpret_cast<const std::byte*>(data);
    out_.insert(out_.end(), from, from + count);
    return count;
  }
  int_type overflow(int_type c) override {
    if (c != traits_type::eof()) out_.push_back(static_cast<std::byte>(c));
    return c;
  }

 private:
  std::vector<std::byte>& out_;
};

class ByteSource final : public std::streambuf {
 public:
  explicit ByteSource(std::span<const std::byte> bytes) {
    auto* first = const_cast<char*>(reinterpret_cast<const char*>(bytes.data()));
    setg(first, first, first + bytes.size());
  }
  [[nodiscard]] size_t remaining() const { return static_cast<size_t>(egptr() - gptr()); }
};

inline constexpr unsigned kArchiveFlags =
    boost::archive::no_header | boost::archive::no_codecvt | boost::archive::no_xml_tag_checking;

/// Thrown by Input, caught in catalog.cc.
struct Malformed {
  const char* what;
};

class Output {
 public:
  static constexpr bool kLoading = false;
  explicit Output(std::vector<std::byte>& out) : sink_(out), archive_(sink_, kArchiveFlags) {}

  template <typename T>
    requires std::is_arithmetic_v<T>
  void field(const T& value) {
    archive_ << value;
  }
  void flag(const bool& value) { field(static_cast<uint8_t>(value ? 1 : 0)); }
  template <typename T>
    requires std::is_enum_v<T>
  void choice(const T& value, T /*lowest*/, T /*highest*/) {
    field(static_cast<uint32_t>(value));
  }
  void text(const std::string& value, size_t limit) {
    const auto length = static_cast<uint32_t>(std::min(value.size(), limit));
    field(length);
    archive_.save_binary(value.data(), length);
  }
  template <typename T>
    requires std::is_trivially_copyable_v<T>
  void raw(const T& value) {
    archive_.save_binary(&value, sizeof value);
  }
  template <typename T, typename Each>
  void list(const std::vector<T>& values, size_t /*limit*/, size_t /*least*/, Each&& each) {
    field(static_cast<uint32_t>(values.size()));
    for (const T& value : values) each(value);
  }

 private:
  ByteSink sink_;
  boost::archive::binary_oarchive archive_;
};

class Input {
 public:
  static constexpr bool kLoading = true;
  explicit Input(std::span<const std::byte> bytes)
      : source_(bytes), archive_(source_, kArchiveFlags) {}

  template <typename T>
    requires std::is_arithmetic_v<T>
  void field(T& value) {
    archive_ >> value;
  }
  void flag(bool& value) {
    uint8_t byte = 0;
    field(byte);
    if (byte > 1) throw Malformed{"a flag is neither 0 nor 1"};
    value = byte == 1;
  }
  template <typename T>
    requires std::is_enum_v<T>
  void choice(T& value, T lowest, T highest) {
    uint32_t number = 0;
    field(number);
    if (number < static_cast<uint32_t>(lowest) || number > static_cast<uint32_t>(highest))
      throw Malformed{"a value is outside its list"};
    value = static_cast<T>(number);
  }
  void text(std::string& value, size_t limit) {
    uint32_t length = 0;
    field(length);
    if (length > limit || length > source_.remaining()) throw Malformed{"a string is too long"};
    value.resize(length);
    archive_.load_binary(value.data(), length);
  }
  template <typename T>
    requires std::is_trivially_copyable_v<T>
  void raw(T& value) {
    archive_.load_binary(&value, sizeof value);
  }
  /// `least` bytes each element takes at least: bounds the count by what is there.
  template <typename T, typename Each>
  void list(std::vector<T>& values, size_t limit, size_t least, Each&& each) {
    uint32_t count = 0;
    field(count);
    if (count > limit || count > source_.remaining() / least) throw Malformed{"a list is too long"};
    values.clear();
    values.reserve(count);
    for (uint32_t i = 0; i < count; ++i) each(values.emplace_back());
  }
  [[nodiscard]] size_t remaining() const { return source_.remaining(); }

 private:
  ByteSource source_;
  boost::archive::binary_iarchive archive_;
};

}  // namespace holdfast::arena
