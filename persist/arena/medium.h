#pragma once

// What an arena lies on. Writes become durable at sync() and may reach the medium in any order
// before that; data() shows them at once. One Medium belongs to one Reader or Writer.

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "persist/arena/format.h"
#include "persist/base/result.h"

namespace holdfast::arena {

/// Held while a generation is looked at; its extents are not reused meanwhile.
class Lease {
 public:
  virtual ~Lease() = default;
};

class Medium {
 public:
  virtual ~Medium() = default;
  Medium() = default;
  Medium(const Medium&) = delete;
  Medium& operator=(const Medium&) = delete;

  [[nodiscard]] virtual std::string path() const = 0;
  [[nodiscard]] virtual std::string_view name() const = 0;  ///< "file", "block", "devdax", …
  /// Of "kill", "kexec", "power loss": what durable bytes survive.
  [[nodiscard]] virtual std::vector<std::string> survives() const = 0;
  [[nodiscard]] virtual uint64_t size() const = 0;  ///< bytes
  /// The whole medium, read-only, coherent with write(); valid while the Medium lives.
  [[nodiscard]] virtual const std::byte* data() const = 0;

  virtual Result<void> write(uint64_t offset, std::span<const std::byte> bytes) = 0;
  virtual Result<void> sync() = 0;
  /// Writes a superblock so that a cut leaves the old one, the new one, or one marked
  /// kBeingWritten. Durable after the next sync().
  Result<void> write_superblock(uint64_t offset, const Superblock& superblock);

  /// Lets go of memory that looking at data() has taken; what is looked at again comes back.
  virtual void relax() {}

  /// Takes the one writer's lock for the life of this Medium: else HF-ARENA-LOCKED, with the pid.
  virtual Result<void> lock_writer() = 0;
  /// Shares generation `number`; refused (HF-GENERATION-GONE) once a writer retired it.
  virtual Result<std::shared_ptr<Lease>> lease(uint64_t number) = 0;
  /// Writer only: true when nobody leases `number`; from then on nobody can.
  virtual bool retire(uint64_t number) = 0;

 protected:
  /// Whether an aligned 512-byte write is never seen in part after a crash.
  [[nodiscard]] virtual bool sector_atomic() const { return true; }
};

enum class MediumAccess { kRead, kWrite };

/// Opens a regular file, a block device or a devdax device by what it is.
Result<std::unique_ptr<Medium>> open_medium(const std::string& path, MediumAccess access);

/// Told of everything that a dax medium does to its memory, right after it, in program order: a
/// test that keeps it can put down what a cut between any two would have left.
class DaxTrace {
 public:
  virtual ~DaxTrace() = default;
  /// Past the cache, 8 bytes: durable with the next fence.
  virtual void streamed(uint64_t offset, std::span<const std::byte> bytes) = 0;
  /// Into the cache: durable with a fence after its line was written back.
  virtual void stored(uint64_t offset, std::span<const std::byte> bytes) = 0;
  virtual void written_back(uint64_t line) = 0;  ///< offset of 64 bytes
  virtual void fenced() = 0;
};

/// A mapping of `size` bytes written by stores, cache-line write-back and fences, whatever `path`
/// is: a devdax device, or a file in tests. `trace` outlives the medium.
Result<std::unique_ptr<Medium>> open_dax_medium(const std::string& path, uint64_t size,
                                                MediumAccess access, DaxTrace* trace = nullptr);

/// Creates or resizes a regular file of `size` bytes with all blocks allocated and written, so that
/// later writes need no filesystem metadata. Devices: checks that `size` fits.
Result<void> prepare_medium(const std::string& path, uint64_t size);

/// Bytes of a device (block: BLKGETSIZE64, devdax: sysfs) or file.
Result<uint64_t> medium_capacity(const std::string& path);

}  // namespace holdfast::arena
