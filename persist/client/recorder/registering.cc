#include "persist/client/recorder/registering.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <utility>

#include "persist/client/recorder/again.h"
#include "persist/client/recorder/link.h"
#include "persist/client/recorder/memory.h"
#include "persist/client/recorder/state.h"
#include "persist/client/recorder/watch.h"
#include "persist/model/container.h"
#include "restore/kernel/syscalls.h"

namespace holdfast::recorder {
namespace {

constexpr std::pair<uint32_t, const char*> kBlindTexts[] = {
    {kBlindBefore, "was mapped before the recorder saw it"},
    {kBlindType, "type1 before version 2: what an unmap takes along is not known"},
    {kBlindMemory,
     "what is mapped in it is not all known: what lies behind a mapping could not be "
     "told, or another process of the program made it"},
    {kBlindCopy, "IOMMU_IOAS_COPY into it: where that came from is not followed"},
};
constexpr std::pair<Unrecorded, const char*> kUnrecordedTexts[] = {
    {Unrecorded::kCompatible, "it uses iommufd as if it were type1, which is not recorded"},
    {Unrecorded::kPageTable, "a device of it is at a page table that is not an address space's"},
    {Unrecorded::kTooMany, "it has more containers and devices than can be followed"},
};

std::string base_name() {
  const char* given = ::getenv("HOLDFAST_RECORD_NAME");
  return given == nullptr || *given == '\0' ? program_invocation_short_name : given;
}

uint32_t kind_of(uint32_t type) {
  if (type == kIommufdType) return static_cast<uint32_t>(ContainerKind::kIommufd);
  // Of a simulated kernel.
  if (const char* kind = ::getenv("HOLDFAST_RECORD_KIND"); kind != nullptr)
    return static_cast<uint32_t>(std::atoi(kind));
  return static_cast<uint32_t>(type == sys::kVfioType1v2Preserved ? ContainerKind::kType1Preserved
                                                                  : ContainerKind::kType1);
}

/// Everything that is mapped, for an agent that has none of it.
bool resync(int index) {
  std::vector<Mapping> mapped;
  const bool whole = list_mapped(index, mapped);
  const int list = write_list(mapped.data(), mapped.size() * sizeof(Mapping));
  if (list < 0) return false;
  const bool done = ask(protocol::Resync{object(index).id, mapped.size()}, list).done;
  ::close(list);
  return whole && done;
}

}  // namespace

int write_list(const void* bytes, uint64_t size) {
  const int list = ::memfd_create("list", MFD_CLOEXEC);
  if (list < 0 || ::pwrite(list, bytes, size, 0) == static_cast<ssize_t>(size)) return list;
  ::close(list);
  return -1;
}

void say_incomplete(uint32_t container, const std::string& why) {
  if (!linked()) return;
  protocol::Incomplete message;
  message.container = container;
  message.why = why.substr(0, 500);
  (void)ask(message);
}

namespace {

void tell_unrecorded() {
  for (const auto& [what, text] : kUnrecordedTexts)
    if ((shared->unrecorded & static_cast<uint32_t>(what)) != 0) say_incomplete(0, text);
}

}  // namespace

void say_unrecorded(Unrecorded what) {
  if ((shared->unrecorded & static_cast<uint32_t>(what)) != 0) return;
  shared->unrecorded |= static_cast<uint32_t>(what);
  watch();
  if (link()) tell_unrecorded();
}

void begin(int index, uint32_t type, uint32_t blind) {
  object(index).type = type;
  object(index).blind = blind;
  begin_memory(index);
  watch();
  register_container(index);
}

void say_blind(int index, uint32_t why) {
  Object& one = object(index);
  const uint32_t added = why & ~one.blind;
  one.blind |= why;
  if (one.id == 0) return;
  for (const auto& [bit, text] : kBlindTexts)
    if ((added & bit) != 0) say_incomplete(one.id, text);
}

void register_container(int index) {
  Object& one = object(index);
  const int fd = descriptor_of(one.kind == Kind::kIoas ? one.context : index);
  if (one.id != 0 || one.type == 0 || fd < 0 || !link()) return;
  protocol::RegisterContainer message;
  message.kind = kind_of(one.type);
  message.ioas = one.ioas;
  const std::string base = base_name();
  Answer answer;
  uint32_t number = one.number == 0 ? 1 : one.number;
  for (const uint32_t last = number + 64; number < last; ++number) {
    message.name = number == 1 ? base : base + "." + std::to_string(number);
    answer = ask(message, fd);
    if (answer.done || !answer.refused_as("HF-NAME-TAKEN")) break;
  }
  if (!answer.done) return say_incomplete(0, "a container of it is not recorded: " + answer.why);
  one.id = static_cast<uint32_t>(answer.value);
  one.number = number;
  const uint32_t blind = std::exchange(one.blind, 0);
  say_blind(index, blind);
}

void unregister_container(int index) {
  Object& one = object(index);
  if (one.id != 0) (void)ask(protocol::Unregister{protocol::Subject::kContainer, one.id});
  one.id = one.type = one.blind = 0;
  end_memory(index);
}

void register_device(int index) {
  Object& one = object(index);
  const uint32_t id = one.container == 0 ? 0 : object(one.container).id;
  if (id == 0) return;
  const bool grouped = one.kind == Kind::kDevice;
  const int group = grouped ? descriptor_of(one.group) : -1, device = descriptor_of(index);
  protocol::RegisterDevice message;
  message.container = id;
  message.flags = grouped ? 0 : protocol::kDeviceWithoutGroup;
  message.bdf = one.address.data();
  Answer answer;
  if ((grouped && group < 0) || device < 0 || message.bdf.empty())
    answer.why = "the program has no descriptor of it, or of its group, any more";
  else
    answer = grouped ? ask(message, group, device) : ask(message, device);
  one.known = answer.done ? 1 : 0;
  if (!answer.done) say_incomplete(id, "device " + message.bdf + " is not recorded: " + answer.why);
}

bool record_again() {
  if (!link_again()) return false;
  // Nothing of it is whole before all of it is there.
  say_incomplete(0, "is telling a new agent what it has mapped");
  bool lost = false;
  for (Object& one : shared->objects) {
    // What was mapped before this program was executed is known to nobody any more.
    lost = lost || (one.kind == Kind::kContainer && one.id != 0 && one.type == 0);
    one.id = one.known = 0;
  }
  register_memory_again();
  for (int i = 1; i < kObjects; ++i) {
    const Kind kind = object(i).kind;
    if ((kind != Kind::kContainer && kind != Kind::kIoas) || object(i).type == 0) continue;
    register_container(i);
    if (object(i).id == 0) continue;
    for (int device = 1; device < kObjects; ++device)
      if ((object(device).kind == Kind::kDevice || object(device).kind == Kind::kCharDevice) &&
          object(device).container == i)
        register_device(device);
    const bool whole = resync(i);
    say_blind(i, std::exchange(object(i).blind, 0) | (whole ? 0u : uint32_t{kBlindMemory}));
  }
  say_incomplete(0, "");
  tell_unrecorded();
  if (lost) say_incomplete(0, "executed another program before the agent was restarted");
  if (is_shared())
    say_incomplete(0, "of its processes one alone is recorded since the agent was restarted");
  return linked();
}

}  // namespace holdfast::recorder
