#include "persist/arena/superblock.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <thread>

#include "persist/base/checked.h"

namespace holdfast::arena {
namespace {

Hash128 checksum(const Superblock& superblock) {
  return xxh3_128(bytes_of(superblock).first(kSuperblockChecked));
}

bool checksum_matches([[maybe_unused]] const Superblock& superblock) {
#ifdef FUZZING_BUILD_MODE_UNSAFE_FOR_PRODUCTION
  return true;
#else
  return checksum(superblock) == Hash128{superblock.check_low, superblock.check_high};
#endif
}

const char* meaning_problem(const Superblock& s) {
  if (s.commit == 0) return "has commit 0";
  if (std::all_of(s.uuid.begin(), s.uuid.end(), [](uint8_t b) { return b == 0; }))
    return "has no uuid";
  if (s.medium_size < kMinimumSize || s.medium_size > kMaximumSize ||
      !is_aligned(s.medium_size, kUnit))
    return "says an impossible size";
  if (s.main_length == 0 || !is_aligned(s.main_length, kUnit) ||
      !fits(kMainStart, s.main_length, s.medium_size))
    return "says an impossible main area";
  if (s.files_start != kMainStart + s.main_length || !is_aligned(s.files_length, kUnit) ||
      !fits(s.files_start, s.files_length, s.medium_size))
    return "says an impossible files area";
  if (s.retain == 0 || s.retain > kMaxRetain) return "says an impossible number of generations";
  if (s.kind != TreeKind::kMain && s.kind != TreeKind::kFiles) return "is of no known kind";
  if (std::any_of(s.zero.begin(), s.zero.end(), [](uint8_t b) { return b != 0; }))
    return "has bytes set that format 1 does not know";
  return nullptr;
}

struct Copy {
  Superblock superblock;
  const char* problem = nullptr;  // null: whole
  bool magic = false;
  bool newer = false;        // by its version field
  bool newer_whole = false;  // and by a right checksum
  bool being_written = false;
  [[nodiscard]] bool whole() const { return problem == nullptr; }
};

Copy read_copy(const Medium& medium, TreeKind kind, uint32_t slot, uint64_t parity) {
  Copy copy;
  std::memcpy(&copy.superblock, medium.data() + superblock_offset(kind, slot, parity),
              sizeof(Superblock));
  const Superblock& s = copy.superblock;
  copy.problem = superblock_problem(s);
  copy.magic = s.magic == kMagic;
  copy.newer = copy.magic && s.version > kFormat;
  copy.newer_whole = copy.newer && checksum(s) == Hash128{s.check_low, s.check_high};
  copy.being_written = s.check_high == kBeingWritten;
  if (copy.whole() && (s.kind != kind || s.commit % 2 != parity))
    copy.problem = "belongs to another place";
  return copy;
}

const char* tree_name(TreeKind kind) {
  return kind == TreeKind::kFiles ? "files " : "";
}

Result<SuperblockChoice> choose_once(const Medium& medium, TreeKind kind) {
  const std::string object = "arena " + medium.path();
  Copy copies[2][2];
  const Copy* best = nullptr;
  bool magic = false, newer = false, newer_whole = false;
  for (uint32_t slot = 0; slot < 2; ++slot)
    for (uint64_t parity = 0; parity < 2; ++parity) {
      Copy& copy = copies[slot][parity] = read_copy(medium, kind, slot, parity);
      magic |= copy.magic;
      newer |= copy.newer;
      newer_whole |= copy.newer_whole;
      if (copy.whole() && (best == nullptr || copy.superblock.commit > best->superblock.commit))
        best = &copy;
    }
  const auto refuse_newer = [&] {
    return refuse(Exit::kUnsupported, "HF-ARENA-NEWER", object,
                  fmt::format("was written in a newer format than {}", kFormat),
                  "use the Holdfast that wrote it, or a newer one");
  };
  if (newer_whole) return refuse_newer();
  if (best == nullptr) {
    if (newer) return refuse_newer();
    if (!magic)
      return refuse(Exit::kVerification, "HF-ARENA-FOREIGN", object, "does not hold an arena",
                    "name the right one, or make one with `holdfast init`");
    return refuse(Exit::kVerification, "HF-ARENA-DAMAGED", object,
                  fmt::format("{0}superblock 0 {1}, {0}superblock 1 {2}", tree_name(kind),
                              copies[0][0].problem, copies[1][0].problem),
                  "nothing of it can be trusted; keep a copy, then `holdfast init --force`");
  }
  const Superblock& newest = best->superblock;
  if (newest.medium_size > medium.size())
    return refuse(Exit::kVerification, "HF-ARENA-TRUNCATED", object,
                  fmt::format("has {} bytes, was made with {}", medium.size(), newest.medium_size),
                  "restore the whole file from where it was copied");
  if (newest.medium_size < medium.size() && medium.name() == "file")
    return refuse(Exit::kVerification, "HF-ARENA-LONGER", object,
                  fmt::format("has {} bytes, was made with {}", medium.size(), newest.medium_size),
                  "find out what wrote behind it; `truncate` it to its size");

  const uint64_t here = newest.commit % 2, other = 1 - here;
  const auto holds = [&](uint32_t slot) {
    const Copy& copy = copies[slot][here];
    return copy.whole() && copy.superblock.commit == newest.commit &&
           copy.superblock.uuid == newest.uuid;
  };
  // A cut tears the next commit in one slot at most.
  const auto lost = [&](const Copy& copy) { return !copy.whole() && !copy.being_written; };
  if (lost(copies[0][other]) && lost(copies[1][other])) {
    if (newer) return refuse_newer();
    return refuse(Exit::kVerification, "HF-ARENA-DAMAGED", object,
                  fmt::format("{0}superblock 0 {1}, {0}superblock 1 {2}: commit {3} is not the "
                              "newest, and what came after it is lost",
                              tree_name(kind), copies[0][other].problem, copies[1][other].problem,
                              newest.commit));
  }
  SuperblockChoice choice;
  choice.newest = newest;
  choice.settled = holds(0) && holds(1);
  if (choice.settled) return choice;
  const Copy& missing = copies[holds(0) ? 1 : 0][here];
  if (holds(0) && missing.being_written) return choice;
  if (holds(0) && missing.whole() && missing.superblock.commit < newest.commit) {
    // The second write never began. The commit before is whole in slot 1 if this was a cut.
    const Copy& before = copies[1][other];
    if (before.whole() && before.superblock.commit + 1 == newest.commit &&
        before.superblock.uuid == newest.uuid)
      choice.fallback = before.superblock;
    if (choice.fallback) return choice;
  }
  choice.damaged_slot = holds(0) ? 1 : 0;
  choice.damage = fmt::format(
      "{}superblock {} {}", tree_name(kind), choice.damaged_slot,
      missing.problem != nullptr ? missing.problem : "holds an older commit than the other");
  return choice;
}

}  // namespace

void seal_superblock(Superblock& superblock) {
  const Hash128 hash = checksum(superblock);
  superblock.check_low = hash.low;
  superblock.check_high = hash.high;
}

const char* superblock_problem(const Superblock& s) {
  if (s.magic != kMagic) return "is not a superblock";
  if (s.version != kFormat) return "has another format version";
  if (s.size != kSuperblockSize) return "says another size of itself";
  if (!checksum_matches(s)) return "fails its checksum";
  return meaning_problem(s);
}

Result<SuperblockChoice> choose_superblock(const Medium& medium, TreeKind kind) {
  // A commit of a live writer may be half way through the page cache: look again before calling
  // something damaged.
  constexpr int kTries = 3;
  for (int i = 0;; ++i) {
    auto choice = choose_once(medium, kind);
    if ((choice && choice->damaged_slot < 0) || i + 1 == kTries) return choice;
    if (!choice && choice.error().code == "HF-ARENA-FOREIGN") return choice;
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
}

Result<void> commit_superblock(Medium& medium, const Superblock& next) {
  for (uint32_t slot = 0; slot < 2; ++slot) {
    HOLDFAST_TRY(medium.write_superblock(superblock_offset(next.kind, slot, next.commit), next));
    HOLDFAST_TRY(medium.sync());
  }
  return {};
}

}  // namespace holdfast::arena
