#pragma once

// One attempt to freeze, from decision to seal or back. Private to this folder:
//   freeze.cc         who must agree, barrier, seal, and the order of it all
//   freeze_tables.cc  page tables: captured, written ahead, read again, compared
// Everything here runs on the server's thread but for what aside() is given.

#include <atomic>
#include <memory>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "persist/agent/freeze.h"
#include "persist/agent/server_impl.h"
#include "persist/pagetable/capture.h"
#include "persist/pagetable/compare.h"
#include "persist/pagetable/context.h"

namespace holdfast::agent {

struct Server::Impl::FreezeRun {
  /// One set of tables of a container: one for each IOMMU unit that its devices sit behind.
  struct Domain {
    kernel::TableRoot root;
    pagetable::Capture capture;
  };
  struct Item {
    ContainerEntry* entry = nullptr;
    ContainerHandle fd = BorrowedFd(-1);
    std::unique_ptr<kernel::TableSource> tables;
    std::vector<Domain> domains;       ///< not empty where there are tables
    pagetable::ContextPages contexts;  ///< of its devices, read behind the hold
    uint64_t changed = 0;
    uint64_t leaves = 0;
    std::string problem;  ///< why there are no tables
    bool held = false;
  };

  FreezeRun(Impl& given, const FreezeOptions& options) : agent(given), asked(options) {}

  Impl& agent;
  FreezeOptions asked;
  FreezeReport report;
  std::vector<Item> items;
  std::vector<std::unique_ptr<std::byte[]>> cleared;  ///< pages that captured() changed
  std::vector<std::string> stopped;                   ///< cgroups of recorded programs
  uint64_t number = 0;
  bool told = false;       ///< clients were asked to quiesce, or met the barrier
  bool made_room = false;  ///< the one checkpoint that a freeze does by itself is done
  Clock::time_point begun = Clock::now(), lap = begun;

  void step(std::string name);
  void drain_rings();
  /// Listens to clients (never to control peers) until `over` or the deadline. True: `over`.
  template <typename Over>
  bool wait(Clock::time_point deadline, Over over) {
    while (!over()) {
      if (Clock::now() >= deadline) return false;
      agent.pump_clients(1);
      drain_rings();
    }
    return true;
  }
  /// Does `work` on a thread of its own: rings go on being drained meanwhile.
  template <typename Work>
  Result<void> aside(Work work) {
    std::atomic<bool> done = false;
    Result<void> outcome;
    std::thread thread([&] {
      outcome = work();
      done.store(true, std::memory_order_release);
    });
    wait(Clock::time_point::max(), [&] { return done.load(std::memory_order_acquire); });
    thread.join();
    return outcome;
  }

  // -- freeze.cc
  Result<void> make_room();
  Result<void> gather();
  [[nodiscard]] bool is_mapped(uint32_t region) const;
  [[nodiscard]] Result<void> complete() const;
  Result<void> choose();
  [[nodiscard]] std::string client_line(const ContainerEntry& entry) const;
  Result<void> quiesce();
  Result<void> close_barrier();
  Result<void> last_records();
  Result<void> hold();
  Result<void> seal();
  Result<void> run();
  void take_back(const Error& why);

  // -- recorded.cc
  /// Before anything stops: whether every recorded program can be stopped.
  [[nodiscard]] Result<void> find_stops();
  Result<void> stop_recorded();
  Result<void> cross_check(Item& item);

  // -- freeze_tables.cc
  /// Finds a container's tables, or `problem`.
  Result<void> find_tables(Item& item);
  Result<void> capture();
  Result<void> stage();
  /// After the barrier: reads every table page again and compares every leaf with the record.
  Result<void> compare(Item& item, std::span<const pagetable::RegionPlace> places);
  Result<void> evidence();
  /// The pages of all domains, each once. Copies lists, no pages.
  [[nodiscard]] Result<std::vector<arena::CapturedTables>> captured();
  void clear_behind(const Item& item, arena::CapturedTables& tables);
};

}  // namespace holdfast::agent
