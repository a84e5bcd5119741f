// Making an arena.

#include <fmt/format.h>

#include <sys/stat.h>
#include <algorithm>
#include <chrono>
#include <cstring>

#include "persist/arena/catalog.h"
#include "persist/arena/medium.h"
#include "persist/arena/superblock.h"
#include "persist/arena/writer.h"
#include "persist/base/checked.h"
#include "persist/model/mapping.h"

namespace holdfast::arena {
namespace {

struct Plan {
  uint64_t size = 0, main_length = 0, files_length = 0, table_reserve = 0;
};

// Room for retain + 2 generations (one in the making, one sealed), each with page-table pages,
// and for the journal up to a checkpoint and beyond.
Result<Plan> plan(const InitOptions& options, uint64_t capacity) {
  const auto bad = [](std::string_view cause) { return fail("init", cause); };
  constexpr uint64_t kMost = 1ull << 32;
  if (options.retain == 0 || options.retain > kMaxRetain) return bad("retain must be 1 to 16");
  if (options.for_mappings > kMost || options.table_bytes > kMaximumSize ||
      options.files_quota > kMaximumSize || options.size > kMaximumSize)
    return fail("init", "asks for more than 64 TiB or 2^32 mappings", "ask for less");
  Plan out;
  const uint64_t mappings = std::max<uint64_t>(options.for_mappings, 1024);
  const uint64_t generations = options.retain + 2;
  const uint64_t tables = align_down(mappings * sizeof(Mapping) + kUnit, kUnit);
  // A 4 KiB leaf table serves 512 pages: 8 bytes a mapping in the worst case, plus upper levels.
  const uint64_t guessed = std::max<uint64_t>(mappings * 9, 512 << 10);
  out.table_reserve = *align_up(options.table_bytes != 0 ? options.table_bytes : guessed, kUnit);
  const uint64_t journal = *align_up(mappings * 64 * 5 / 4, kSegmentSize) + 8 * kSegmentSize;
  const uint64_t main = generations * (tables + out.table_reserve) + journal + (2 << 20);
  out.files_length = *align_up(options.files_quota, kUnit);
  if (out.files_length > 0) out.files_length = std::max<uint64_t>(out.files_length, 64 << 10);
  const uint64_t asked = options.size != 0 ? options.size : capacity;
  out.size = align_down(asked != 0 ? asked : kMainStart + main + out.files_length, kUnit);
  out.size = std::max(out.size, asked != 0 ? out.size : kMinimumSize);
  constexpr uint64_t kLeastMain = 768 << 10;
  if (out.size < kMinimumSize || out.size > kMaximumSize ||
      out.size < kMainStart + kLeastMain + out.files_length)
    return refuse(
        Exit::kRefused, "HF-ARENA-SIZE", "init",
        fmt::format("{} bytes are too few: superblocks, files/ and the least main area "
                    "take {}",
                    asked != 0 ? asked : out.size, kMainStart + kLeastMain + out.files_length),
        "ask for more, or for a smaller files quota");
  out.main_length = out.size - kMainStart - out.files_length;
  out.table_reserve = std::min(out.table_reserve, align_down(out.main_length / 4, kUnit));
  return out;
}

Result<ExtentRef> put(Medium& medium, uint64_t offset, const std::vector<std::byte>& bytes) {
  HOLDFAST_TRY(medium.write(offset, bytes));
  return ExtentRef{offset, bytes.size(), xxh3_128(bytes)};
}

// Two commits, so that all copies of both slots are whole from the beginning.
Result<void> put_superblocks(Medium& medium, Superblock superblock) {
  for (uint64_t commit = 1; commit <= 2; ++commit) {
    superblock.commit = commit;
    seal_superblock(superblock);
    HOLDFAST_TRY(commit_superblock(medium, superblock));
  }
  return {};
}

}  // namespace

Result<Uuid> init_medium(Medium& medium, const InitOptions& options) {
  InitOptions sized = options;
  if (sized.size == 0 || sized.size > medium.size()) sized.size = medium.size();
  HOLDFAST_TRY_ASSIGN(const Plan layout, plan(sized, medium.size()));
  HOLDFAST_TRY(medium.lock_writer());
  if (!options.overwrite) {
    const auto found = choose_superblock(medium, TreeKind::kMain);
    if (found || found.error().code != "HF-ARENA-FOREIGN")
      return refuse(Exit::kRefused, "HF-ARENA-EXISTS", "arena " + medium.path(),
                    "holds an arena already", "`holdfast init --force` destroys it");
  }
  // First nothing there is an arena any more, then the new one appears, superblocks last.
  const std::vector<std::byte> zeros(kMainStart);
  HOLDFAST_TRY(medium.write(0, zeros));
  HOLDFAST_TRY(medium.sync());
  Superblock superblock;
  const Uuid uuid = Uuid::random();
  superblock.uuid = uuid.bytes;
  superblock.medium_size = layout.size;
  superblock.main_length = layout.main_length;
  superblock.files_start = kMainStart + layout.main_length;
  superblock.files_length = layout.files_length;
  superblock.table_reserve = layout.table_reserve;
  superblock.retain = options.retain;
  superblock.created_ns =
      static_cast<uint64_t>(std::chrono::duration_cast<std::chrono::nanoseconds>(
                                std::chrono::system_clock::now().time_since_epoch())
                                .count());
  if (layout.files_length > 0) {
    Superblock files = superblock;
    files.kind = TreeKind::kFiles;
    HOLDFAST_TRY_ASSIGN(files.root, put(medium, superblock.files_start, encode(FileTree{})));
    HOLDFAST_TRY(put_superblocks(medium, files));
  }
  HOLDFAST_TRY_ASSIGN(superblock.root, put(medium, kMainStart, encode(Root{})));
  HOLDFAST_TRY(put_superblocks(medium, superblock));
  return uuid;
}

Result<Uuid> init(const std::string& path, const InitOptions& options) {
  struct stat status{};
  const bool exists = ::stat(path.c_str(), &status) == 0;
  const bool device = exists && !S_ISREG(status.st_mode);
  uint64_t capacity = 0;
  if (device) {
    HOLDFAST_TRY_ASSIGN(capacity, medium_capacity(path));
  } else if (exists && status.st_size > 0 && !options.overwrite) {
    return refuse(Exit::kRefused, "HF-ARENA-EXISTS", "arena " + path,
                  "exists already and is not empty", "`holdfast init --force` destroys it");
  }
  HOLDFAST_TRY_ASSIGN(const Plan layout, plan(options, capacity));
  if (exists && !device && static_cast<uint64_t>(status.st_size) >= kMainStart) {
    // Ours to overwrite only when no writer is at it.
    HOLDFAST_TRY_ASSIGN(const auto held, open_medium(path, MediumAccess::kWrite));
    HOLDFAST_TRY(held->lock_writer());
    HOLDFAST_TRY(prepare_medium(path, layout.size));
  } else {
    HOLDFAST_TRY(prepare_medium(path, layout.size));
  }
  HOLDFAST_TRY_ASSIGN(const auto medium, open_medium(path, MediumAccess::kWrite));
  return init_medium(*medium, options);
}

}  // namespace holdfast::arena
