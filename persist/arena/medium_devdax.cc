// devdax: no page cache, no fdatasync. Stores go around the cache (movnti) or are written back line
// by line, and a fence makes them durable. Only 8-byte stores are atomic.

#include <cpuid.h>
#include <emmintrin.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <immintrin.h>

#include <cstring>

#include "persist/arena/medium.h"
#include "persist/arena/medium_lock.h"
#include "persist/base/checked.h"
#include "persist/base/mapped_range.h"

namespace holdfast::arena {
namespace {

constexpr uint64_t kLine = 64;

using Flush = void (*)(const std::byte*);
__attribute__((target("clwb"))) void flush_clwb(const std::byte* line) {
  _mm_clwb(const_cast<std::byte*>(line));
}
__attribute__((target("clflushopt"))) void flush_opt(const std::byte* line) {
  _mm_clflushopt(const_cast<std::byte*>(line));
}
void flush_plain(const std::byte* line) {
  _mm_clflush(line);
}

// Intel SDM vol. 2, CPUID leaf 7 EBX: bit 24 CLWB, bit 23 CLFLUSHOPT.
Flush choose_flush() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (__get_cpuid_count(7, 0, &a, &b, &c, &d) != 0) {
    if ((b & (1u << 24)) != 0) return flush_clwb;
    if ((b & (1u << 23)) != 0) return flush_opt;
  }
  return flush_plain;
}

class DaxMedium final : public Medium {
 public:
  DaxMedium(std::string path, UniqueFd fd, MappedRange range, DaxTrace* trace)
      : path_(std::move(path)), fd_(std::move(fd)), range_(std::move(range)), trace_(trace) {}

  std::string path() const override { return path_; }
  std::string_view name() const override { return "devdax"; }
  // Power loss only where the memory itself is persistent; `memmap=` memory is not.
  std::vector<std::string> survives() const override { return {"kill", "kexec"}; }
  uint64_t size() const override { return range_.size(); }
  const std::byte* data() const override { return range_.data(); }

  Result<void> write(uint64_t offset, std::span<const std::byte> bytes) override {
    if (!fits(offset, bytes.size(), size())) return fail("arena " + path_, "write beyond its end");
    uint64_t at = offset;
    uint64_t left = bytes.size();
    if (is_aligned(offset, 8))
      for (; left >= 8; at += 8, left -= 8) stream(at, bytes.data() + (at - offset));
    if (left > 0) store(at, bytes.last(left));
    return {};
  }
  Result<void> sync() override {
    _mm_sfence();
    if (trace_ != nullptr) trace_->fenced();
    return {};
  }
  Result<void> lock_writer() override { return arena::lock_writer(fd_, path_); }
  Result<std::shared_ptr<Lease>> lease(uint64_t number) override {
    return lock_lease(fd_, path_, number);
  }
  bool retire(uint64_t number) override { return lock_retire(fd_, number); }

 protected:
  bool sector_atomic() const override { return false; }

 private:
  void stream(uint64_t at, const std::byte* from) {
    long long word = 0;
    std::memcpy(&word, from, 8);
    _mm_stream_si64(reinterpret_cast<long long*>(range_.data() + at), word);
    if (trace_ != nullptr) trace_->streamed(at, {from, 8});
  }
  void store(uint64_t at, std::span<const std::byte> bytes) {
    std::memcpy(range_.data() + at, bytes.data(), bytes.size());
    if (trace_ != nullptr) trace_->stored(at, bytes);
    // The mapping begins on a page: lines of the medium are lines of the cache.
    for (uint64_t line = align_down(at, kLine); line < at + bytes.size(); line += kLine) {
      flush_(range_.data() + line);
      if (trace_ != nullptr) trace_->written_back(line);
    }
  }

  std::string path_;
  UniqueFd fd_;
  MappedRange range_;
  DaxTrace* trace_;
  Flush flush_ = choose_flush();
};

}  // namespace

Result<std::unique_ptr<Medium>> open_dax_medium(const std::string& path, uint64_t size,
                                                MediumAccess access, DaxTrace* trace) {
  if (size < kMainStart)
    return refuse(Exit::kVerification, "HF-ARENA-TRUNCATED", "arena " + path,
                  fmt::format("has {} bytes, less than its superblocks take", size));
  const bool write = access == MediumAccess::kWrite;
  HOLDFAST_TRY_ASSIGN(UniqueFd fd, open_fd(path, write ? O_RDWR : O_RDONLY));
  auto range = MappedRange::map(
      fd, 0, size, write ? MappedRange::Mode::kReadWrite : MappedRange::Mode::kReadOnly);
  if (!range) return pass(std::move(range).error(), "arena " + path);
  return std::make_unique<DaxMedium>(path, std::move(fd), std::move(*range), trace);
}

Result<void> Medium::write_superblock(uint64_t offset, const Superblock& superblock) {
  const auto bytes = bytes_of(superblock);
  if (sector_atomic()) return write(offset, bytes);
  // Marked first, finished last, each step fenced: whoever finds the mark knows that this slot was
  // cut while being written, and does not take it for damage.
  constexpr uint64_t kLast = offsetof(Superblock, check_high);
  HOLDFAST_TRY(write(offset + kLast, bytes_of(kBeingWritten)));
  HOLDFAST_TRY(sync());
  HOLDFAST_TRY(write(offset, bytes.first(kLast)));
  HOLDFAST_TRY(sync());
  return write(offset + kLast, bytes.subspan(kLast));
}

}  // namespace holdfast::arena
