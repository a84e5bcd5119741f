#pragma once

// A whole crossing on the simulated kernel: a driver's device does DMA, its mappings are recorded
// and frozen in a real arena, the kernel goes, another comes. The device never stops to wait for
// us.

#include <fcntl.h>

#include <algorithm>
#include <array>
#include <functional>
#include <list>
#include <map>
#include <optional>
#include <span>

#include "persist/arena/writer.h"
#include "persist/base/io.h"
#include "persist/pagetable/capture.h"
#include "persist/pagetable/context.h"
#include "restore/execute.h"
#include "restore/kernel/sim/context.h"
#include "restore/prepare.h"
#include "tests/unit/sim/lab.h"

namespace holdfast::restore::testing {

inline constexpr const char* kNonce = "00112233445566778899aabbccddeeff";

/// Custody in this process.
class Shelf : public Custody {
 public:
  Result<void> deposit(Restored& restored) override {
    if (refuse_deposit) return fail("custody", "is full");
    const std::string name = restored.name;
    held_.insert_or_assign(name, std::move(restored));
    return {};
  }
  Result<Restored> withdraw(const std::string& name) override {
    const auto it = held_.find(name);
    if (it == held_.end()) return fail(name, "is not held");
    Restored out = std::move(it->second);
    held_.erase(it);
    return out;
  }
  Result<Held> held(const std::string& name) override {
    const auto it = held_.find(name);
    if (it == held_.end()) return fail(name, "is not held");
    return Held{it->second.container, it->second.strategy};
  }
  [[nodiscard]] std::vector<std::string> names() const {
    std::vector<std::string> out;
    for (const auto& [name, restored] : held_) out.push_back(name);
    return out;
  }
  Restored& operator[](const std::string& name) { return held_.at(name); }
  bool refuse_deposit = false;

 private:
  std::map<std::string, Restored> held_;
};

/// The restore log, in the arena.
class WriterLog : public RestoreLog {
 public:
  explicit WriterLog(arena::Writer& writer) : writer_(writer) {}
  Result<void> started(uint64_t generation, const Uuid& boot) override {
    return writer_.restore_started(generation, boot);
  }
  Result<void> done(const std::string& name) override {
    if (refuse_done) return fail("log", "medium is full");
    return writer_.restore_done(name);
  }
  Result<void> failed(const std::string& name, const Error&) override {
    return writer_.restore_failed(name);
  }
  Result<void> finished() override { return writer_.restore_finished(); }
  void blocked(const std::string&, const Error& event) override {
    if (blocked_events != nullptr) blocked_events->push_back(event);
  }
  bool refuse_done = false;
  std::vector<Error>* blocked_events = nullptr;

