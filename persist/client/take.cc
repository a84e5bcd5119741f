// Taking up again: the descriptors of a restored container become this program's.

#include <fcntl.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <map>

#include "persist/base/checked.h"
#include "persist/base/mapped_range.h"
#include "persist/client/addresses.h"
#include "persist/client/connection.h"
#include "persist/model/mapping.h"

using namespace holdfast;
using client::guarded;

namespace {

/// What hf_taken points into; freed as a whole.
struct Taken : hf_taken {
  hf_connection* connection = nullptr;
  std::string name;
  bool confirmed = false;
  bool over = false;        ///< the owner before has it again
  holdfast::UniqueFd pair;  ///< to the owner before; none: nobody had it
  std::chrono::steady_clock::time_point until;
  std::vector<Mapping> records;
  std::vector<hf_taken_device> device_list;
  std::vector<hf_taken_memory> memory_list;
  std::vector<hf_mapping> mapping_list;
};

template <size_t N>
void copy_name(char (&into)[N], const std::string& from) {
  const size_t length = std::min(N - 1, from.size());
  std::memcpy(into, from.data(), length);
  into[length] = '\0';
}

/// A second descriptor; none for none.
Result<UniqueFd> duplicate(int fd) {
  if (fd < 0) return UniqueFd();
  const int copy = ::fcntl(fd, F_DUPFD_CLOEXEC, 3);
  if (copy < 0) return fail_errno(errno, "descriptor", "duplicate");
  return UniqueFd(copy);
}

hf_taken_device& device_of(Taken& taken, const std::string& bdf) {
  for (auto& device : taken.device_list)
    if (bdf == device.bdf) return device;
  auto& device = taken.device_list.emplace_back();
  copy_name(device.bdf, bdf);
  device.group_fd = device.device_fd = -1;
  return device;
}

hf_memory* own_memory(hf_connection& connection, const protocol::DescriptorLabel& label,
                      const UniqueFd& fd) {
  for (const auto& memory : connection.memories)
    if (memory->id == label.id) return memory.get();
  auto memory = std::make_unique<hf_memory>();
  memory->connection = &connection;
  memory->name = label.name;
  memory->id = label.id;
  if (auto copy = fd.duplicate()) memory->fd = std::move(*copy);
  connection.memories.push_back(std::move(memory));
  return connection.memories.back().get();
}

Result<void> fill_mappings(hf_connection& connection, Taken& taken, const UniqueFd& list,
                           uint64_t count) {
  HOLDFAST_TRY_ASSIGN(taken.records, client::read_mappings(list, count));
  std::map<uint32_t, hf_memory*> by_id;
  for (const auto& memory : connection.memories) by_id[memory->id] = memory.get();
  taken.mapping_list.resize(count);
  for (uint64_t i = 0; i < count; ++i) {
    const Mapping& mapping = taken.records[i];
    hf_mapping& out = taken.mapping_list[i];
    out = {};
    out.iova = mapping.iova;
    out.size = mapping.size;
    out.offset = mapping.region_offset;
    out.access = mapping.access;
    const auto memory = by_id.find(mapping.region);
    if (memory != by_id.end()) out.memory = memory->second;
  }
  return {};
}

/// Makes the mappings of a container that came without them: nobody can make them for this process.
/// Whoever tried it before and died left some: they go first.
Result<void> make_mappings(Taken& taken, hf_container& container) {
  if (const int status = client::unmap_unrecorded(container); status != 0)
    return fail_errno(-status, "container " + taken.name, "empty it");
  std::map<const hf_memory*, MappedRange> views;
  for (const auto& memory : taken.memory_list) {
    HOLDFAST_TRY_ASSIGN(auto view, MappedRange::map(BorrowedFd(memory.fd), 0, memory.length,
                                                    MappedRange::Mode::kReadWrite));
    views.emplace(memory.memory, std::move(view));
  }
  for (size_t i = 0; i < taken.mapping_list.size(); ++i) {
    const hf_mapping& mapping = taken.mapping_list[i];
    const auto object = [&] {
      Mapping plain;
      plain.iova = mapping.iova;
      plain.size = mapping.size;
      plain.region_offset = mapping.offset;
      plain.access = mapping.access;
      return "container " + taken.name + ": " + describe(plain);
    };
    const auto view = views.find(mapping.memory);
    if (view == views.end() || !fits(mapping.offset, mapping.size, view->second.size()))
      return fail(object(), "its memory did not come along");
    const int status =
        client::map_unrecorded(container, mapping, view->second.data() + mapping.offset);
    if (status != 0) return fail_errno(-status, object(), "map it");
  }
  for (auto& [memory, view] : views) container.views.push_back(std::move(view));
  return {};
}

Result<std::unique_ptr<Taken>> unpack(hf_connection& connection, const std::string& name,
                                      protocol::Received& received) {
  const auto* reply = std::get_if<protocol::TakeReply>(&received.packet.message);
  if (reply == nullptr || reply->labels.size() != received.descriptors.size())
    return fail("agent", "answered TAKE with something else than TAKE_REPLY");
  auto taken = std::make_unique<Taken>();
  static_cast<hf_taken&>(*taken) = {};
  taken->connection = &connection;
  taken->name = name;
  taken->kind = reply->kind;
  taken->container_fd = -1;
  auto container = std::make_unique<hf_container>();
  container->connection = &connection;
  container->name = name;
  container->kind = reply->kind;
  container->id = reply->container;
  container->handed_out = true;
  // Memory first: mappings refer to it.
  for (size_t i = 0; i < reply->labels.size(); ++i) {
    const auto& label = reply->labels[i];
    if (label.role != protocol::DescriptorRole::kMemory) continue;
    hf_taken_memory& memory = taken->memory_list.emplace_back();
    memory = {};
    copy_name(memory.name, label.name);
    memory.length = label.length;
    memory.memory = own_memory(connection, label, received.descriptors[i]);
    memory.fd = received.descriptors[i].release();
  }
  for (size_t i = 0; i < reply->labels.size(); ++i) {
    const auto& label = reply->labels[i];
    UniqueFd& fd = received.descriptors[i];
    switch (label.role) {
      case protocol::DescriptorRole::kContainer: {
        HOLDFAST_TRY_ASSIGN(container->fd, fd.duplicate());
        taken->container_fd = fd.release();
        taken->ioas_id = container->ioas = label.id;
        container->hold_seconds = static_cast<uint32_t>(label.length);
        break;
      }
      case protocol::DescriptorRole::kGroup:
        device_of(*taken, label.name).group_fd = fd.release();
        break;
      case protocol::DescriptorRole::kDevice:
        device_of(*taken, label.name).device_fd = fd.release();
        break;
      case protocol::DescriptorRole::kMappings:
        HOLDFAST_TRY(fill_mappings(connection, *taken, fd, label.length));
        break;
      case protocol::DescriptorRole::kPair:
        taken->pair = std::move(fd);
        break;
      case protocol::DescriptorRole::kMemory:
        break;
    }
  }
  if (taken->container_fd < 0) return fail("agent", "TAKE_REPLY came without the container");
  const bool to_be_made = std::ranges::any_of(reply->labels, [](const auto& label) {
    return label.role == protocol::DescriptorRole::kMappings &&
           label.id == protocol::kMappingsToBeMade;
  });
  if (to_be_made) HOLDFAST_TRY(make_mappings(*taken, *container));
  for (const auto& device : taken->device_list) {
    hf_container::Device copy;
    copy.bdf = device.bdf;
    // What the owner before consented to holds when this program connects again.
    for (const auto& label : reply->labels)
      if (label.role == protocol::DescriptorRole::kDevice && label.name == copy.bdf)
        copy.flags = label.id & ~protocol::kDeviceWithoutGroup;
    HOLDFAST_TRY_ASSIGN(copy.group, duplicate(device.group_fd));
    HOLDFAST_TRY_ASSIGN(copy.device, duplicate(device.device_fd));
    container->devices.push_back(std::move(copy));
  }
  taken->container = container.get();
  connection.containers.push_back(std::move(container));
  taken->device_count = taken->device_list.size();
  taken->devices = taken->device_list.data();
  taken->memory_count = taken->memory_list.size();
  taken->memory = taken->memory_list.data();
  taken->mapping_count = taken->mapping_list.size();
  taken->mappings = taken->mapping_list.data();
  return taken;
}

using Says = protocol::Pair::Says;

Result<void> say(const Taken& taken, Says what, const std::string& why = {}) {
  return protocol::send(taken.pair, protocol::Pair{what, why}, 0, {}, false);
}

std::unexpected<Error> kept(const Taken& taken, const std::string& why) {
  return refuse(Exit::kRefused, "HF-HANDOVER-RETURNED", "container " + taken.name,
                "its owner has it again: " + why, "hf_taken_free(), then ask anew");
}

/// What the owner has decided. After it has let go nothing it does matters any more; if it ended
/// without a word, it cannot take back either.
Result<void> decision(const Taken& taken, bool wait) {
  const auto left =
      std::chrono::ceil<std::chrono::milliseconds>(taken.until - std::chrono::steady_clock::now());
  HOLDFAST_TRY_ASSIGN(
      const bool heard,
      protocol::wait_readable(taken.pair,
                              wait ? static_cast<int>(std::max<int64_t>(0, left.count())) : 0));
  if (!heard) {
    auto late = fail("container " + taken.name, "its owner has not let go of it in time").error();
    late.sys_errno = ETIMEDOUT;
    return std::unexpected(std::move(late));
  }
  HOLDFAST_TRY_ASSIGN(auto received, protocol::receive(taken.pair, false));
  // An end that has not read what it was sent shows first, and what it has said after it.
  if (received.kind == protocol::Received::Kind::kClosed) {
    auto last = protocol::receive(taken.pair, false);
    if (last && last->kind == protocol::Received::Kind::kMessage) received = std::move(*last);
  }
  if (received.kind != protocol::Received::Kind::kMessage) return {};
  const auto* pair = std::get_if<protocol::Pair>(&received.packet.message);
  if (pair != nullptr && pair->says == Says::kYours) return {};
  return kept(taken, pair != nullptr ? pair->why : "it says something that is no answer");
}

/// Every mapping gets its address here, and the owner before lets go.
Result<void> take_over(Taken& taken, hf_container& own) {
  hf_connection& connection = *taken.connection;
  HOLDFAST_TRY_ASSIGN(const auto places, client::places_of(connection, own, taken.records));
  // What is wrong with them can be put right: the owner waits.
  HOLDFAST_TRY(client::send_places(connection, own, places));
  client::ContainerCalls calls(own);
  const auto still = [&](uint64_t, uint64_t) -> Result<void> {
    HOLDFAST_TRY_ASSIGN(const bool over, protocol::wait_readable(taken.pair, 0));
    return over ? decision(taken, false) : Result<void>();
  };
  const auto give_up = [&](Error error) {
    // The owner takes back, what was taken here too.
    (void)say(taken, Says::kNo, error.headline());
    taken.over = true;
    taken.pair.reset();
    return std::unexpected(std::move(error));
  };
  if (auto all = handover::take(calls, places, still); !all) return give_up(all.error());
  // Where that does not arrive the owner has decided already, or is gone.
  (void)say(taken, Says::kTaken);
  auto decided = decision(taken, true);
  if (!decided && decided.error().sys_errno == ETIMEDOUT) {
    // From here on it cannot say "yours" any more; what it has said until now counts.
    ::shutdown(taken.pair.get(), SHUT_RD);
    HOLDFAST_TRY_ASSIGN(const auto last, protocol::receive(taken.pair, false));
    const auto* pair = std::get_if<protocol::Pair>(&last.packet.message);
    if (last.kind == protocol::Received::Kind::kMessage && pair != nullptr &&
        pair->says == Says::kYours)
      decided = {};
  }
  if (!decided) return give_up(decided.error());
  taken.pair.reset();
  own.taken_over = true;
  return {};
}

/// From the agent: where the program has said where it has the memory, the mappings become its own
/// and count against its RLIMIT_MEMLOCK.
Result<void> take_addresses(Taken& taken, hf_container& own) {
  hf_connection& connection = *taken.connection;
  if (!client::knows_addresses(connection, taken.records)) return {};
  HOLDFAST_TRY_ASSIGN(const auto places, client::places_of(connection, own, taken.records));
  HOLDFAST_TRY_ASSIGN(const bool given, client::send_places(connection, own, places));
  if (!given) return {};
  client::ContainerCalls calls(own);
  auto all = handover::take(calls, places);
  if (all) return {};
  // What has an address here by now is taken back by the agent.
  taken.over = true;
  (void)client::request_ack(connection, protocol::GiveBack{taken.name});
  return all;
}

Result<void> confirm(Taken& taken) {
  if (taken.confirmed) return {};
  if (taken.over) return kept(taken, "that hand-over is over");
  const auto& all = taken.connection->containers;
  const auto own = std::ranges::find(all, taken.container, &std::unique_ptr<hf_container>::get);
  // Not so where it was registered again since, which says the same.
  if (own != all.end() && (*own)->handed_out && !(*own)->taken_over)
    HOLDFAST_TRY(taken.pair.valid() ? take_over(taken, **own) : take_addresses(taken, **own));
  if (own == all.end() || (*own)->handed_out) {
    auto heard = client::request_ack(*taken.connection, protocol::Taken{taken.name});
    // Taken over it is this program's whether an agent hears of it now, or at the next reconnect.
    const bool later = own != all.end() && (*own)->taken_over && !taken.connection->recording;
    if (!heard && heard.error().code == "HF-HANDOVER-RETURNED") {
      (*own)->taken_over = false;
      taken.over = true;
    }
    if (!heard && !later) return std::unexpected(std::move(heard).error());
    if (heard && own != all.end()) (*own)->taken_over = false;
  }
  taken.confirmed = true;
  if (own == all.end()) return {};
  const std::scoped_lock lock((*own)->mutex);
  (*own)->handed_out = false;
  return {};
}

void close_all(Taken& taken) {
  const UniqueFd container(taken.container_fd);
  for (auto& device : taken.device_list) {
    const UniqueFd group(device.group_fd), opened(device.device_fd);
  }
  for (auto& memory : taken.memory_list) const UniqueFd fd(memory.fd);
}

}  // namespace

