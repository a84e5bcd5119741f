// Taking up again: the descriptors of a restored container become this program's.

#include <fcntl.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <map>

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
  constexpr uint64_t kMost = 64'000'000;  // 2 GiB: more than any kernel maps
  if (count > kMost) return fail("agent", "sent an impossible number of mappings");
  HOLDFAST_TRY_ASSIGN(const auto bytes, protocol::read_whole(list, count * sizeof(Mapping)));
  if (bytes.size() != count * sizeof(Mapping))
    return fail("agent", "sent a list of mappings that is cut short");
  std::map<uint32_t, hf_memory*> by_id;
  for (const auto& memory : connection.memories) by_id[memory->id] = memory.get();
  taken.mapping_list.resize(count);
  for (uint64_t i = 0; i < count; ++i) {
    Mapping mapping;
    std::memcpy(&mapping, bytes.data() + i * sizeof mapping, sizeof mapping);
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
      case protocol::DescriptorRole::kMemory:
        break;
    }
  }
  if (taken->container_fd < 0) return fail("agent", "TAKE_REPLY came without the container");
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

Result<void> confirm(Taken& taken) {
  if (taken.confirmed) return {};
  const auto& all = taken.connection->containers;
  const auto own = std::ranges::find(all, taken.container, &std::unique_ptr<hf_container>::get);
  // Not so where it was registered again since, which says the same.
  if (own == all.end() || (*own)->handed_out)
    HOLDFAST_TRY(client::request_ack(*taken.connection, protocol::Taken{taken.name}));
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
    auto received = client::request(*connection, protocol::Take{name});
    if (!received) return client::report(error, received.error());
    auto taken = unpack(*connection, name, *received);
    if (!taken) {
      // Whatever was unpacked is closed with the connection: the agent takes the container back.
      client::lose(*connection, taken.error().headline());
      return client::report(error, taken.error());
    }
    if ((flags & HF_TAKE_CONFIRM_LATER) == 0) {
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
  close_all(*taken);
}