 private:
  arena::Writer& writer_;
};

class World : public sim::testing::Lab {
 protected:
  /// Changes a device's context entry behind everybody's back.
  void write(const std::string& bdf, const std::function<void(sim::ContextEntry&)>& change) {
    auto entry = sim::read_context(*machine, bdf);
    ASSERT_TRUE(entry);
    change(*entry);
    sim::write_context(*machine, bdf, entry);
  }
  /// Records vm0 with its device at work and freezes it. `recorded` may differ from what is mapped.
  void record(Policy policy, bool consents = true, bool evidence = true) {
    boot();
    open();
    if (mapped.empty()) mapped = scattered(6);
    if (recorded.empty()) recorded = mapped;
    map_all(mapped);
    open_device();
    if (two_domains || !paired.empty()) map_second_domain(paired.empty() ? mapped : paired);
    start_dma(mapped);
    arena::InitOptions sizes;
    sizes.for_mappings = 4096;
    sizes.table_bytes = 1 << 20;
    auto made = arena::init(arena_path, sizes);
    ASSERT_TRUE(made) << made.error().message();
    arena_id = *made;
    auto writer = arena::Writer::open(arena_path);
    ASSERT_TRUE(writer) << writer.error().message();
    for (const char* name : {"dax0", "dax1"}) {
      auto region = machine->describe_region(machine->region_path(name));
      ASSERT_TRUE(region) << region.error().message();
      region->name = name;
      if (as_recorded) as_recorded(*region);
      ASSERT_TRUE(writer->add_region(*region));
    }
    Container vm0;
    vm0.name = "vm0";
    vm0.kind = ContainerKind::kSim;
    vm0.devices = {*machine->describe_device(kBdf)};
    vm0.devices[0].consents_to_reinit = consents;
    if (two_domains) vm0.devices.push_back(*machine->describe_device(kSecondBdf));
    vm0.evidence = evidence ? Evidence::kTables : Evidence::kNone;
    auto limits = port->limits(container);
    ASSERT_TRUE(limits) << limits.error().message();
    vm0.aperture = limits->aperture;
    const auto id = writer->add_container(vm0);
    ASSERT_TRUE(id) << id.error().message();
    for (const Mapping& mapping : recorded) {
      auto applied = writer->apply({arena::Change::Kind::kMap, *id, mapping});
      ASSERT_TRUE(applied) << applied.error().message();
    }
    std::vector<arena::CapturedTables> tables;
    if (!paired.empty()) {
      Container vm1 = vm0;
      vm1.name = "vm1";
      vm1.devices = {*machine->describe_device(kSecondBdf)};
      for (const char* bdf : also_paired) vm1.devices.push_back(*machine->describe_device(bdf));
      for (auto& one : vm1.devices) one.consents_to_reinit = consents;
      vm1.evidence = paired_evidence ? Evidence::kTables : Evidence::kNone;
      const auto other = writer->add_container(vm1);
      ASSERT_TRUE(other) << other.error().message();
      for (const Mapping& mapping : paired)
        ASSERT_TRUE(writer->apply({arena::Change::Kind::kMap, *other, mapping}));
      if (paired_evidence) tables.push_back(captured(*other, {&second}, vm1.devices));
    }
    ASSERT_TRUE(writer->commit());
    ASSERT_TRUE(writer->arm(kNonce, "kernel"));
    if (evidence && !paired.empty())
      tables.insert(tables.begin(), captured(*id, {&container}, vm0.devices));
    else if (evidence)
      tables.push_back(captured(*id, {&container, &second}, vm0.devices));
    Seal seal;
    seal.sealed = true;
    seal.policy = policy;
    seal.nonce = kNonce;
    const auto frozen = writer->freeze(seal, tables);
    ASSERT_TRUE(frozen) << frozen.error().message();
    generation = *frozen;
  }
  /// The live tables and context entries of a container with these domains and devices, as the
  /// agent keeps them.
  arena::CapturedTables captured(uint32_t id, const std::vector<const UniqueFd*>& domains,
                                 const std::vector<Device>& devices) {
    arena::CapturedTables all{.container = id, .pages = {}, .bytes = {}};
    std::map<uint64_t, std::pair<TablePage, const std::byte*>> pages;  // of all domains
    for (const UniqueFd* domain : domains) {
      if (!domain->valid()) continue;
      auto source = port->tables(*domain);
      EXPECT_TRUE(source) << source.error().message();
      const auto root = (*source)->roots()->front();
      auto walked = pagetable::capture({root.physical, root.levels},
                                       [&](uint64_t at) { return (*source)->page(at); });
      EXPECT_TRUE(walked) << walked.error().message();
      if (all.root == 0) {
        all.root = root.physical;
        all.levels = root.levels;
        all.domain_id = root.domain_id;
      }
      for (size_t i = 0; i < walked->pages.size(); ++i)
        pages[walked->pages[i].physical] = {walked->pages[i], walked->bytes[i]};
      captures_.push_back(std::move(*walked));
    }
    auto source = port->tables_of(*domains.front(), devices);
    EXPECT_TRUE(source) << source.error().message();
    std::vector<pagetable::ContextSlot> slots;
    const auto live = (*source)->contexts().value();
    for (const auto& entry : live) slots.push_back({entry.physical, entry.lo, entry.hi});
    const auto& contexts = contexts_.emplace_back(pagetable::ContextPages::of(slots).value());
    for (size_t i = 0; i < contexts.pages().size(); ++i)
      pages[contexts.pages()[i].physical] = {contexts.pages()[i], contexts.bytes(i)};
    static constexpr std::array<std::byte, 4096> kEmpty = {};
    if (stray) {
      stray->checksum = pagetable::masked_checksum(kEmpty.data());
      pages[stray->physical] = {*stray, kEmpty.data()};
    }
    for (const auto& [physical, page] : pages) {
      all.pages.push_back(page.first);
      all.bytes.push_back(page.second);
    }
    return all;
  }
  /// A second container with another device; with the same mappings it is what a container behind
  /// two IOMMU units looks like to them.
  void map_second_domain(const std::vector<Mapping>& mappings) {
    UniqueFd first = std::move(container);
    container = std::move(port->open_container(true).value());
    second_group =
        std::move(port->attach(container, *machine->describe_device(kSecondBdf)).value());
    second_device =
        std::move(port->open_device(second_group, *machine->describe_device(kSecondBdf)).value());
    for (const char* bdf : also_paired)
      further_groups.push_back(
          std::move(port->attach(container, *machine->describe_device(bdf)).value()));
    map_all(mappings);
    second = std::move(container);
    container = std::move(first);
  }
  void cross(sim::Behaviour behaviour = sim::Behaviour::kPatched) {
    kexec();
    for (UniqueFd* gone : {&second, &second_group, &second_device}) gone->reset();
    further_groups.clear();
    boot(behaviour);
  }

