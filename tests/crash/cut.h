#pragma once

// What the crash tests hold an arena against after a cut: the state before or after the act that
// was under way, whole.

#include <fmt/format.h>

#include <string>
#include <vector>

#include "tests/unit/arena/fixture.h"

namespace holdfast::arena {

inline std::string print(const std::vector<Mapping>& mappings) {
  std::string out = fmt::format("{} mappings, {}:", mappings.size(),
                                xxh3_128(std::as_bytes(std::span(mappings))).hex());
  for (const Mapping& m : mappings) {
    out += fmt::format(" {:x}+{:x}", m.iova, m.size);
    if (out.size() > 200) break;
  }
  return out;
}

// Everything that a user could tell two states apart by, but for times and numbers yet to come.
inline std::string describe_main(const Writer& writer, const Reader& reader) {
  std::string out;
  const Manifest live = writer.live();
  const Header header = writer.header();
  const bool empty = live.containers.empty() && live.regions.empty();
  out += empty && header.state == ArenaState::kRecording ? "idle" : state_name(header.state);
  out += fmt::format(" frozen {} nonce '{}' kernel '{}' because '{}'\n", header.frozen,
                     header.nonce, header.armed_kernel, header.broken_reason);
  for (const auto& region : live.regions) out += "region " + region.name + "\n";
  for (const auto& record : live.containers)
    out +=
        fmt::format("live {} {}\n", record.container.name, print(all(writer, record.container.id)));
  for (const uint64_t number : reader.generations()) {
    out += fmt::format("generation {}", number);
    auto view = reader.generation(number);
    if (!view) return out + " UNREADABLE " + view.error().message();
    out += view->manifest().seal.sealed ? " sealed" : "";
    for (const auto& record : view->manifest().containers) {
      const uint32_t id = record.container.id;
      auto table = view->mappings(id);
      if (!table) return out + " UNREADABLE " + table.error().message();
      out += fmt::format("\n  {} {}", record.container.name, print(all(*table)));
      for (size_t i = 0; i < view->table_pages(id).size(); ++i)
        out += xxh3_128(view->table_page(id, i)).hex().substr(0, 6);
    }
    out += "\n";
  }
  for (const Event& event : writer.events()) out += "event " + event.cause + "\n";
  const auto log = reader.restore_log();
  if (log && log->started) {
    out += fmt::format("restore {}{}:", log->generation, log->finished ? " finished" : "");
    for (const auto& name : log->done) out += " " + name;
    for (const auto& name : log->taken) out += " taken " + name;
    out += "\n";
  }
  return out;
}

inline std::string describe_files(const Writer& writer, const std::string& folder = "") {
  auto list = writer.file_list(folder);
  if (!list) return "UNREADABLE " + list.error().message();
  std::string out;
  for (const FileInfo& info : *list) {
    out += fmt::format("{} {}\n", info.path, info.size);
    if (info.directory) {
      out += describe_files(writer, info.path);
      continue;
    }
    auto bytes = writer.file_read(info.path, 0, info.size);
    out += bytes ? xxh3_128(*bytes).hex() : "UNREADABLE " + bytes.error().message();
  }
  return out;
}

struct Snapshot {
  std::string main, files;
};

inline bool is_half_restored(const Writer& writer) {
  const ArenaState state = writer.header().state;
  return state == ArenaState::kRestoring || state == ArenaState::kRefused;
}

/// What its owner has taken goes on behind the sealed generation, of which nothing changes.
inline void expect_taken_goes_on(Disk& disk, const std::string& name) {
  uint64_t frozen = 0, before = 0;
  uint32_t id = 0;
  {
    auto writer = disk.writer();
    ASSERT_OK(writer);
    if (!writer->is_taken(name)) return;
    frozen = writer->header().frozen;
    id = writer->live().find(name)->container.id;
    before = writer->mapping_count(id);
    ASSERT_OK(writer->apply(map(id, 1ull << 38, 4096, writer->live().regions.front().id)));
    ASSERT_OK(writer->commit());
  }
  auto again = disk.writer();
  ASSERT_OK(again);
  EXPECT_EQ(again->mapping_count(id), before + 1);
  EXPECT_EQ(again->dropped_records(), 0u);
  auto reader = disk.reader();
  ASSERT_OK(reader);
  EXPECT_EQ(reader->header().frozen, frozen);
  EXPECT_OK(reader->verify(frozen));
}

struct Act {
  std::string name;
  size_t first = 0, last = 0;  // its steps: [first, last)
  // Durable before it, in memory when it began, and after it.
  Snapshot durable, pending, after;
};

/// Opens what a cut in `act` left, looks, and (`goes_on`) records more on it. `finished`:
/// everything of the act was durable.
inline void check_cut(std::vector<std::byte> image, Atomicity atomicity, const Act& act,
                      bool finished, bool goes_on = true) {
  Disk disk(std::move(image), atomicity);
  const bool creating = act.name == "init" && !finished;
  {
    // Looking does not depend on a writer having mended anything, and changes nothing.
    auto reader = disk.reader();
    if (creating) {
      // Half made: refused as damaged or foreign, or empty. Nobody was told that it exists.
      EXPECT_TRUE(reader ? reader->generations().empty()
                         : reader.error().exit == Exit::kVerification)
          << why(reader);
      return;
    }
    ASSERT_OK(reader);
    const auto report = reader->check();
    ASSERT_OK(report);
    for (const Object* bad : report->bad(0)) ADD_FAILURE() << bad->name << ": " << bad->problem;
  }
  std::string main, files;
  bool half = false;
  {
    auto writer = disk.writer();
    ASSERT_OK(writer);
    auto reader = disk.reader();
    ASSERT_OK(reader);
    main = describe_main(*writer, *reader);
    files = describe_files(*writer);
    half = is_half_restored(*writer);
  }
  if (finished) {
    EXPECT_EQ(main, act.after.main);
    EXPECT_EQ(files, act.after.files);
  } else {
    EXPECT_TRUE(main == act.durable.main || main == act.pending.main || main == act.after.main)
        << "found:\n"
        << main << "\nbefore:\n"
        << act.durable.main << "\nor after:\n"
        << act.after.main;
    EXPECT_TRUE(files == act.durable.files || files == act.after.files)
        << "found:\n"
        << files << "\nbefore:\n"
        << act.durable.files << "\nor after:\n"
        << act.after.files;
  }
  if (!goes_on) return;
  if (half) return expect_taken_goes_on(disk, "vm0");
  // It goes on: another record, another opening, and what was there is there still.
  uint64_t before = 0;
  uint32_t id = 0;
  {
    auto writer = disk.writer();
    ASSERT_OK(writer);
    if (writer->header().state == ArenaState::kFrozen) ASSERT_OK(writer->thaw());
    auto added = writer->add_container(container("later"));
    ASSERT_OK(added);
    auto memory = writer->add_region(region("later-ram"));
    ASSERT_OK(memory);
    id = *added;
    ASSERT_OK(writer->apply(map(id, 0, 4096, *memory)));
    ASSERT_OK(writer->commit());
    before = writer->live().containers.size();
  }
  auto again = disk.writer();
  ASSERT_OK(again);
  EXPECT_EQ(again->live().containers.size(), before);
  EXPECT_EQ(again->mapping_count(id), 1u);
  EXPECT_EQ(again->dropped_records(), 0u);
}

}  // namespace holdfast::arena
