#include "persist/client/recorder/given.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <string_view>
#include <vector>

#include "persist/agent/transport.h"
#include "persist/client/recorder/backing.h"
#include "persist/client/recorder/link.h"
#include "persist/client/recorder/memory.h"
#include "persist/client/recorder/registering.h"
#include "persist/client/recorder/state.h"
#include "persist/client/recorder/watch.h"
#include "persist/model/container.h"
#include "restore/kernel/syscalls.h"

namespace holdfast::recorder {
namespace {

struct Hardware {
  std::string bdf, number;  ///< of its group
  UniqueFd group, device;
};
struct Memory {
  uint32_t region = 0;
  uint64_t length = 0, device = 0, inode = 0;
};
struct Given {
  enum class Phase : uint32_t { kNone, kHere, kOver };
  Phase phase = Phase::kNone;
  int index = 0;  ///< of the container's object
  uint32_t id = 0, kind = 0;
  bool set = false;  ///< the program has set its IOMMU
  UniqueFd container;
  std::vector<Hardware> hardware;
  std::vector<Memory> memory;
  std::vector<Mapping> mappings;
  std::vector<protocol::PlaceRecord> places;  ///< address 0: the program has not mapped it yet
  size_t missing = 0;
};
Given given;

std::string name() {
  const char* value = ::getenv("HOLDFAST_GIVEN");
  return value == nullptr ? std::string() : value;
}

int failed(int number) {
  errno = number;
  return -1;
}

/// To whoever started the program: it cannot be told itself. Of an agent's refusal, cause and code.
void complain(const std::string& what) {
  const auto field = [&](std::string_view key) -> std::string {
    const size_t at = what.find(key);
    if (at == std::string::npos) return {};
    return what.substr(at + key.size(), what.find('"', at + key.size()) - at - key.size());
  };
  const std::string cause = field("\"cause\":\""), code = field("\"code\":\"");
  ::dprintf(2, "holdfast: container %s: %s%s%s%s\n", name().c_str(),
            cause.empty() ? what.c_str() : cause.c_str(), code.empty() ? "" : " [", code.c_str(),
            code.empty() ? "" : "]");
}

int duplicate(const UniqueFd& fd, bool close_on_exec) {
  return ::fcntl(fd.get(), close_on_exec ? F_DUPFD_CLOEXEC : F_DUPFD, 3);
}

std::string group_of(const std::string& bdf) {
  char target[256];
  const std::string path = "/sys/bus/pci/devices/" + bdf + "/iommu_group";
  const ssize_t length = ::readlink(path.c_str(), target, sizeof target);
  const std::string_view text(target, length > 0 ? static_cast<size_t>(length) : 0);
  return std::string(text.substr(text.rfind('/') + 1));
}

Hardware& hardware_of(const std::string& bdf) {
  for (Hardware& one : given.hardware)
    if (one.bdf == bdf) return one;
  return given.hardware.emplace_back(Hardware{bdf, group_of(bdf), {}, {}});
}

bool read_list(BorrowedFd list, uint64_t count) {
  auto bytes = protocol::read_whole(list, count * sizeof(Mapping));
  if (!bytes || bytes->size() != count * sizeof(Mapping)) return false;
  given.mappings.resize(count);
  if (count != 0) std::memcpy(given.mappings.data(), bytes->data(), bytes->size());
  return true;
}

bool unpack(protocol::Received& received) {
  const auto* reply = std::get_if<protocol::TakeReply>(&received.packet.message);
  if (reply == nullptr || reply->labels.size() != received.descriptors.size()) return false;
  given.id = reply->container;
  given.kind = reply->kind;
  bool good = true;
  for (size_t i = 0; i < reply->labels.size(); ++i) {
    const auto& label = reply->labels[i];
    UniqueFd fd = high(std::move(received.descriptors[i]));
    struct stat info{};
    switch (label.role) {
      case protocol::DescriptorRole::kContainer:
        good = good && label.id == 0;
        given.container = std::move(fd);
        break;
      case protocol::DescriptorRole::kGroup:
        hardware_of(label.name).group = std::move(fd);
        break;
      case protocol::DescriptorRole::kDevice:
        hardware_of(label.name).device = std::move(fd);
        break;
      case protocol::DescriptorRole::kMemory:
        if (::fstat(fd.get(), &info) == 0)
          given.memory.push_back({label.id, label.length, info.st_dev, info.st_ino});
        break;
      case protocol::DescriptorRole::kMappings:
        good = good && label.id == 0 && read_list(fd, label.length);
        break;
      case protocol::DescriptorRole::kPair:
        good = false;
        break;
    }
  }
  for (const Mapping& mapping : given.mappings)
    given.places.push_back({mapping.iova, mapping.size, 0});
  given.missing = given.mappings.size();
  return good && given.container.valid();
}

/// False: it is another's by now, or was never there; the program meets the kernel.
bool take(int& error) {
  error = 0;
  if (given.phase != Given::Phase::kNone) return given.phase == Given::Phase::kHere;
  given.phase = Given::Phase::kOver;
  if (!link()) {
    complain("there is no agent");
    error = EBUSY;
    return false;
  }
  std::string why;
  auto received = ask_for(protocol::Take{name()}, why);
  if (!received) {
    // One of its children, or the next life of the program within this process.
    if (why.find("\"HF-TAKE-OWNED\"") != std::string::npos) return false;
    complain(why);
    error = EBUSY;
    return false;
  }
  if (!unpack(*received)) {
    complain("is of a kind that only a program with libholdfast can take");
    (void)ask(protocol::GiveBack{name()});
    given = Given{};
    given.phase = Given::Phase::kOver;
    error = EBUSY;
    return false;
  }
  given.phase = Given::Phase::kHere;
  return true;
}

bool is_given(int index) {
  return given.phase == Given::Phase::kHere && index != 0 && index == given.index;
}

Hardware* hardware_by_number(std::string_view number) {
  const auto at = std::ranges::find(given.hardware, number, &Hardware::number);
  return at == given.hardware.end() || !at->group.valid() ? nullptr : &*at;
}

int open_container(int flags) {
  const int fd = duplicate(given.container, (flags & O_CLOEXEC) != 0);
  if (fd < 0) return fd;
  given.index = add_object(Kind::kContainer);
  track(fd, given.index);
  return fd;
}

int open_group(const Hardware& hardware, int flags) {
  const int fd = duplicate(hardware.group, (flags & O_CLOEXEC) != 0);
  if (fd < 0) return fd;
  const int group = add_object(Kind::kGroup);
  track(fd, group);
  std::snprintf(object(group).address.data(), object(group).address.size(), "%s",
                hardware.number.c_str());
  return fd;
}

/// Whether the file of a group is one of those that came with the container.
const Hardware* given_group(int index) {
  if (index == 0 || object(index).kind != Kind::kGroup || object(index).address[0] == '\0')
    return nullptr;
  return hardware_by_number(object(index).address.data());
}

const Memory* memory_of(const Mapping& mapping) {
  const auto at = std::ranges::find(given.memory, mapping.region, &Memory::region);
  return at == given.memory.end() ? nullptr : &*at;
}

/// Which mapping the program asks for once more; -1: none.
int same_mapping(const sys::MapArguments& asked) {
  const auto at = std::ranges::lower_bound(given.mappings, asked.iova, {}, &Mapping::iova);
  if (at == given.mappings.end() || at->iova != asked.iova || at->size != asked.size ||
      at->access != asked.flags)
    return -1;
  const Memory* memory = memory_of(*at);
  const auto pieces = resolve(asked.vaddr, asked.size);
  if (memory == nullptr || pieces.size() != 1 || !pieces[0].file ||
      pieces[0].device != memory->device || pieces[0].inode != memory->inode ||
      pieces[0].offset != at->region_offset)
    return -1;
  return static_cast<int>(at - given.mappings.begin());
}

/// The container as any other of a recorded program.
void become_ordinary() {
  Object& one = object(given.index);
  one.id = given.id;
  begin_memory(given.index);
  for (const Memory& memory : given.memory)
    know_memory(memory.region, memory.device, memory.inode, memory.length);
  for (const Mapping& mapping : given.mappings) know_mapping(given.index, mapping);
  for (Object& other : shared->objects)
    if (other.kind == Kind::kDevice && other.container == given.index) other.known = 1;
  given = Given{};
  given.phase = Given::Phase::kOver;
  watch();
}

/// Every mapping has its address in this program: the container becomes its own. Else the errno.
int complete(const Asked& call) {
  const int list =
      write_list(given.places.data(), given.places.size() * sizeof(protocol::PlaceRecord));
  const Answer said =
      list < 0 ? Answer{} : ask(protocol::Addresses{given.id, given.places.size()}, list);
  if (list >= 0) ::close(list);
  if (!said.done) {
    complain(said.why);
    return EFAULT;
  }
  // 0: this kernel does not move addresses; it stays accounted to the agent.
  for (const auto& place : given.places) {
    if (said.value != 1) break;
    sys::VaddrCall moved = sys::vaddr_call(place.iova, place.size, place.address);
    if (call.real(given.container.get(), moved.request, moved.argument.data()) == 0) continue;
    const int error = errno;
    complain("a mapping does not take its address here: errno " + std::to_string(error));
    (void)ask(protocol::GiveBack{name()});
    return error;
  }
  const Answer taken = ask(protocol::Taken{name()});
  if (!taken.done) {
    complain(taken.why);
    (void)ask(protocol::GiveBack{name()});
    return EBUSY;
  }
  become_ordinary();
  return 0;
}

bool map(const Asked& call, int index, int& result) {
  if (!is_given(index) || !given.set) return false;
  sys::MapArguments asked;
  if (!readable(call.argument, sys::kMapArgumentBytes) || !sys::read_map(call.argument, asked))
    return false;
  const int at = same_mapping(asked);
  if (at < 0 || given.places[static_cast<size_t>(at)].address != 0) {
    // The kernel says what is wrong with it; what is free cannot be mapped before it is this
    // program's.
    const bool meets = std::ranges::any_of(given.mappings, [&](const Mapping& one) {
      return one.iova < asked.iova + asked.size && asked.iova < one.end();
    });
    if (meets) return false;
    result = failed(EBUSY);
    return true;
  }
  given.places[static_cast<size_t>(at)].address = asked.vaddr;
  int error = 0;
  if (--given.missing == 0) error = complete(call);
  if (error != 0) {
    given.places[static_cast<size_t>(at)].address = 0;
    ++given.missing;
  }
  result = error == 0 ? 0 : failed(error);
  return true;
}

bool set_iommu(const Asked& call, int index, int& result) {
  if (!is_given(index) || given.set) return false;
  const auto type = static_cast<uint32_t>(reinterpret_cast<uintptr_t>(call.argument));
  if (type != sys::kVfioType1v2 &&
      !(type == sys::kVfioType1v2Preserved &&
        given.kind == static_cast<uint32_t>(ContainerKind::kType1Preserved)))
    return false;
  given.set = true;
  object(index).type = given.kind == static_cast<uint32_t>(ContainerKind::kType1Preserved)
                           ? sys::kVfioType1v2Preserved
                           : type;
  const int error = given.missing == 0 ? complete(call) : 0;
  result = error == 0 ? 0 : failed(error);
  return true;
}

bool set_container(const Asked& call, int group, int& result) {
  int fd = -1;
  if (!readable(call.argument, sizeof fd)) return false;
  std::memcpy(&fd, call.argument, sizeof fd);
  if (!is_given(object_of(fd)) || object(group).attached != 0) return false;
  object(group).container = given.index;
  object(group).attached = 1;
  result = 0;
  return true;
}

/// A group that the program has not put into its container yet is in none, as far as it knows.
bool status(const Asked& call, int group, int& result) {
  result = call();
  if (result == 0 && object(group).attached == 0) sys::say_no_container(call.argument);
  return true;
}

bool get_device(const Asked& call, int group, int& result) {
  if (!readable(call.argument, 13)) return false;
  const std::string bdf(static_cast<const char*>(call.argument),
                        ::strnlen(static_cast<const char*>(call.argument), 13));
  const auto at = std::ranges::find(given.hardware, bdf, &Hardware::bdf);
  if (at == given.hardware.end() || !at->device.valid()) return false;
  result = duplicate(at->device, true);
  if (result < 0) return true;
  const int device = add_object(Kind::kDevice);
  track(result, device);
  Object& one = object(device);
  one.group = group;
  one.container = given.index;
  std::snprintf(one.address.data(), one.address.size(), "%.12s", bdf.c_str());
  return true;
}

}  // namespace

bool expects_container() {
  return given.phase == Given::Phase::kHere ||
         (given.phase == Given::Phase::kNone && ::getenv("HOLDFAST_GIVEN") != nullptr);
}

bool open_given(const char* path, int flags, int& result) {
  const std::string_view text(path);
  if (!text.starts_with("/dev/vfio/") || text.starts_with("/dev/vfio/devices")) return false;
  int error = 0;
  if (!take(error)) {
    if (error == 0) return false;
    result = failed(error);
    return true;
  }
  const std::string_view file = text.substr(std::string_view("/dev/vfio/").size());
  if (file == "vfio") {
    if (given.index != 0) return false;
    result = open_container(flags);
    return true;
  }
  const Hardware* hardware = hardware_by_number(file);
  if (hardware == nullptr) return false;
  result = open_group(*hardware, flags);
  return true;
}

void given_closed(int index) {
  if (!is_given(index)) return;
  given.index = 0;
  given.set = false;
  for (auto& place : given.places) place.address = 0;
  given.missing = given.places.size();
}

bool given_call(const Asked& call, sys::VfioCall what, int& result) {
  if (given.phase != Given::Phase::kHere) return false;
  const int index = object_of(call.fd);
  const bool group = given_group(index) != nullptr;
  switch (what) {
    case sys::VfioCall::kMap:
      return map(call, index, result);
    case sys::VfioCall::kUnmap:
      if (!is_given(index)) return false;
      result = failed(EBUSY);
      return true;
    case sys::VfioCall::kSetIommu:
      return set_iommu(call, index, result);
    case sys::VfioCall::kSetContainer:
      return group && set_container(call, index, result);
    case sys::VfioCall::kUnsetContainer:
      if (!group) return false;
      result = failed(EBUSY);
      return true;
    case sys::VfioCall::kGroupStatus:
      return group && status(call, index, result);
    case sys::VfioCall::kGetDeviceFd:
      return group && get_device(call, index, result);
    default:
      return false;
  }
}

}  // namespace holdfast::recorder
