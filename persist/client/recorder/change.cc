#include "persist/client/recorder/change.h"

#include <sys/uio.h>
#include <unistd.h>

#include "persist/client/recorder/link.h"
#include "persist/client/recorder/registering.h"
#include "persist/client/recorder/state.h"

namespace holdfast::recorder {
namespace {

constexpr uint64_t kCallersStack = 64 << 10;
constexpr uint64_t kEverything = ~uint64_t{4095};

ring::Record record_of(ring::Op op, uint32_t container, uint64_t iova, uint64_t size) {
  ring::Record out;
  out.op = static_cast<uint32_t>(op);
  out.container = container;
  out.iova = iova;
  out.size = size;
  return out;
}

}  // namespace

bool readable(const void* argument, uint64_t size) {
  // The page of a caller's stack that was good last is good again.
  thread_local uintptr_t known __attribute__((tls_model("initial-exec"))) = 0;
  const auto address = reinterpret_cast<uintptr_t>(argument);
  const auto stack = reinterpret_cast<uintptr_t>(__builtin_frame_address(0));
  const uintptr_t page = address / 4096;
  if (page == known && (address + size - 1) / 4096 == page && address > stack &&
      address - stack < kCallersStack)
    return true;
  char bytes[64];
  const iovec here{bytes, size}, there{const_cast<void*>(argument), size};
  if (::process_vm_readv(::getpid(), &here, 1, &there, 1, 0) != static_cast<ssize_t>(size))
    return false;
  known = page;
  return true;
}

int record_map(const Asked& call, int index, std::span<const Backed> backed, MapAt at) {
  const uint32_t id = object(index).id;
  before_change();
  const bool recorded = id != 0 && enter(id);
  if (recorded) {
    const bool chosen = at.placed != nullptr;
    ring::Record intent =
        record_of(ring::Op::kIntentMap, id, chosen ? 0 : at.iova, chosen ? kEverything : at.size);
    if (backed.size() == 1) {
      intent.region = backed[0].region;
      intent.region_offset = backed[0].offset;
    }
    intent.access = at.access;
    push(intent);
  }
  const int result = call();
  const KeepErrno keep;
  if (result == 0 && at.placed != nullptr) at.iova = *at.placed;
  if (recorded && (result != 0 || backed.empty())) {
    push(record_of(ring::Op::kFailed, id, at.iova, at.size));
  } else if (recorded) {
    uint64_t iova = at.iova;
    for (const Backed& piece : backed) {
      ring::Record record = record_of(ring::Op::kMap, id, iova, piece.size);
      record.region = piece.region;
      record.region_offset = piece.offset;
      record.access = at.access;
      push(record);
      iova += piece.size;
    }
  }
  if (recorded) leave();
  after_change();
  if (result == 0) note_map(index, at.iova, at.access, backed);
  if (result == 0 && backed.empty()) say_blind(index, kBlindMemory);
  return result;
}

int record_unmap(const Asked& call, int index, uint64_t iova, uint64_t size, bool all,
                 uint64_t (*bytes)(const void*)) {
  const uint32_t id = object(index).id;
  before_change();
  const bool recorded = id != 0 && enter(id);
  if (recorded)
    push(record_of(ring::Op::kIntentUnmap, id, all ? 0 : iova, all ? kEverything : size));
  const int result = call();
  const KeepErrno keep;
  // The kernel says how much it was; nothing is no complaint.
  const bool some = result == 0 && bytes(call.argument) != 0;
  if (recorded) {
    push(record_of(!some ? ring::Op::kFailed
                   : all ? ring::Op::kUnmapAll
                         : ring::Op::kUnmap,
                   id, iova, size));
    leave();
  }
  after_change();
  if (some) note_unmap(index, all ? 0 : iova, all ? ~uint64_t{0} : size);
  return result;
}

}  // namespace holdfast::recorder
