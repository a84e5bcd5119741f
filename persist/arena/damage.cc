#include "persist/arena/damage.h"

#include <fmt/format.h>

#include <algorithm>
#include <condition_variable>
#include <mutex>
#include <thread>

namespace holdfast::arena {
namespace {

using Clock = std::chrono::steady_clock;

// Reading again takes at most this share of one core's time.
constexpr int kRest = 50;
constexpr auto kRestAtLeast = std::chrono::seconds(1);

bool is_chunk(const Object& object) {
  return object.generation == 0 && object.name.starts_with("file ") && object.name != "file tree";
}

std::string remedy_of(const Object& object) {
  if (object.used_by_frozen)
    return "its restore is refused; on the old kernel: holdfast thaw, then freeze again";
  if (object.generation != 0)
    return "restore goes on; this generation is let go as newer ones are made";
  if (object.name == "file tree" || object.name.ends_with(" copy"))
    return "restore goes on; files/ cannot be used, and writing it afresh needs a new arena";
  if (object.name.starts_with("files superblock"))
    return "restore goes on; the next writer mends it from its twin; look at the medium";
  if (is_chunk(object)) return "restore goes on; write the file anew, or delete it";
  if (object.name == "events")
    return "restore goes on; earlier events are lost, the next one begins a new list";
  return "restore goes on; `holdfast discard` starts a new recording";
}

// "file 12 (name)" of "file 12 (name) chunk 3".
std::string file_of(const Object& object) {
  return object.name.substr(0, object.name.rfind(" chunk "));
}

}  // namespace

std::vector<Damage> damage_of(const CheckReport& report) {
  std::vector<Damage> out;
  std::string file;
  uint64_t more = 0;
  const auto close = [&] {
    if (more > 0) out.back().cause += fmt::format(" ({} more chunks of this file too)", more);
    more = 0;
  };
  for (const Object& object : report.objects) {
    if (!object.checked || object.good) continue;
    if (is_chunk(object) && file_of(object) == file) {
      ++more;
      continue;
    }
    close();
    file = is_chunk(object) ? file_of(object) : "";
    out.push_back({object.name, object.offset, object.length,
                   object.problem.empty() ? "fails its checksum" : object.problem,
                   remedy_of(object), object.used_by_frozen});
  }
  close();
  return out;
}

struct DamageWatch::State {
  std::string path;
  std::mutex lock;  // guards everything below but `thread`, which begin and found() alone touch
  std::condition_variable done;
  std::vector<Damage> damage;
  bool begun = false, running = false;
  Clock::time_point ended{};
  Clock::duration took{};
  std::thread thread;

  void read() {
    const auto start = Clock::now();
    std::vector<Damage> seen;
    // An arena that does not open is named by whoever opened it before.
    if (const auto reader = Reader::open(path))
      if (const auto report = reader->check(0)) seen = damage_of(*report);
    const std::scoped_lock guard(lock);
    damage = std::move(seen);
    ended = Clock::now();
    took = ended - start;
    running = false;
    done.notify_all();
  }
  // With `lock` held: no other reading is under way, and one that ended lets itself be joined.
  void start() {
    if (thread.joinable()) thread.join();
    begun = running = true;
    thread = std::thread([this] { read(); });
  }
};

DamageWatch::DamageWatch(std::string path) : state_(std::make_unique<State>()) {
  state_->path = std::move(path);
}

DamageWatch::~DamageWatch() {
  if (state_->thread.joinable()) state_->thread.join();
}

void DamageWatch::begin() {
  const std::scoped_lock guard(state_->lock);
  if (!state_->begun) state_->start();
}

std::vector<Damage> DamageWatch::found() {
  const std::scoped_lock guard(state_->lock);
  const auto rest = std::max<Clock::duration>(kRestAtLeast, kRest * state_->took);
  const bool old =
      !state_->running && !state_->damage.empty() && Clock::now() - state_->ended > rest;
  if (!state_->begun || old) state_->start();
  return state_->damage;
}

std::vector<Damage> DamageWatch::wait() {
  begin();
  {
    std::unique_lock guard(state_->lock);
    if (state_->ended == Clock::time_point{})
      state_->done.wait(guard, [this] { return !state_->running; });
  }
  return found();
}

}  // namespace holdfast::arena
