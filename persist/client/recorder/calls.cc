#include "persist/client/recorder/calls.h"

#include <dirent.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <string>

#include "persist/client/recorder/backing.h"
#include "persist/client/recorder/link.h"
#include "persist/client/recorder/memory.h"
#include "persist/client/recorder/state.h"
#include "persist/model/container.h"
#include "restore/kernel/syscalls.h"
#include "restore/kernel/vfio_call.h"

namespace holdfast::recorder {
namespace {

/// Keeps errno over what the program has not asked for.
class KeepErrno {
 public:
  ~KeepErrno() { errno = kept_; }

 private:
  int kept_ = errno;
};

constexpr uint64_t kCallersStack = 64 << 10;

/// Whether `size` bytes can be read there; a program that passes rubbish gets EFAULT from the
/// kernel. The page of a caller's stack that was good last is good again.
bool readable(const void* argument, uint64_t size) {
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

void say_incomplete(uint32_t container, const std::string& why) {
  if (!linked()) return;
  protocol::Incomplete message;
  message.container = container;
  message.why = why.substr(0, 500);
  (void)ask(message);
}

std::string base_name() {
  const char* given = ::getenv("HOLDFAST_RECORD_NAME");
  return given == nullptr || *given == '\0' ? program_invocation_short_name : given;
}

void register_container(int index, int fd, uint32_t type) {
  Object& one = object(index);
  if (one.id != 0 || !link()) return;
  protocol::RegisterContainer message;
  const char* kind = ::getenv("HOLDFAST_RECORD_KIND");
  message.kind = static_cast<uint32_t>(
      type == sys::kVfioType1v2Preserved ? ContainerKind::kType1Preserved : ContainerKind::kType1);
  if (kind != nullptr) message.kind = static_cast<uint32_t>(std::atoi(kind));
  const std::string base = base_name();
  Answer answer;
  for (int attempt = 1; attempt <= 64; ++attempt) {
    message.name = attempt == 1 ? base : base + "." + std::to_string(attempt);
    answer = ask(message, fd);
    if (answer.done || !answer.refused_as("HF-NAME-TAKEN")) break;
  }
  if (!answer.done) return say_incomplete(0, "a container of it is not recorded: " + answer.why);
  one.id = static_cast<uint32_t>(answer.value);
  begin_memory(index);
  if (type == sys::kVfioType1v2 || type == sys::kVfioType1v2Preserved) return;
  say_incomplete(one.id, "type1 before version 2: what an unmap takes along is not known");
}

void unregister_container(int index) {
  Object& one = object(index);
  if (one.id == 0) return;
  (void)ask(protocol::Unregister{protocol::Subject::kContainer, one.id});
  one.id = 0;
  end_memory(index);
}

/// The container of a descriptor that a program maps through, registered if it was not seen before.
int container_of(int fd) {
  int index = object_of(fd);
  if (index == 0) index = recognise(fd);
  if (index == 0 || object(index).kind != Kind::kContainer) return 0;
  return index;
}

void detach(int group) {
  const int container = object(group).container;
  object(group).container = 0;
  object(group).attached = 0;
  if (container == 0) return;
  for (const Object& one : shared->objects)
    if (one.kind == Kind::kGroup && one.container == container && one.attached != 0) return;
  // With its last group the kernel ends its tables.
  unregister_container(container);
}

bool has_devices(int group) {
  return std::ranges::any_of(shared->objects, [&](const Object& one) {
    return one.kind == Kind::kDevice && one.group == group;
  });
}

/// The last descriptor of an object is about to go; `fd` is still open.
void release(int index, int fd) {
  const Object one = object(index);
  switch (one.kind) {
    case Kind::kDevice:
      if (one.known != 0 && one.container != 0 && object(one.container).id != 0)
        (void)ask(protocol::UnregisterDevice{object(one.container).id}, fd);
      object(index) = Object{};
      if (one.group != 0 && !is_open(one.group) && !has_devices(one.group)) {
        detach(one.group);
        object(one.group) = Object{};
      }
      if (one.container != 0 && !is_open(one.container)) release(one.container, -1);
      return;
    case Kind::kGroup:
      // An open device keeps its group in the container.
      if (has_devices(index)) return;
      detach(index);
      object(index) = Object{};
      return;
    case Kind::kContainer:
      if (std::ranges::any_of(shared->objects, [&](const Object& other) {
            return other.kind == Kind::kDevice && other.container == index;
          }))
        return;
      unregister_container(index);
      for (Object& other : shared->objects)
        if (other.container == index) other.container = 0;
      object(index) = Object{};
      return;
    case Kind::kNone:
      return;
  }
}

ring::Record record_of(ring::Op op, uint32_t container, uint64_t iova, uint64_t size) {
  ring::Record out;
  out.op = static_cast<uint32_t>(op);
  out.container = container;
  out.iova = iova;
  out.size = size;
  return out;
}

int map(Ioctl real, int index, int fd, unsigned long request, void* argument,
        const sys::MapArguments& asked) {
  const uint32_t id = object(index).id;
  // Before the barrier: registering memory may have to wait for the end of a freeze.
  const auto backed = back(index, asked.vaddr, asked.size);
  if (!enter(id)) return real(fd, request, argument);
  ring::Record intent = record_of(ring::Op::kIntentMap, id, asked.iova, asked.size);
  if (backed.size() == 1) {
    intent.region = backed[0].region;
    intent.region_offset = backed[0].offset;
  }
  intent.access = asked.flags & (sys::kMapRead | sys::kMapWrite);
  if ((asked.flags & sys::kMapLeaveBehind) != 0) intent.access |= ring::kLeaveBehind;
  push(intent);
  const int result = real(fd, request, argument);
  const KeepErrno keep;
  if (result != 0) {
    push(record_of(ring::Op::kFailed, id, asked.iova, asked.size));
  } else if (backed.empty()) {
    push(record_of(ring::Op::kFailed, id, asked.iova, asked.size));
    count_lost(id);
  } else {
    uint64_t at = asked.iova;
    for (const Backed& piece : backed) {
      ring::Record record = record_of(ring::Op::kMap, id, at, piece.size);
      record.region = piece.region;
      record.region_offset = piece.offset;
      record.access = intent.access;
      push(record);
      at += piece.size;
    }
  }
  leave();
  if (result == 0) note_map(index, asked.iova, backed);
  return result;
}

int unmap(Ioctl real, int index, int fd, unsigned long request, void* argument,
          const sys::UnmapArguments& asked) {
  const uint32_t id = object(index).id;
  const bool all = (asked.flags & sys::kUnmapAll) != 0;
  if (!enter(id)) return real(fd, request, argument);
  push(record_of(ring::Op::kIntentUnmap, id, asked.iova, all ? ~uint64_t{4095} : asked.size));
  const int result = real(fd, request, argument);
  const KeepErrno keep;
  sys::UnmapArguments done;
  // The kernel says how much it was; nothing is no complaint.
  const bool some = result == 0 && sys::read_unmap(argument, done) && done.size != 0;
  push(record_of(!some ? ring::Op::kFailed
                 : all ? ring::Op::kUnmapAll
                       : ring::Op::kUnmap,
                 id, asked.iova, asked.size));
  leave();
  if (some) note_unmap(index, all ? 0 : asked.iova, all ? ~uint64_t{0} : asked.size);
  return result;
}

int changing(Ioctl real, sys::VfioCall call, int fd, unsigned long request, void* argument) {
  const int index = container_of(fd);
  if (index == 0) return real(fd, request, argument);
  if (object(index).id == 0) {
    // It came by a way that was not seen: what it holds already is not known.
    const int status = real(fd, request, argument);
    const KeepErrno keep;
    if (status == 0 && link()) {
      register_container(index, fd, sys::kVfioType1v2);
      if (object(index).id != 0)
        say_incomplete(object(index).id, "was mapped before the recorder saw it");
    }
    return status;
  }
  if (call == sys::VfioCall::kMap) {
    sys::MapArguments asked;
    if (readable(argument, sys::kMapArgumentBytes) && sys::read_map(argument, asked) &&
        (asked.flags & sys::kMapVaddr) == 0)
      return map(real, index, fd, request, argument, asked);
  } else {
    sys::UnmapArguments asked;
    if (readable(argument, sys::kUnmapArgumentBytes) && sys::read_unmap(argument, asked) &&
        (asked.flags & sys::kUnmapVaddr) == 0)
      return unmap(real, index, fd, request, argument, asked);
  }
  return real(fd, request, argument);
}

int set_iommu(Ioctl real, int fd, unsigned long request, void* argument) {
  auto type = static_cast<uint32_t>(reinterpret_cast<uintptr_t>(argument));
  int result = -1;
  const char* preserve = ::getenv("HOLDFAST_RECORD_PRESERVE");
  if (preserve != nullptr && type == sys::kVfioType1v2) {
    const int kept = errno;
    result = real(fd, request, reinterpret_cast<void*>(uintptr_t{sys::kVfioType1v2Preserved}));
    if (result == 0)
      type = sys::kVfioType1v2Preserved;
    else
      errno = kept;
  }
  if (result != 0) result = real(fd, request, argument);
  if (result != 0) return result;
  const KeepErrno keep;
  int index = container_of(fd);
  if (index != 0 && object(index).id != 0) {
    // No container is given its IOMMU twice: the number is another file's than it was.
    untrack(fd);
    if (!is_open(index)) release(index, -1);
    index = container_of(fd);
  }
  if (index != 0) register_container(index, fd, type);
  return result;
}

int set_container(Ioctl real, sys::VfioCall call, int fd, unsigned long request, void* argument) {
  const bool attach = call == sys::VfioCall::kSetContainer;
  int group = object_of(fd);
  if (group == 0) group = recognise(fd);
  // Ends the tables with the last group: nothing of it may be left with the agent then.
  const int result = real(fd, request, argument);
  const KeepErrno keep;
  if (result != 0 || group == 0) return result;
  if (!attach) {
    detach(group);
    return result;
  }
  int container = 0;
  std::memcpy(&container, argument, sizeof container);
  object(group).container = container_of(container);
  object(group).attached = 1;
  return result;
}

int get_device(Ioctl real, int fd, unsigned long request, void* argument) {
  const int result = real(fd, request, argument);
  const KeepErrno keep;
  if (result < 0) return result;
  int group = object_of(fd);
  if (group == 0) group = recognise(fd);
  const int device = add_object(Kind::kDevice);
  if (device == 0 || group == 0) return result;
  track(result, device);
  Object& one = object(device);
  one.group = group;
  one.container = object(group).container;
  const uint32_t id = one.container == 0 ? 0 : object(one.container).id;
  if (id == 0) return result;
  protocol::RegisterDevice message;
  message.container = id;
  message.bdf = std::string(static_cast<const char*>(argument)).substr(0, 12);
  const Answer answer = ask(message, fd, result);
  one.known = answer.done ? 1 : 0;
  if (!answer.done) say_incomplete(id, "device " + message.bdf + " is not recorded: " + answer.why);
  return result;
}

}  // namespace

int around_ioctl(Ioctl real, int fd, unsigned long request, void* argument) {
  const sys::VfioCall call = sys::vfio_call(request);
  if (call == sys::VfioCall::kOther || shared == nullptr || Lock::inside())
    return real(fd, request, argument);
  if (!followed()) {
    // A copy of the program that we know nothing about: what it changes is missing in the record.
    const int result = real(fd, request, argument);
    const int index = object_of(fd);
    if (index != 0 && object(index).id != 0) count_lost(object(index).id);
    return result;
  }
  const Lock lock;
  if (lock.orphaned()) orphaned_call();
  switch (call) {
    case sys::VfioCall::kMap:
    case sys::VfioCall::kUnmap:
      return changing(real, call, fd, request, argument);
    case sys::VfioCall::kSetIommu:
      return set_iommu(real, fd, request, argument);
    case sys::VfioCall::kSetContainer:
    case sys::VfioCall::kUnsetContainer:
      return set_container(real, call, fd, request, argument);
    case sys::VfioCall::kGetDeviceFd:
      return get_device(real, fd, request, argument);
    default:
      break;
  }
  const int result = real(fd, request, argument);
  const KeepErrno keep;
  if (result == 0 && link()) say_incomplete(0, "it maps through iommufd, which is not recorded");
  return result;
}

void before_close(int fd) {
  if (object_of(fd) == 0 || Lock::inside() || !same_process()) return;
  const KeepErrno keep;
  const Lock lock;
  if (lock.orphaned()) orphaned_call();
  const int index = untrack(fd);
  if (index != 0 && !is_open(index)) release(index, fd);
}

void after_duplicate(int fd, int copy) {
  if (object_of(fd) == 0 || fd == copy || Lock::inside() || !same_process()) return;
  const KeepErrno keep;
  const Lock lock;
  track(copy, object_of(fd));
}

void take_up_inherited() {
  DIR* folder = ::opendir("/proc/self/fd");
  if (folder == nullptr) return;
  const Lock lock;
  while (const dirent* entry = ::readdir(folder)) {
    if (entry->d_name[0] == '.') continue;
    const int index = recognise(std::atoi(entry->d_name));
    if (index == 0 || object(index).kind != Kind::kContainer || object(index).id != 0) continue;
    if (!link()) break;
    const Answer answer = ask(protocol::Reattach{}, std::atoi(entry->d_name));
    // Another process' that was passed on to this one: nothing is said unless it is used.
    if (!answer.done) continue;
    object(index).id = static_cast<uint32_t>(answer.value);
    begin_memory(index);
    forget_memory(index);
  }
  ::closedir(folder);
  for (Object& one : shared->objects) {
    if (one.kind != Kind::kDevice) continue;
    for (int i = 1; i < kObjects && one.container == 0; ++i)
      if (object(i).kind == Kind::kContainer && object(i).id != 0) one.container = i;
    one.known = one.container != 0 ? 1 : 0;
  }
}

void before_exit() {
  if (shared == nullptr || Lock::inside() || !same_process()) return;
  const Lock lock;
  each_descriptor(0, kDescriptors - 1, [&](int fd) {
    const int index = untrack(fd);
    if (index != 0 && !is_open(index)) release(index, fd);
  });
  // Whoever is still running meets the kernel alone.
  own_row = -1;
}

}  // namespace holdfast::recorder
