// The owner's side of a hand-over: asked, it gives its mappings away, hears from the successor that
// it has taken them, and lets go; or it takes them back. The agent's handover.cc draws all of it.
//
// Who has the mappings is decided here, by one act: "yours" was sent, or it was not. Before it this
// program has a way back that needs neither the agent nor the successor.

#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <new>

#include "persist/client/addresses.h"

namespace holdfast::client {
namespace {

using Clock = std::chrono::steady_clock;
using protocol::Step;

struct Giving {
  hf_container& container;
  uint64_t handover;
  std::string successor;
  Clock::time_point until;
  UniqueFd pair;
  std::vector<handover::Place> places;
  bool given = false;  ///< no mapping has an address here any more
};

Result<void> tell(hf_connection& connection, const Giving& giving, Step step,
                  const std::string& why = {}) {
  HOLDFAST_TRY(request_ack(connection, protocol::HandoverStep{giving.handover, step, why}));
  return {};
}

void set_leaving(hf_container& container, bool leaving) {
  // Whoever is between a kernel call and its record comes to an end first.
  const std::scoped_lock lock(container.mutex);
  container.leaving = leaving;
}

/// Up to "no mapping has an address here". The caller holds connection.mutex.
Result<void> give(hf_connection& connection, Giving& giving) {
  set_leaving(giving.container, true);
  HOLDFAST_TRY_ASSIGN(
      protocol::Received received,
      request(connection, protocol::HandoverStep{giving.handover, Step::kAgreed, {}}));
  const auto* list = std::get_if<protocol::Give>(&received.packet.message);
  if (list == nullptr || received.descriptors.size() != 2)
    return fail("agent", "answered with something else than GIVE");
  giving.pair = std::move(received.descriptors[1]);
  HOLDFAST_TRY_ASSIGN(const auto mappings, read_mappings(received.descriptors[0], list->count));
  HOLDFAST_TRY_ASSIGN(giving.places, places_of(connection, giving.container, mappings));
  // The way back is looked at before anything needs it.
  HOLDFAST_TRY(send_places(connection, giving.container, giving.places));
  ContainerCalls calls(giving.container);
  auto gone = handover::give_away(calls);
  if (!gone && gone.error().sys_errno == EINVAL) {
    // Some have none since an earlier one could not be taken back whole.
    HOLDFAST_TRY(handover::take_back(calls, giving.places));
    gone = handover::give_away(calls);
  }
  HOLDFAST_TRY(gone);
  giving.given = true;
  return tell(connection, giving, Step::kGiven);
}

Result<void> hear(const Giving& giving) {
  const auto left = std::chrono::ceil<std::chrono::milliseconds>(giving.until - Clock::now());
  HOLDFAST_TRY_ASSIGN(
      const bool heard,
      protocol::wait_readable(giving.pair, static_cast<int>(std::max<int64_t>(0, left.count()))));
  if (!heard) return fail(giving.successor, "has not said in time that it has taken over");
  HOLDFAST_TRY_ASSIGN(const auto received, protocol::receive(giving.pair, false));
  if (received.kind != protocol::Received::Kind::kMessage)
    return fail(giving.successor, "ended before it had taken over");
  const auto* pair = std::get_if<protocol::Pair>(&received.packet.message);
  if (pair == nullptr) return fail(giving.successor, "says something that is no answer");
  if (pair->says == protocol::Pair::Says::kTaken) return {};
  return fail(giving.successor, "cannot take over: " + pair->why);
}

/// After "taken": the agent may have found that the addresses are wrong.
Result<void> let_go(hf_connection& connection, const Giving& giving) {
  HOLDFAST_TRY(tell(connection, giving, Step::kLettingGo));
  auto sent =
      protocol::send(giving.pair, protocol::Pair{protocol::Pair::Says::kYours, {}}, 0, {}, false);
  if (!sent) return fail(giving.successor, "ended as it was being let go");
  return {};
}

/// The way back from every step. The caller holds connection.mutex.
Error keep(hf_connection& connection, Giving& giving, Error why) {
  if (giving.pair.valid())
    // Where nobody listens any more nobody needs to hear it.
    (void)protocol::send(giving.pair, protocol::Pair{protocol::Pair::Says::kNo, why.headline()}, 0,
                         {}, false);
  giving.pair.reset();
  Error out = refuse(Exit::kRefused, "HF-HANDOVER-RETURNED", "container " + giving.container.name,
                     "stays with this program: " + why.headline(), why.remedy)
                  .error();
  out.details = why.details;
  if (giving.given) {
    ContainerCalls calls(giving.container);
    if (auto back = handover::take_back(calls, giving.places); !back) {
      out = refuse(Exit::kPartly, "HF-HANDOVER-RETURNED", out.object,
                   "stays with this program, but for some addresses: " + why.headline(),
                   "the next hand-over begins with taking them back")
                .error();
      out.details = {back.error().message()};
    }
  }
  const Step step = giving.given ? Step::kReturned : Step::kDeclined;
  // Before anything is mapped: until then the agent takes a record of it for a lie. An agent that
  // has ended it already answers that; one that is gone does not.
  (void)tell(connection, giving, step, out.details.empty() ? why.headline() : out.message());
  set_leaving(giving.container, false);
  return out;
}

Result<void> hand_over(hf_connection& connection, Giving& giving,
                       std::unique_lock<std::mutex>& lock) {
  auto outcome = give(connection, giving);
  if (outcome) {
    lock.unlock();  // other containers go on
    outcome = hear(giving);
    lock.lock();
    if (outcome) outcome = let_go(connection, giving);
  }
  if (!outcome) return std::unexpected(keep(connection, giving, outcome.error()));
  // Other threads may be about to map: to them it is a container that is being handed over, always.
  const auto gone = std::ranges::find(connection.containers, &giving.container,
                                      &std::unique_ptr<hf_container>::get);
  connection.handed_over.splice(connection.handed_over.end(), connection.containers, gone);
  std::erase_if(connection.asked,
                [&](const auto& one) { return one.second.container == &giving.container; });
  try {
    // Whether the agent hears it or not: it is the successor's.
    (void)tell(connection, giving, Step::kHandedOver);
  } catch (const std::bad_alloc&) {
    lose(connection, "no memory");
  }
  giving.container.devices.clear();
  const std::scoped_lock last(giving.container.mutex);
  giving.container.fd.reset();
  return {};
}

/// The caller holds connection.mutex.
std::optional<hf_connection::Asked> asked(hf_connection& connection, uint64_t handover) {
  const auto it = connection.asked.find(handover);
  if (it == connection.asked.end()) return std::nullopt;
  auto out = std::move(it->second);
  connection.asked.erase(it);
  return out;
}

int unknown(hf_error* error, uint64_t handover) {
  return report(error,
                refuse(Exit::kRefused, "HF-HANDOVER-OVER", "hand-over " + std::to_string(handover),
                       "is not asked of this program, or was answered already")
                    .error());
}

}  // namespace
}  // namespace holdfast::client

