#include "persist/client/recorder/calls_iommufd.h"

#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstring>

#include "persist/client/recorder/link.h"
#include "persist/client/recorder/registering.h"
#include "persist/client/recorder/state.h"
#include "persist/client/recorder/watch.h"

namespace holdfast::recorder {
namespace {

/// The object behind a descriptor, where it is of that kind.
int known_as(int fd, Kind kind) {
  int index = object_of(fd);
  if (index == 0) index = recognise(fd);
  return index != 0 && object(index).kind == kind ? index : 0;
}

/// What a number means in a context: an address space, or a page table. 0: not known.
int numbered(int context, uint32_t number) {
  for (int i = 1; i < kObjects; ++i) {
    const Object& one = object(i);
    if ((one.kind == Kind::kIoas || one.kind == Kind::kPageTable) && one.context == context &&
        one.ioas == number)
      return i;
  }
  return 0;
}

int space_of(int index) {
  return index != 0 && object(index).kind == Kind::kPageTable ? object(index).container : index;
}

int begin_space(int context, uint32_t number, uint32_t blind) {
  const int index = add_object(Kind::kIoas);
  if (index == 0) {
    say_unrecorded(Unrecorded::kTooMany);
    return 0;
  }
  object(index).context = context;
  object(index).ioas = number;
  begin(index, kIommufdType, blind);
  return index;
}

/// An address space that calls are made on; one that was not seen to be allocated begins here.
int space(int fd, uint32_t number, bool& seen) {
  const int context = known_as(fd, Kind::kIommufd);
  if (context == 0) return 0;
  const int index = numbered(context, number);
  seen = index != 0;
  return index;
}

int alloc(const Asked& call) {
  const int result = call();
  const KeepErrno keep;
  if (result != 0) return result;
  if (const int context = known_as(call.fd, Kind::kIommufd); context != 0)
    begin_space(context, sys::ioas_allocated(call.argument), 0);
  return result;
}

int destroy(const Asked& call) {
  const bool good = readable(call.argument, sys::kDestroyArgumentBytes);
  const uint32_t number = good ? sys::object_destroyed(call.argument) : 0;
  const int result = call();
  const KeepErrno keep;
  const int context = result == 0 && good ? known_as(call.fd, Kind::kIommufd) : 0;
  const int index = context == 0 ? 0 : numbered(context, number);
  if (index == 0) return result;
  if (object(index).kind == Kind::kIoas) unregister_container(index);
  object(index) = Object{};
  return result;
}

int map(const Asked& call, bool by_file) {
  sys::IoasMapArguments asked;
  if (!readable(call.argument, sys::kIoasMapArgumentBytes) ||
      !sys::read_ioas_map(call.argument, by_file, asked))
    return call();
  bool seen = false;
  const int index = space(call.fd, asked.ioas, seen);
  if (!seen) {
    const int result = call();
    const KeepErrno keep;
    if (const int context = known_as(call.fd, Kind::kIommufd); result == 0 && context != 0)
      begin_space(context, asked.ioas, kBlindBefore);
    return result;
  }
  watch();
  const auto backed =
      by_file ? back_file(asked.file, asked.start, asked.length) : back(asked.start, asked.length);
  return record_map(call, index, backed,
                    {asked.iova, asked.length, asked.access,
                     asked.fixed ? nullptr : sys::ioas_placed_at(call.argument)});
}

int unmap(const Asked& call) {
  sys::IoasUnmapArguments asked;
  if (!readable(call.argument, sys::kIoasUnmapArgumentBytes) ||
      !sys::read_ioas_unmap(call.argument, asked))
    return call();
  bool seen = false;
  const int index = space(call.fd, asked.ioas, seen);
  if (!seen) return call();
  watch();
  const bool all = asked.iova == 0 && asked.length == ~uint64_t{0};
  return record_unmap(call, index, asked.iova, asked.length, all, [](const void* argument) {
    sys::IoasUnmapArguments done;
    return sys::read_ioas_unmap(argument, done) ? done.length : 0;
  });
}

int copy(const Asked& call) {
  const bool good = readable(call.argument, sys::kIoasCopyArgumentBytes);
  const int result = call();
  const KeepErrno keep;
  bool seen = false;
  const int index =
      result == 0 && good ? space(call.fd, sys::ioas_copied_into(call.argument), seen) : 0;
  if (index != 0) say_blind(index, kBlindCopy);
  return result;
}

/// A page table that a program makes by itself is its address space's, unless it is nested.
int page_table(const Asked& call) {
  const int result = call();
  const KeepErrno keep;
  const int context = result == 0 ? known_as(call.fd, Kind::kIommufd) : 0;
  if (context == 0) return result;
  const sys::PageTableMade made = sys::page_table_made(call.argument);
  const int of = numbered(context, made.of);
  const int index = of == 0 ? 0 : add_object(Kind::kPageTable);
  if (index == 0) return result;
  object(index).context = context;
  object(index).ioas = made.number;
  object(index).container = space_of(of);
  return result;
}

/// "0000:00:04.0", from the name of the character device.
void find_address(int device, int fd) {
  char path[64], name[256];
  std::snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
  ssize_t length = ::readlink(path, name, sizeof name - 1);
  if (length <= 0) return;
  name[length] = '\0';
  unsigned number = 0;
  if (std::sscanf(name, "/dev/vfio/devices/vfio%u", &number) != 1) return;
  std::snprintf(path, sizeof path, "/sys/class/vfio-dev/vfio%u/device", number);
  length = ::readlink(path, name, sizeof name - 1);
  if (length <= 0) return;
  name[length] = '\0';
  const char* last = std::strrchr(name, '/');
  std::snprintf(object(device).address.data(), object(device).address.size(), "%.12s",
                last == nullptr ? name : last + 1);
}

int bind(const Asked& call) {
  const int result = call();
  const KeepErrno keep;
  const int device = result == 0 ? known_as(call.fd, Kind::kCharDevice) : 0;
  if (device == 0) return result;
  object(device).context = known_as(sys::bound_to(call.argument), Kind::kIommufd);
  find_address(device, call.fd);
  return result;
}

void leave_space(int device, int fd) {
  Object& one = object(device);
  if (one.known != 0 && one.container != 0 && object(one.container).id != 0)
    (void)ask(protocol::UnregisterDevice{object(one.container).id}, fd);
  one.known = 0;
  one.container = 0;
}

int attach(const Asked& call) {
  const int result = call();
  const KeepErrno keep;
  const int device = result == 0 ? known_as(call.fd, Kind::kCharDevice) : 0;
  if (device == 0) return result;
  leave_space(device, call.fd);
  const int space = space_of(numbered(object(device).context, sys::attached_to(call.argument)));
  if (space == 0 || object(space).kind != Kind::kIoas) {
    say_unrecorded(Unrecorded::kPageTable);
    return result;
  }
  object(device).container = space;
  register_device(device);
  return result;
}

int detach(const Asked& call) {
  const int result = call();
  const KeepErrno keep;
  if (const int device = result == 0 ? known_as(call.fd, Kind::kCharDevice) : 0; device != 0)
    leave_space(device, call.fd);
  return result;
}

}  // namespace

void release_iommufd(int index, int fd) {
  if (object(index).kind == Kind::kCharDevice) {
    const int context = object(index).context;
    leave_space(index, fd);
    object(index) = Object{};
    if (context != 0 && !is_open(context)) release_iommufd(context, -1);
    return;
  }
  // A bound device keeps the context, and everything in it.
  if (std::ranges::any_of(shared->objects, [&](const Object& one) {
        return one.kind == Kind::kCharDevice && one.context == index;
      }))
    return;
  for (int i = 1; i < kObjects; ++i) {
    if (object(i).context != index) continue;
    if (object(i).kind == Kind::kIoas) unregister_container(i);
    object(i) = Object{};
  }
  object(index) = Object{};
}

int iommufd_call(const Asked& call, sys::VfioCall what) {
  switch (what) {
    case sys::VfioCall::kIoasAlloc:
      return alloc(call);
    case sys::VfioCall::kDestroy:
      return destroy(call);
    case sys::VfioCall::kIoasMap:
      return map(call, false);
    case sys::VfioCall::kIoasMapFile:
      return map(call, true);
    case sys::VfioCall::kIoasUnmap:
      return unmap(call);
    case sys::VfioCall::kIoasCopy:
      return copy(call);
    case sys::VfioCall::kPageTable:
      return page_table(call);
    case sys::VfioCall::kBind:
      return bind(call);
    case sys::VfioCall::kAttach:
      return attach(call);
    case sys::VfioCall::kDetach:
      return detach(call);
    default:
      break;
  }
  const int result = call();
  const KeepErrno keep;
  if (result == 0) say_unrecorded(Unrecorded::kCompatible);
  return result;
}

}  // namespace holdfast::recorder
