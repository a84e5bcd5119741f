#pragma once

// A folder like /sys/kernel/iommu_preserve of a kernel with a pool: one container's tables, three
// levels, at 0x60003000, device 0000:00:03.0 in front of them.

#include <array>
#include <cstring>
#include <filesystem>
#include <string>
#include <vector>

#include "persist/base/io.h"
#include "tests/support/scratch.h"

namespace holdfast::testing {

class PreserveFolder {
 public:
  static constexpr uint64_t kBase = 0x60000000, kSize = 2 << 20;
  static constexpr uint64_t kRoot = 0x60003000, kContext = 0x60001180;
  static constexpr const char* kBdf = "0000:00:03.0";
  static constexpr const char* kLines =
      "domain root=0x60003000 levels=3 state=held,inherited,parked pages=3\n"
      "device 0000:00:03.0 root=0x60003000 unit=dmar0 did=1 context=0x60001180 lo=0x60003001 "
      "hi=0x101\n"
      "range root=0x60003000 start=0x60003000 bytes=12288\n";

  explicit PreserveFolder(const std::string& sysfs) : path_(sysfs + "/kernel/iommu_preserve") {
    std::filesystem::create_directories(path_);
    put("abi", "1\n");
    put("pool_base", std::to_string(kBase) + "\n");
    put("pool_size", std::to_string(kSize) + "\n");
    put("pool_used", "28672\n");
    put("domains", kLines);
    put("release", "");
    pool_.resize(kSize);
    set(kContext, 0x60003001);
    set(kContext + 8, 0x101);
    set(kRoot, 0x60004003);
    set(0x60004000, 0x60005003);
    set(0x60005000, 0x140000003);
    set(0x60005008, 0x140001001);
    flush();
  }
  void put(const std::string& name, const std::string& text) const {
    (void)write_file(path_ + "/" + name, text);
  }
  [[nodiscard]] std::string get(const std::string& name) const {
    return read_file(path_ + "/" + name).value_or("");
  }
  /// Eight bytes of the pool at a physical address, after flush().
  void set(uint64_t physical, uint64_t value) {
    std::memcpy(pool_.data() + (physical - kBase), &value, sizeof value);
  }
  void flush() { put("pool", pool_); }
  [[nodiscard]] const std::string& path() const { return path_; }

 private:
  std::string path_;
  std::string pool_;
};

}  // namespace holdfast::testing
