#include "persist/client/recorder/calls.h"

#include <dirent.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

#include "persist/client/recorder/calls_iommufd.h"
#include "persist/client/recorder/change.h"
#include "persist/client/recorder/given.h"
#include "persist/client/recorder/link.h"
#include "persist/client/recorder/memory.h"
#include "persist/client/recorder/registering.h"
#include "persist/client/recorder/state.h"
#include "persist/client/recorder/watch.h"
#include "restore/kernel/syscalls.h"
#include "restore/kernel/vfio_call.h"

namespace holdfast::recorder {
namespace {

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
      given_closed(index);
      unregister_container(index);
      for (Object& other : shared->objects)
        if (other.container == index) other.container = 0;
      object(index) = Object{};
      return;
    case Kind::kIommufd:
    case Kind::kCharDevice:
      return release_iommufd(index, fd);
    case Kind::kIoas:
    case Kind::kPageTable:
    case Kind::kNone:
      return;
  }
}

uint32_t access_of(uint32_t flags) {
  const uint32_t access = flags & (sys::kMapRead | sys::kMapWrite);
  return (flags & sys::kMapLeaveBehind) != 0 ? access | ring::kLeaveBehind : access;
}

uint64_t unmapped_by(const void* argument) {
  sys::UnmapArguments done;
  return sys::read_unmap(argument, done) ? done.size : 0;
}

int changing(Ioctl real, sys::VfioCall call, int fd, unsigned long request, void* argument) {
  const int index = container_of(fd);
  if (index == 0) return real(fd, request, argument);
  Object& one = object(index);
  if (one.id == 0 && one.type == 0) {
    // It came by a way that was not seen: what it holds already is not known.
    const int status = real(fd, request, argument);
    const KeepErrno keep;
    if (status == 0) begin(index, sys::kVfioType1v2, kBlindBefore);
    return status;
  }
  watch();
  if (call == sys::VfioCall::kMap) {
    sys::MapArguments asked;
    if (readable(argument, sys::kMapArgumentBytes) && sys::read_map(argument, asked) &&
        (asked.flags & sys::kMapVaddr) == 0)
      // Before the barrier: registering memory may have to wait for the end of a freeze.
      return record_map({real, fd, request, argument}, index, back(asked.vaddr, asked.size),
                        {asked.iova, asked.size, access_of(asked.flags), nullptr});
  } else {
    sys::UnmapArguments asked;
    if (readable(argument, sys::kUnmapArgumentBytes) && sys::read_unmap(argument, asked) &&
        (asked.flags & sys::kUnmapVaddr) == 0)
      return record_unmap({real, fd, request, argument}, index, asked.iova, asked.size,
                          (asked.flags & sys::kUnmapAll) != 0, unmapped_by);
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
  if (index != 0 && (object(index).id != 0 || object(index).type != 0)) {
    // No container is given its IOMMU twice: the number is another file's than it was.
    untrack(fd);
    if (!is_open(index)) release(index, -1);
    index = container_of(fd);
  }
  if (index != 0)
    begin(index, type,
          type == sys::kVfioType1v2 || type == sys::kVfioType1v2Preserved ? 0u
                                                                          : uint32_t{kBlindType});
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
  std::snprintf(one.address.data(), one.address.size(), "%.12s",
                static_cast<const char*>(argument));
  register_device(device);
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
  if (expects_container()) {
    const int kept = errno;
    int result = 0;
    if (given_call({real, fd, request, argument}, call, result)) {
      if (result >= 0) errno = kept;
      return result;
    }
  }
  switch (call) {
    case sys::VfioCall::kGroupStatus:
      return real(fd, request, argument);
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
      return iommufd_call({real, fd, request, argument}, call);
  }
}

int around_open(const char* path, int flags, int (*real)(const char*, int, unsigned),
                unsigned mode) {
  if (path == nullptr || !expects_container() || Lock::inside() || !same_process())
    return real(path, flags, mode);
  const int kept = errno;
  {
    const Lock lock;
    int result = 0;
    if (open_given(path, flags, result)) {
      if (result >= 0) errno = kept;
      return result;
    }
  }
  errno = kept;
  return real(path, flags, mode);
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
    forget_memory();
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
