// Recording one mapping through the shared-memory ring, as a client does after its map call,
// against storing the same 64 bytes and a counter to shared memory.

#include <linux/seccomp.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>

#include "persist/agent/ring.h"
#include "tests/bench/measure.h"

namespace holdfast::bench {
namespace {

constexpr uint32_t kSlots = 1 << 16;

ring::Record record(uint64_t n) {
  ring::Record out;
  out.op = static_cast<uint32_t>(ring::Op::kMap);
  out.container = 1;
  out.iova = n << 12;
  out.size = 4096;
  out.region_offset = n << 12;
  out.region = 1;
  out.access = 3;
  return out;
}

void record_all(ring::Producer& producer) {
  for (uint64_t n = 0; n < kSlots; ++n) {
    if (!producer.enter()) give_up("the barrier is closed");
    if (producer.push(record(n)) == ring::Producer::Push::kFull) give_up("the ring is full");
    producer.leave();
  }
}

void drain(ring::Consumer& consumer) {
  ring::Record out;
  uint64_t n = 0;
  while (must(consumer.pop(out)))
    if (out.iova != n++ << 12) give_up("a record came out wrong");
  if (n != kSlots) give_up("records are missing");
  consumer.publish();
}

// Whether recording makes a system call: a process in strict seccomp mode is killed by its first.
bool records_without_system_call() {
  auto consumer = must(ring::Consumer::create(kSlots));
  auto producer = must(ring::Producer::attach(consumer.memfd(), kSlots));
  const pid_t child = ::fork();
  if (child == 0) {
    if (::prctl(PR_SET_SECCOMP, SECCOMP_MODE_STRICT) != 0) ::_exit(1);
    record_all(producer);
    ::syscall(SYS_exit, 0);  // exit_group is not allowed in strict mode
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

void record_one(benchmark::State& state) {
  if (!records_without_system_call()) give_up("recording made a system call");
  auto consumer = must(ring::Consumer::create(kSlots));
  auto producer = must(ring::Producer::attach(consumer.memfd(), kSlots));
  struct Shared {
    alignas(64) std::atomic<uint64_t> head;
    ring::Record records[kSlots];
  };
  auto* shared = static_cast<Shared*>(
      ::mmap(nullptr, sizeof(Shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
  if (shared == MAP_FAILED) give_up("no memory");
  std::vector<double> ours, floor;
  for (auto _ : state) {
    ours.push_back(seconds([&] { record_all(producer); }));
    drain(consumer);
    floor.push_back(seconds([&] {
      for (uint64_t n = 0; n < kSlots; ++n) {
        shared->records[n] = record(n);
        shared->head.store(n + 1, std::memory_order_release);
      }
    }));
    state.SetIterationTime(ours.back());
  }
  state.counters["ours"] = median(ours) * 1e9 / kSlots;
  state.counters["floor"] = median(floor) * 1e9 / kSlots;
  state.counters["system_calls"] = 0;
  ::munmap(shared, sizeof(Shared));
}
BENCHMARK(record_one)->Name("record")->UseManualTime()->Iterations(101);

}  // namespace
}  // namespace holdfast::bench