using namespace holdfast;

int hf_hand_over(hf_connection* connection, uint64_t handover, hf_error* error) {
  if (connection == nullptr) return -EINVAL;
  return client::guarded(error, [&]() -> int {
    std::unique_lock lock(connection->mutex);
    const auto asked = client::asked(*connection, handover);
    if (!asked) return client::unknown(error, handover);
    client::Giving giving{*asked->container, handover, asked->successor, asked->until, {}, {}};
    try {
      return client::finish(error, client::hand_over(*connection, giving, lock));
    } catch (const std::bad_alloc&) {
      // Nothing has been let go: that is the last step, and needs no memory.
      if (!lock.owns_lock()) lock.lock();
      return client::report(
          error, client::keep(*connection, giving, fail("this program", "has no memory").error()));
    }
  });
}

int hf_keep(hf_connection* connection, uint64_t handover, const char* why, hf_error* error) {
  if (connection == nullptr) return -EINVAL;
  return client::guarded(error, [&]() -> int {
    const std::scoped_lock lock(connection->mutex);
    if (!client::asked(*connection, handover)) return client::unknown(error, handover);
    return client::finish(
        error,
        client::request_ack(*connection, protocol::HandoverStep{handover, protocol::Step::kDeclined,
                                                                why != nullptr ? why : ""}));
  });
}