int hf_take(hf_connection* connection, const char* name, uint32_t flags, hf_taken** out,
            hf_error* error) {
  if (connection == nullptr || name == nullptr || out == nullptr) return -EINVAL;
  *out = nullptr;
  return guarded(error, [&]() -> int {
    const std::scoped_lock lock(connection->mutex);
    const bool from_owner = (flags & HF_TAKE_FROM_OWNER) != 0;
    const uint32_t time = connection->handover_ms;
    const auto until = std::chrono::steady_clock::now() + std::chrono::milliseconds(time);
    auto received = from_owner
                        ? client::request(*connection, protocol::Handover{name, time}, {}, time)
                        : client::request(*connection, protocol::Take{name});
    if (!received) return client::report(error, received.error());
    auto taken = unpack(*connection, name, *received);
    if (!taken) {
      // Whatever was unpacked is closed with the connection: the agent takes the container back.
      client::lose(*connection, taken.error().headline());
      return client::report(error, taken.error());
    }
    (*taken)->until = until;
    if ((flags & (HF_TAKE_CONFIRM_LATER | HF_TAKE_FROM_OWNER)) == 0) {
      if (auto done = confirm(**taken); !done) {
        close_all(**taken);
        connection->containers.remove_if(
            [&](const auto& one) { return one.get() == (*taken)->container; });
        return client::report(error, done.error());
      }
    }
    *out = taken->release();
    return client::finish(error, Result<void>());
  });
}

int hf_taken_confirm(hf_taken* given, hf_error* error) {
  if (given == nullptr) return -EINVAL;
  return guarded(error, [&]() -> int {
    auto* taken = static_cast<Taken*>(given);
    const std::scoped_lock lock(taken->connection->mutex);
    return client::finish(error, confirm(*taken));
  });
}

void hf_taken_free(hf_taken* given) {
  if (given == nullptr) return;
  const std::unique_ptr<Taken> taken(static_cast<Taken*>(given));
  if (!taken->confirmed)
    guarded(nullptr, [&]() -> int {
      hf_connection& connection = *taken->connection;
      const std::scoped_lock lock(connection.mutex);
      taken->pair.reset();
      const auto own = std::ranges::find(connection.containers, taken->container,
                                         &std::unique_ptr<hf_container>::get);
      // Not so where it was registered again since: then it is this program's.
      if (own == connection.containers.end() || !(*own)->handed_out) return 0;
      // An agent that is gone has taken it back.
      auto heard = client::request_ack(connection, protocol::GiveBack{taken->name});
      connection.containers.erase(own);
      return client::finish(nullptr, heard);
    });
  close_all(*taken);
}