  [[nodiscard]] BootFacts facts() {
    BootFacts out;
    out.arena = arena_id;
    out.nonce = kNonce;
    out.boot = *port->boot_id();
    return out;
  }
  Result<Prepared> prepare_now(const Request& request = {}) {
    auto reader = arena::Reader::open(arena_path);
    if (!reader) return std::unexpected(reader.error());
    return prepare(*reader, *port, facts(), request);
  }
  /// prepare and execute, as the agent does it.
  Result<Report> restore(Custody& custody, Request request = {},
                         std::function<void(uint64_t)> before_call = {},
                         kernel::Port* through = nullptr) {
    HOLDFAST_TRY_ASSIGN(auto prepared, prepare_now(request));
    HOLDFAST_TRY_ASSIGN(auto writer, arena::Writer::open(arena_path));
    WriterLog log(writer);
    log.refuse_done = refuse_done;
    log.blocked_events = &blocked_events;
    ExecuteOptions how;
    how.boot = facts().boot;
    how.again = prepared.turn == Turn::kAgain;
    how.settled = prepared.settled;
    how.released = prepared.log.released;
    how.before_call = std::move(before_call);
    return execute(prepared.plan, through == nullptr ? *port : *through, custody, log, how);
  }
  /// Changes bytes of the generation on the medium: where `from` stands, `to` stands then.
  void forge(std::span<const std::byte> from, std::span<const std::byte> to) {
    const auto reader = arena::Reader::open(arena_path);
    ASSERT_TRUE(reader);
    const auto file = open_fd(arena_path, O_RDWR);
    ASSERT_TRUE(file);
    for (const auto& object : reader->generation(generation)->objects()) {
      std::vector<std::byte> bytes(object.length);
      ASSERT_TRUE(pread_all(*file, bytes, object.offset));
      const auto found = std::search(bytes.begin(), bytes.end(), from.begin(), from.end());
      if (found == bytes.end()) continue;
      const auto at = object.offset + static_cast<uint64_t>(found - bytes.begin());
      ASSERT_TRUE(pwrite_all(*file, to, at));
      return;
    }
    FAIL() << "nothing of the generation has these bytes";
  }
  /// The error that a restore ends with before anything is touched.
  Error refusal(const Request& request = {}) {
    auto prepared = prepare_now(request);
    if (!prepared) return prepared.error();
    return prepared->plan.refusal().value_or(Error{});
  }
  ArenaState state() { return arena::Reader::open(arena_path)->header().state; }
  void expect_dma_untouched() {
    ASSERT_TRUE(driver->wait_transfers(200, 5000));
    EXPECT_EQ(driver->faults(), 0u);
    const auto seen = look(mapped);
    EXPECT_EQ(seen.lost, 0u);
    EXPECT_EQ(seen.misplaced, 0u);
    EXPECT_EQ(seen.missing, 0u);
  }

  std::string arena_path = scratch.path() + "/arena";
  Uuid arena_id;
  uint64_t generation = 0;
  static constexpr const char* kSecondBdf = "0000:00:05.0";
  bool two_domains = false;
  static constexpr const char* kThirdBdf = "0000:02:00.0";
  UniqueFd second, second_group, second_device;
  std::vector<UniqueFd> further_groups;
  std::vector<Mapping> mapped, recorded;
  std::vector<Mapping> paired;           ///< of a second container, vm1; empty: there is none
  std::vector<const char*> also_paired;  ///< further devices of it
  bool paired_evidence = true;
  std::function<void(Region&)> as_recorded;  ///< changes what is recorded of memory
  std::optional<TablePage> stray{};          ///< an empty page that is kept with the others
  bool refuse_done = false;
  std::vector<Error> blocked_events;  ///< what the log heard of devices that were blocked

 private:
  // What captured() gave points into these.
  std::list<pagetable::Capture> captures_;
  std::list<pagetable::ContextPages> contexts_;
};

}  // namespace holdfast::restore::testing
