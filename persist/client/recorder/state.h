#pragma once

// What the recorder knows of its process: which descriptor is which VFIO object, and who else has
// it. The objects lie in memory that fork(2) shares: parent and child go on as one program, with
// one connection, one lock and one record.
//
// One lock for everything: it is held over an ioctl and its records, so that the record has the
// kernel's order. It is robust: a process that dies inside is noticed by the next one.

#include <pthread.h>
#include <sys/types.h>

#include <array>
#include <atomic>
#include <cstdint>
#include <string>

namespace holdfast::recorder {

inline constexpr int kRows = 8;       ///< processes that share the objects over fork(2)
inline constexpr int kObjects = 512;  ///< containers, groups and devices of one program
inline constexpr int kDescriptors = 65536;

enum class Kind : uint32_t {
  kNone = 0,
  kContainer,
  kGroup,
  kDevice,
  kIommufd,     ///< a context
  kCharDevice,  ///< of VFIO, for iommufd
  // In a context, by number; without a descriptor of their own.
  kIoas,
  kPageTable,
};
inline constexpr uint32_t kIommufdType = 0x10000;  ///< Object::type of an address space

/// One open file of VFIO or iommufd, by whatever descriptors, or what is in it. 0 is no object.
struct Object {
  Kind kind = Kind::kNone;
  int32_t container = 0;               ///< group, device: the one it is in; page table: its IOAS
  int32_t context = 0;                 ///< character device, IOAS, page table
  int32_t group = 0;                   ///< device: the group it came from; 0: not known
  uint32_t id = 0;                     ///< container: Container::id; 0: not registered
  uint32_t type = 0;                   ///< container: as in SET_IOMMU; 0: it was not seen
  uint32_t number = 0;                 ///< container: of its name; 0, 1: without one
  uint32_t ioas = 0;                   ///< IOAS, page table: its number in the context
  uint32_t blind = 0;                  ///< container: Blind, why its record is not whole
  uint32_t attached = 0;               ///< group: 1 while in its container
  uint32_t known = 0;                  ///< device: registered with the agent
  std::array<char, 16> address{};      ///< device: what GET_DEVICE_FD was asked for
  std::array<uint32_t, kRows> refs{};  ///< descriptors, by process
};

/// What the next agent has to be told of a container, too.
enum Blind : uint32_t {
  kBlindBefore = 1,  ///< something was mapped before the recorder saw it
  kBlindType = 2,    ///< type1 before version 2
  kBlindMemory = 4,  ///< what lies behind a mapping could not be told
  kBlindCopy = 8,    ///< IOMMU_IOAS_COPY
};

/// What a program does that is not recorded, as bits.
enum class Unrecorded : uint32_t {
  kCompatible = 1,  ///< iommufd as if it were type1
  kPageTable = 2,   ///< a device at a page table that is no address space's
  kTooMany = 4,
};

struct Row {
  pthread_mutex_t life;        ///< held by the process until it ends or executes another program
  std::atomic<pid_t> pid = 0;  ///< 0: free, or of a child that has not run yet
  uint32_t taken = 0;
  int64_t since = 0;  ///< CLOCK_MONOTONIC seconds of being taken
};

struct Shared {
  pthread_mutex_t lock;
  std::array<Row, kRows> rows;
  std::atomic<uint32_t> recording = 0;  ///< the number of the connection that is in use; 0: none
  uint32_t connections = 0;             ///< that were made so far
  uint32_t unrecorded = 0;              ///< Unrecorded, as bits
  uint64_t next_request = 1;
  uint64_t changes = 0;     ///< records pushed, by any process
  uint32_t next_name = 0;   ///< of memory
  uint32_t image = 0;       ///< tells the names of this program from those before exec
  uint32_t in_call = 0;     ///< a process is between enter() and leave()
  uint32_t call_about = 0;  ///< Container::id of that call
  std::array<Object, kObjects> objects;
};

/// Of this process; set up by begin(), before main().
extern Shared* shared;
extern int own_row;  ///< -1: a copy of the program that is not followed

void begin();
/// Whether this is the process that begin() or a followed fork(2) made. False in a vfork(2) child,
/// which has its parent's memory: nothing may be noted there.
[[nodiscard]] bool same_process();
/// The same without a system call, where a vfork(2) child cannot be.
[[nodiscard]] bool followed();

/// Held while anything in Shared or the descriptor table is looked at or changed. `inside`: this
/// thread holds it already (a signal handler came in between); then nothing may be noted.
class Lock {
 public:
  Lock();
  ~Lock();
  Lock(const Lock&) = delete;
  Lock& operator=(const Lock&) = delete;
  /// Whether somebody died with the lock: his call has no result.
  [[nodiscard]] bool orphaned() const { return orphaned_; }
  [[nodiscard]] static bool inside();

 private:
  bool orphaned_ = false;
  int cancel_state_ = 0;
};

extern std::atomic<int> highest;  ///< tracked descriptor; -1: none

// The descriptor table; lookups from anywhere, changes under the lock.
[[nodiscard]] int object_of(int fd);
[[nodiscard]] inline Object& object(int index) {
  return shared->objects[index];
}
/// A new object, 0 where there is no room.
[[nodiscard]] int add_object(Kind kind);
void track(int fd, int index);
/// Forgets a descriptor; the index of its object, 0: it had none.
int untrack(int fd);
/// Whether another process shares the objects.
[[nodiscard]] bool is_shared();
/// Whether any process that is alive has a descriptor of it.
[[nodiscard]] bool is_open(int index);
/// A descriptor of it in this process; -1: none.
[[nodiscard]] int descriptor_of(int index);
/// How many tracked descriptors there are from `first` on, each given to `each`.
template <typename Each>
void each_descriptor(unsigned first, unsigned last, Each each) {
  const auto end = static_cast<unsigned>(highest.load());
  for (unsigned fd = first; fd <= last && fd <= end; ++fd)
    if (object_of(static_cast<int>(fd)) != 0) each(static_cast<int>(fd));
}
/// What an unknown descriptor is, by its name in procfs; joins the object that it is a duplicate
/// of. 0: nothing of VFIO.
int recognise(int fd);

}  // namespace holdfast::recorder
