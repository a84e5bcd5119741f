#include "persist/arena/medium_memory.h"

#include <sys/mman.h>

#include <cerrno>
#include <cstring>

#include "persist/base/checked.h"

namespace holdfast::arena {

MemoryDisk::MemoryDisk(uint64_t size, Atomicity atomicity) : size_(size), atomicity_(atomicity) {
  void* memory = ::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  data_ = memory == MAP_FAILED ? nullptr : static_cast<std::byte*>(memory);
  if (data_ == nullptr) {
    size_ = 0;
    return;
  }
  uint64_t state = 0x9e3779b97f4a7c15;
  for (uint64_t at = 0; at + 8 <= size_; at += 8) {
    state = state * 6364136223846793005 + 1442695040888963407;
    std::memcpy(data_ + at, &state, 8);
  }
}

MemoryDisk::MemoryDisk(std::vector<std::byte> content, Atomicity atomicity)
    : size_(content.size()), atomicity_(atomicity) {
  void* memory = ::mmap(nullptr, size_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  data_ = memory == MAP_FAILED ? nullptr : static_cast<std::byte*>(memory);
  if (data_ == nullptr) {
    size_ = 0;
    return;
  }
  std::memcpy(data_, content.data(), size_);
}

MemoryDisk::~MemoryDisk() {
  if (data_ != nullptr) ::munmap(data_, size_);
}

void MemoryDisk::fail_writes(int error, uint64_t more) {
  write_error_ = error;
  writes_before_error_ = more;
}

class MemoryMedium final : public Medium {
 public:
  explicit MemoryMedium(std::shared_ptr<MemoryDisk> disk) : disk_(std::move(disk)) {}
  ~MemoryMedium() override {
    if (!writer_) return;
    const std::scoped_lock lock(disk_->lock_);
    disk_->writer_ = false;
    disk_->retired_.clear();
  }

  std::string path() const override { return "memory"; }
  std::string_view name() const override { return "memory"; }
  std::vector<std::string> survives() const override { return {}; }
  uint64_t size() const override { return disk_->size_; }
  const std::byte* data() const override { return disk_->data_; }

  Result<void> write(uint64_t offset, std::span<const std::byte> bytes) override {
    const std::scoped_lock lock(disk_->lock_);
    if (!fits(offset, bytes.size(), size())) return fail("memory", "write beyond its end");
    if (disk_->write_error_ != 0) {
      if (disk_->writes_before_error_ == 0)
        return fail_errno(disk_->write_error_, "memory", "write");
      --disk_->writes_before_error_;
    }
    std::memcpy(disk_->data_ + offset, bytes.data(), bytes.size());
    ++disk_->writes_;
    if (disk_->recording_) disk_->steps_.push_back({false, offset, {bytes.begin(), bytes.end()}});
    return {};
  }
  Result<void> sync() override {
    const std::scoped_lock lock(disk_->lock_);
    if (disk_->sync_error_ != 0) return fail_errno(disk_->sync_error_, "memory", "sync");
    ++disk_->syncs_;
    if (disk_->recording_) disk_->steps_.push_back({true, 0, {}});
    return {};
  }
  Result<void> lock_writer() override {
    const std::scoped_lock lock(disk_->lock_);
    if (writer_) return {};
    if (disk_->writer_)
      return refuse(Exit::kRefused, "HF-ARENA-LOCKED", "memory", "another writer has it");
    disk_->writer_ = writer_ = true;
    return {};
  }
  Result<std::shared_ptr<Lease>> lease(uint64_t number) override {
    const std::scoped_lock lock(disk_->lock_);
    if (disk_->retired_.contains(number))
      return refuse(Exit::kRefused, "HF-GENERATION-GONE", "generation", "is being retired");
    disk_->leases_.insert(number);
    return std::make_shared<MemoryLease>(disk_, number);
  }
  bool retire(uint64_t number) override {
    const std::scoped_lock lock(disk_->lock_);
    if (disk_->leases_.contains(number)) return false;
    disk_->retired_.insert(number);
    return true;
  }

 protected:
  bool sector_atomic() const override { return disk_->atomicity_ == Atomicity::kSector; }

 private:
  class MemoryLease final : public Lease {
   public:
    MemoryLease(std::shared_ptr<MemoryDisk> disk, uint64_t number)
        : disk_(std::move(disk)), number_(number) {}
    ~MemoryLease() override {
      const std::scoped_lock lock(disk_->lock_);
      disk_->leases_.erase(disk_->leases_.find(number_));
    }

   private:
    std::shared_ptr<MemoryDisk> disk_;
    uint64_t number_;
  };

  std::shared_ptr<MemoryDisk> disk_;
  bool writer_ = false;
};

std::unique_ptr<Medium> open_memory(std::shared_ptr<MemoryDisk> disk) {
  return std::make_unique<MemoryMedium>(std::move(disk));
}

}  // namespace holdfast::arena
