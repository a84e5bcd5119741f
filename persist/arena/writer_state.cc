// Everything that changes the arena's state without recording: arm, thaw, discard, restore log,
// events. Each is one commit of the root.

#include <fmt/format.h>

#include <algorithm>

#include "persist/arena/writer_impl.h"

namespace holdfast::arena {
namespace {

std::unexpected<Error> wrong_state(const std::string& object, ArenaState state,
                                   std::string_view what) {
  std::string ways;
  for (const std::string& way : ways_out(state)) ways += (ways.empty() ? "" : "; ") + way;
  return refuse(Exit::kRefused, "HF-STATE", object,
                fmt::format("is {}, it cannot be {}", state_name(state), what), ways);
}

std::string bounded(const std::string& text) {
  return text.substr(0, kMaxText);
}

}  // namespace

Result<void> Writer::arm(const std::string& nonce, const std::string& kernel) {
  Impl& w = *impl_;
  const bool hex = !nonce.empty() && nonce.size() <= 64 &&
                   nonce.find_first_not_of("0123456789abcdef") == std::string::npos;
  if (!hex) return fail(w.object(), "the nonce is not up to 64 lower-case hex digits");
  HOLDFAST_TRY(w.ensure_recording());
  Root next = w.root;
  next.state = ArenaState::kArmed;
  next.nonce = nonce;
  next.armed_kernel = bounded(kernel);
  return w.commit_root(std::move(next));
}

Result<void> Writer::disarm() {
  Impl& w = *impl_;
  if (w.root.state != ArenaState::kArmed) return wrong_state(w.object(), w.root.state, "disarmed");
  Root next = w.root;
  next.state = ArenaState::kRecording;
  next.nonce.clear();
  next.armed_kernel.clear();
  return w.commit_root(std::move(next));
}

Result<void> Writer::thaw() {
  Impl& w = *impl_;
  if (w.root.state != ArenaState::kFrozen && w.root.state != ArenaState::kBroken)
    return wrong_state(w.object(), w.root.state, "thawed");
  Root next = w.root;
  next.state = w.live.containers.empty() ? ArenaState::kIdle : ArenaState::kRecording;
  next.frozen = 0;
  next.nonce.clear();
  next.armed_kernel.clear();
  next.broken_reason.clear();
  next.damage.clear();
  next.restore = {};
  return w.commit_root(std::move(next));
}

Result<void> Writer::discard() {
  Impl& w = *impl_;
  const ArenaState state = w.root.state;
  const bool ended = state == ArenaState::kFrozen || state == ArenaState::kRefused ||
                     state == ArenaState::kBroken || state == ArenaState::kRestoring ||
                     state == ArenaState::kRestored;
  if (!ended && w.journal_damage.empty()) return wrong_state(w.object(), state, "discarded");
  Root next = w.root;
  next.state = ArenaState::kIdle;
  next.incomplete = false;
  next.frozen = 0;
  next.next_container = w.live.next_container;
  next.next_region = w.live.next_region;
  next.nonce.clear();
  next.armed_kernel.clear();
  next.broken_reason.clear();
  next.damage.clear();
  next.restore = {};
  next.journal = {0, 0, 0, w.root.journal.epoch};
  HOLDFAST_TRY(w.commit_root(std::move(next)));
  w.journal.stop();
  ++w.chain_id;
  w.old_chain.clear();
  w.live.containers.clear();
  w.live.regions.clear();
  w.base_delta.clear();
  w.base_delta_records = 0;
  w.lost = w.lost_before = false;
  w.journal_damage.clear();
  w.free_stale = true;
  return {};
}

Result<void> Writer::mark_broken(const std::string& why) {
  Impl& w = *impl_;
  if (w.root.state == ArenaState::kIdle) return wrong_state(w.object(), w.root.state, "broken");
  // Outside a freeze, nothing that was sealed can have been broken.
  if (w.root.frozen == 0) return wrong_state(w.object(), w.root.state, "broken");
  Root next = w.root;
  next.state = ArenaState::kBroken;
  next.broken_reason = bounded(why);
  return w.commit_root(std::move(next));
}

Result<void> Writer::restore_started(uint64_t generation, const Uuid& boot) {
  Impl& w = *impl_;
  const ArenaState state = w.root.state;
  if (state == ArenaState::kRestored)
    return refuse(Exit::kRefused, "HF-RESTORE-DONE", w.object(),
                  fmt::format("generation {} has been restored", w.root.restore.generation),
                  "nothing is to be done; record again");
  if (state != ArenaState::kFrozen && state != ArenaState::kRefused &&
      state != ArenaState::kRestoring)
    return wrong_state(w.object(), state, "restored");
  if (generation != w.root.frozen)
    return refuse(
        Exit::kRefused, "HF-RESTORE-GENERATION", w.object(),
        fmt::format("generation {} is sealed, {} was asked for", w.root.frozen, generation));
  const RestoreRecord& log = w.root.restore;
  if (log.started && log.generation == generation && log.boot != boot)
    return refuse(Exit::kRefused, "HF-RESTORE-OTHER-BOOT", w.object(),
                  fmt::format("a restore was begun under boot {}", log.boot.text()),
                  "the devices were reset since; `holdfast discard`");
  if (state == ArenaState::kRestoring) return {};
  Root next = w.root;
  next.state = ArenaState::kRestoring;
  next.broken_reason.clear();
  next.restore.boot = boot;
  next.restore.generation = generation;
  next.restore.started = true;
  next.restore.failed.clear();
  return w.commit_root(std::move(next));
}

Result<void> Writer::log_restore(const std::string& container, RestoreStep step) {
  Impl& w = *impl_;
  // A container of a refused generation can be given up, whether its restore had begun or not.
  const bool gives_up = step == RestoreStep::kReleased && w.root.state == ArenaState::kRefused;
  if (w.root.state != ArenaState::kRestoring && !gives_up)
    return wrong_state(w.object(), w.root.state, "restored");
  HOLDFAST_TRY(validate_name("container", container));
  Root next = w.root;
  if (gives_up && next.restore.generation != next.frozen) {
    next.restore = {};
    next.restore.generation = next.frozen;
  } else if (gives_up && next.restore.started) {
    next.state = ArenaState::kRestoring;
    next.broken_reason.clear();
  }
  RestoreRecord& log = next.restore;
  for (auto* list : {&log.done, &log.failed, &log.released}) std::erase(*list, container);
  auto& list = step == RestoreStep::kDone     ? log.done
               : step == RestoreStep::kFailed ? log.failed
                                              : log.released;
  list.push_back(container);
  return w.commit_root(std::move(next));
}

Result<void> Writer::restore_done(const std::string& container) {
  return log_restore(container, RestoreStep::kDone);
}
Result<void> Writer::restore_failed(const std::string& container) {
  return log_restore(container, RestoreStep::kFailed);
}
Result<void> Writer::restore_released(const std::string& container) {
  return log_restore(container, RestoreStep::kReleased);
}

Result<void> Writer::restore_taken(const std::string& container) {
  Impl& w = *impl_;
  const ArenaState state = w.root.state;
  const bool under_way = state == ArenaState::kRestoring || state == ArenaState::kRefused;
  if (!under_way || !w.root.restore.started) return wrong_state(w.object(), state, "taken up");
  HOLDFAST_TRY(validate_name("container", container));
  if (is_taken(container)) return {};
  Root next = w.root;
  RestoreRecord& log = next.restore;
  for (auto* list : {&log.done, &log.failed, &log.released}) std::erase(*list, container);
  if (log.done.size() + 2 > kMaxContainers)
    return refuse(Exit::kRefused, "HF-LIMIT", "container " + container,
                  "is one more than the restore log keeps");
  log.done.insert(log.done.end(), 2, container);
  return w.commit_root(std::move(next));
}

bool Writer::is_taken(std::string_view container) const {
  const Root& root = impl_->root;
  const bool under_way = root.state == ArenaState::kRestoring || root.state == ArenaState::kRefused;
  return under_way && root.restore.generation == root.frozen &&
         std::ranges::count(root.restore.done, container) > 1;
}

bool Writer::has_taken() const {
  return std::ranges::any_of(impl_->root.restore.done,
                             [this](const std::string& name) { return is_taken(name); });
}

Result<void> Writer::restore_finished() {
  Impl& w = *impl_;
  // Refused before it began, and everything of it given up since.
  const bool given_up =
      w.root.state == ArenaState::kRefused && w.root.restore.generation == w.root.frozen;
  if (w.root.state != ArenaState::kRestoring && !given_up)
    return wrong_state(w.object(), w.root.state, "restored");
  Root next = w.root;
  next.state = ArenaState::kRestored;
  next.restore.finished = true;
  return w.commit_root(std::move(next));
}

Result<void> Writer::restore_refused(const std::string& why) {
  Impl& w = *impl_;
  const ArenaState state = w.root.state;
  if (state != ArenaState::kFrozen && state != ArenaState::kRestoring &&
      state != ArenaState::kRefused)
    return wrong_state(w.object(), state, "refused");
  Root next = w.root;
  next.state = ArenaState::kRefused;
  next.broken_reason = bounded(why);
  return w.commit_root(std::move(next));
}

Result<void> Writer::add_event(const Event& event) {
  Impl& w = *impl_;
  HOLDFAST_TRY(w.usable());
  std::vector<Event> events = w.events;
  events.push_back(event);
  for (std::string* text :
       {&events.back().code, &events.back().object, &events.back().cause, &events.back().remedy})
    *text = bounded(*text);
  if (events.size() > kMaxEvents) events.erase(events.begin());
  HOLDFAST_TRY_ASSIGN(const ExtentRef ref, w.write_extent(encode(events)));
  Root next = w.root;
  next.events = ref;
  auto done = w.commit_root(std::move(next));
  if (done) w.events = std::move(events);
  w.free_stale = true;
  return done;
}

std::vector<Event> Writer::events() const {
  return impl_->events;
}

}  // namespace holdfast::arena
