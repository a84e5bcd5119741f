#include "persist/client/addresses.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <map>

namespace holdfast::client {
namespace {

uintptr_t number(const void* address) {
  return reinterpret_cast<uintptr_t>(address);
}

Result<void> said(int status, const char* act) {
  if (status == 0) return {};
  return fail_errno(-status, "container", act);
}

std::unexpected<Error> lacking() {
  auto out = refuse(Exit::kUnsupported, "HF-HANDOVER-KIND", "container",
                    "the program's hf_kernel_ops have no calls for giving addresses away",
                    "hf_set_kernel_ops() with suspend_all, suspend and resume")
                 .error();
  out.sys_errno = EOPNOTSUPP;
  return std::unexpected(std::move(out));
}

}  // namespace

void learn_address(hf_container& container, const hf_mapping& mapping, void* vaddr) {
  if (mapping.memory == nullptr) return;
  const uintptr_t base = number(vaddr) - mapping.offset;
  uintptr_t known = 0;
  // The first one says where the memory is; others are rare, and kept one by one.
  if (mapping.memory->address.compare_exchange_strong(known, base, std::memory_order_relaxed) ||
      known == base)
    return;
  container.elsewhere[mapping.iova] = {mapping.memory, number(vaddr)};
}

void forget_addresses(hf_container& container, uint64_t iova, uint64_t size) {
  if (container.elsewhere.empty()) return;
  const auto begin = container.elsewhere.lower_bound(iova);
  auto end = begin;
  while (end != container.elsewhere.end() && end->first - iova < size) ++end;
  container.elsewhere.erase(begin, end);
}

Result<std::vector<handover::Place>> places_of(hf_connection& connection, hf_container& container,
                                               std::span<const Mapping> mappings) {
  std::map<uint32_t, hf_memory*> by_id;
  for (const auto& memory : connection.memories) by_id[memory->id] = memory.get();
  std::vector<handover::Place> out;
  out.reserve(mappings.size());
  const std::scoped_lock lock(container.mutex);
  for (const Mapping& mapping : mappings) {
    const auto odd = container.elsewhere.find(mapping.iova);
    const auto memory = by_id.find(mapping.region);
    const uintptr_t base =
        memory == by_id.end() ? 0 : memory->second->address.load(std::memory_order_relaxed);
    if (odd == container.elsewhere.end() && base == 0)
      return refuse(Exit::kRefused, "HF-HANDOVER-ADDRESS", "container " + container.name,
                    memory == by_id.end()
                        ? describe(mapping) + " is of memory that this program has not registered"
                        : "this program has not said where it has memory " + memory->second->name,
                    "hf_set_address()");
    const uintptr_t at =
        odd != container.elsewhere.end() ? odd->second.address : base + mapping.region_offset;
    out.push_back({mapping.iova, mapping.size, reinterpret_cast<void*>(at)});
  }
  return out;
}

bool knows_addresses(hf_connection& connection, std::span<const Mapping> mappings) {
  for (const auto& memory : connection.memories)
    if (memory->address != 0 &&
        std::ranges::find(mappings, memory->id.load(), &Mapping::region) != mappings.end())
      return true;
  return false;
}

Result<bool> send_places(hf_connection& connection, const hf_container& container,
                         std::span<const handover::Place> places) {
  std::vector<protocol::PlaceRecord> records;
  records.reserve(places.size());
  for (const auto& place : places)
    records.push_back({place.iova, place.size, number(place.address)});
  HOLDFAST_TRY_ASSIGN(
      const UniqueFd list,
      protocol::sealed_memfd("holdfast-addresses", std::as_bytes(std::span(records))));
  const BorrowedFd descriptors[] = {list};
  HOLDFAST_TRY_ASSIGN(
      const protocol::Ack ack,
      request_ack(connection, protocol::Addresses{container.id, records.size()}, descriptors));
  return ack.value == 1;
}

Result<std::vector<Mapping>> read_mappings(BorrowedFd list, uint64_t count) {
  constexpr uint64_t kMost = 64'000'000;  // 2 GiB: more than any kernel maps
  if (count > kMost) return fail("agent", "sent an impossible number of mappings");
  HOLDFAST_TRY_ASSIGN(const auto bytes, protocol::read_whole(list, count * sizeof(Mapping)));
  if (bytes.size() != count * sizeof(Mapping))
    return fail("agent", "sent a list of mappings that is cut short");
  std::vector<Mapping> out(count);
  if (count != 0) std::memcpy(out.data(), bytes.data(), bytes.size());
  return out;
}

Result<void> ContainerCalls::suspend_all() {
  const hf_kernel_ops ops = ops_of(container_);
  if (ops.suspend_all == nullptr) return lacking();
  return said(ops.suspend_all(ops.context, container_.fd.get()), "suspend its addresses");
}

Result<void> ContainerCalls::suspend(uint64_t iova, uint64_t size) {
  const hf_kernel_ops ops = ops_of(container_);
  if (ops.suspend == nullptr) return lacking();
  return said(ops.suspend(ops.context, container_.fd.get(), iova, size), "suspend an address");
}

Result<void> ContainerCalls::resume(uint64_t iova, uint64_t size, void* address) {
  const hf_kernel_ops ops = ops_of(container_);
  if (ops.resume == nullptr) return lacking();
  return said(ops.resume(ops.context, container_.fd.get(), iova, size, address),
              "give a mapping its new address");
}

}  // namespace holdfast::client

using namespace holdfast;

int hf_set_address(hf_memory* memory, void* address, hf_error* error) {
  return client::guarded(error, [&]() -> int {
    if (memory == nullptr || address == nullptr) return -EINVAL;
    hf_connection& connection = *memory->connection;
    const std::scoped_lock lock(connection.mutex);
    memory->address = client::number(address);
    for (const auto& container : connection.containers) {
      const std::scoped_lock still(container->mutex);
      std::erase_if(container->elsewhere,
                    [&](const auto& one) { return one.second.memory == memory; });
    }
    return client::finish(error, Result<void>());
  });
}
