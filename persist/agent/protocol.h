#pragma once

// The messages between holdfastd and its peers, as bytes. Pure: no I/O, nothing is allocated beyond
// the size of the message. docs/protocol.md draws the conversations.
//
//   client  --HELLO-->          agent     versions offered, role
//           <--WELCOME--                  version chosen; for clients also ring and doorbell
//           --request(id)-->
//           <--ACK|ERROR|..(id)--
//           <--QUIESCE|FROZEN|THAWED|RELINQUISH(0)-- unsolicited: request id 0
//
// One message is one datagram of a SOCK_SEQPACKET socket: header, then the body. Integers are
// little-endian; text is a 16-bit length and its bytes, blobs a 32-bit length and their bytes.
// Descriptors ride along as SCM_RIGHTS; the header says how many.

#include <bit>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "persist/base/result.h"

namespace holdfast::protocol {

static_assert(std::endian::native == std::endian::little, "the wire is little-endian");

inline constexpr const char* kDefaultSocket = "/run/holdfast/agent.sock";
inline constexpr uint32_t kMagic = 0x54534648;  ///< "HFST" in memory
inline constexpr uint16_t kNewestVersion = 1;
inline constexpr uint16_t kOldestVersion = 1;
inline constexpr size_t kMaxMessageBytes = 64 << 10;  ///< header included
inline constexpr size_t kMaxDescriptors = 128;        ///< per message; more are closed, and refused
inline constexpr size_t kMaxText = 1024;              ///< bytes of a text field
inline constexpr uint64_t kMaxLargeJson = 64ull << 20;  ///< bytes of a JSON text in a memfd

enum class MessageType : uint16_t {
  kHello = 1,
  kWelcome = 2,
  kError = 3,
  kAck = 4,
  kRegisterContainer = 10,
  kRegisterDevice = 11,
  kRegisterMemory = 12,
  kUnregister = 13,
  kSync = 14,
  kResync = 15,
  kIncomplete = 16,
  kTake = 17,
  kTakeReply = 18,
  kTaken = 19,
  kQuiesce = 20,
  kQuiesced = 21,
  kFrozen = 22,
  kThawed = 23,
  kHold = 24,
  kRecorded = 25,
  kReattach = 26,
  kUnregisterDevice = 27,
  kRegisterAnonymous = 28,
  kControl = 30,
  kProgress = 31,
  kResult = 32,
  kHandover = 50,
  kRelinquish = 51,
  kHandoverStep = 52,
  kGive = 53,
  kAddresses = 54,
  kGiveBack = 55,
  kPair = 56,
};
[[nodiscard]] std::string_view type_name(MessageType type);  ///< "HELLO", …; "?" if unknown

/// 24 bytes before every body. The header, HELLO and WELCOME keep their shape in all versions;
/// later versions only append to HELLO and WELCOME.
struct Header {
  uint32_t magic = kMagic;   // 0
  uint16_t version = 1;      // 4: 1 in HELLO, WELCOME and ERROR before it; then as WELCOME chose
  uint16_t type = 0;         // 6: MessageType
  uint32_t length = 0;       // 8: bytes of the body
  uint32_t descriptors = 0;  // 12: that ride along; at most kMaxDescriptors
  uint64_t request = 0;      // 16: echoed in the answer; 0: unsolicited
};
static_assert(sizeof(Header) == 24);

enum class Role : uint32_t { kClient = 1, kControl = 2 };

struct Hello {
  static constexpr MessageType kType = MessageType::kHello;
  uint16_t oldest = kOldestVersion, newest = kNewestVersion;
  Role role = Role::kClient;
  std::string program;  ///< for logs only; identity comes from SO_PEERCRED
  bool operator==(const Hello&) const = default;
  void fields(auto& visit) { visit(oldest), visit(newest), visit(role), visit(program); }
};

/// For clients two descriptors ride along: the ring's memfd and the doorbell (an eventfd).
struct Welcome {
  static constexpr MessageType kType = MessageType::kWelcome;
  uint16_t version = 1;
  uint16_t state = 0;       ///< ArenaState
  uint32_t ring_slots = 0;  ///< records in the ring; 0 for control peers
  uint64_t session = 0;     ///< differs after every start of the agent
  std::string program;
  bool operator==(const Welcome&) const = default;
  void fields(auto& visit) {
    visit(version), visit(state), visit(ring_slots), visit(session), visit(program);
  }
};

/// to_json(Error) as text.
struct ErrorMessage {
  static constexpr MessageType kType = MessageType::kError;
  std::vector<std::byte> json;
  bool operator==(const ErrorMessage&) const = default;
  void fields(auto& visit) { visit(json); }
};

struct Ack {
  static constexpr MessageType kType = MessageType::kAck;
  uint64_t value = 0;  ///< what the request's description says, else 0
  uint64_t second = 0;
  bool operator==(const Ack&) const = default;
  void fields(auto& visit) { visit(value), visit(second); }
};

/// Its owner before gave it to the sender while no agent could hear it.
inline constexpr uint32_t kTakenOver = 1;
/// Descriptor: the container. Answer: ACK{id, dma_entry_limit}.
struct RegisterContainer {
  static constexpr MessageType kType = MessageType::kRegisterContainer;
  uint32_t kind = 0;          ///< ContainerKind
  uint32_t hold_seconds = 0;  ///< custody after the owner's death
  uint32_t flags = 0;         ///< kTakenOver
  uint32_t ioas = 0;          ///< iommufd: the address space in the descriptor; 0 for other kinds
  std::string name;
  bool operator==(const RegisterContainer&) const = default;
  void fields(auto& visit) {
    visit(kind), visit(hold_seconds), visit(flags), visit(ioas), visit(name);
  }
};

inline constexpr uint32_t kDeviceConsentsToReinit = 1;
inline constexpr uint32_t kDeviceWithoutGroup = 2;  ///< kinds without groups: the device alone
/// Descriptors: group, device; with kDeviceWithoutGroup the device. Answer: ACK{}.
struct RegisterDevice {
  static constexpr MessageType kType = MessageType::kRegisterDevice;
  uint32_t container = 0;
  uint32_t flags = 0;  ///< kDeviceConsentsToReinit
  std::string bdf;
  bool operator==(const RegisterDevice&) const = default;
  void fields(auto& visit) { visit(container), visit(flags), visit(bdf); }
};

/// Descriptor: the memory. Answer: ACK{region id, length}.
struct RegisterMemory {
  static constexpr MessageType kType = MessageType::kRegisterMemory;
  std::string name;
  std::string path;  ///< how it is opened again; may be empty
  bool operator==(const RegisterMemory&) const = default;
  void fields(auto& visit) { visit(name), visit(path); }
};

enum class Subject : uint32_t { kContainer = 1, kMemory = 2 };
struct Unregister {
  static constexpr MessageType kType = MessageType::kUnregister;
  Subject what = Subject::kContainer;
  uint32_t id = 0;
  bool operator==(const Unregister&) const = default;
  void fields(auto& visit) { visit(what), visit(id); }
};

/// Drains the ring and commits. Answer: ACK{records applied since the connection was made}.
struct Sync {
  static constexpr MessageType kType = MessageType::kSync;
  uint32_t flags = 0;
  bool operator==(const Sync&) const = default;
  void fields(auto& visit) { visit(flags); }
};

/// Descriptor: a memfd with `count` records of Mapping (32 bytes), sorted by iova: everything that
/// is mapped now. Replaces the record of the container and ends "incomplete". Answer: ACK{count}.
struct Resync {
  static constexpr MessageType kType = MessageType::kResync;
  uint32_t container = 0;
  uint64_t count = 0;
  bool operator==(const Resync&) const = default;
  void fields(auto& visit) { visit(container), visit(count); }
};

/// The client lost records of this container: freeze refuses until RESYNC. Answer: ACK{}.
struct Incomplete {
  static constexpr MessageType kType = MessageType::kIncomplete;
  uint32_t container = 0;  ///< 0: the program as a whole does what is not recorded, until it ends
  std::string why;
  bool operator==(const Incomplete&) const = default;
  void fields(auto& visit) { visit(container), visit(why); }
};

/// Asks for the descriptors of a restored (or held) container. Answer: TAKE_REPLY.
struct Take {
  static constexpr MessageType kType = MessageType::kTake;
  std::string name;
  bool operator==(const Take&) const = default;
  void fields(auto& visit) { visit(name); }
};

inline constexpr uint32_t kMappingsToBeMade = 1;
enum class DescriptorRole : uint32_t {
  kContainer = 1,  ///< id: iommufd's address space, else 0; length: its hold_seconds
  kGroup = 2,      ///< name: the device's BDF
  kDevice = 3,     ///< id: its flags, as REGISTER_DEVICE has them; name: the BDF
  kMemory = 4,     ///< id: the region; name: its name; length: its bytes
  /// a memfd of Mapping records sorted by iova; length: their number; id: kMappingsToBeMade, where
  /// the container is empty and who takes it maps them before TAKEN
  kMappings = 5,
  kPair = 6,  ///< what leads to the owner before: PAIR messages
};
struct DescriptorLabel {
  DescriptorRole role = DescriptorRole::kContainer;
  uint32_t id = 0;
  uint64_t length = 0;
  std::string name;
  bool operator==(const DescriptorLabel&) const = default;
  void fields(auto& visit) { visit(role), visit(id), visit(length), visit(name); }
};

/// One descriptor for each label, in order. Custody goes on until TAKEN arrives; when the peer dies
/// before that the container is taken back.
struct TakeReply {
  static constexpr MessageType kType = MessageType::kTakeReply;
  uint32_t container = 0;
  uint32_t kind = 0;  ///< ContainerKind
  std::vector<DescriptorLabel> labels;
  bool operator==(const TakeReply&) const = default;
  void fields(auto& visit) { visit(container), visit(kind), visit(labels); }
};

/// "I am alive and have them." From here on the sender owns the container. Answer: ACK{}.
struct Taken {
  static constexpr MessageType kType = MessageType::kTaken;
  std::string name;
  bool operator==(const Taken&) const = default;
  void fields(auto& visit) { visit(name); }
};

/// Agent: stop your devices' DMA within `timeout_ms` and answer QUIESCED.
struct Quiesce {
  static constexpr MessageType kType = MessageType::kQuiesce;
  uint64_t freeze = 0;  ///< names this attempt
  uint32_t timeout_ms = 0;
  bool operator==(const Quiesce&) const = default;
  void fields(auto& visit) { visit(freeze), visit(timeout_ms); }
};

struct Quiesced {
  static constexpr MessageType kType = MessageType::kQuiesced;
  uint64_t freeze = 0;
  uint32_t accepted = 0;  ///< 1: no DMA any more; 0: cannot, `why` says it
  std::string why;
  bool operator==(const Quiesced&) const = default;
  void fields(auto& visit) { visit(freeze), visit(accepted), visit(why); }
};

struct Frozen {
  static constexpr MessageType kType = MessageType::kFrozen;
  uint64_t freeze = 0;
  uint64_t generation = 0;
  bool operator==(const Frozen&) const = default;
  void fields(auto& visit) { visit(freeze), visit(generation); }
};

/// A freeze ended or did not come about: DMA may go on, mappings may change.
struct Thawed {
  static constexpr MessageType kType = MessageType::kThawed;
  uint64_t freeze = 0;
  std::string why;
  bool operator==(const Thawed&) const = default;
  void fields(auto& visit) { visit(freeze), visit(why); }
};

/// Changes hold_seconds of an own container. Answer: ACK{}.
struct Hold {
  static constexpr MessageType kType = MessageType::kHold;
  uint32_t container = 0;
  uint32_t seconds = 0;
  bool operator==(const Hold&) const = default;
  void fields(auto& visit) { visit(container), visit(seconds); }
};

// -- hand over: docs/handover.md draws the conversation -------------------------------------------

/// Asks for a container that somebody owns. Answer: TAKE_REPLY, with a kPair descriptor, once the
/// owner has given it away; as to TAKE where nobody owns it.
struct Handover {
  static constexpr MessageType kType = MessageType::kHandover;
  std::string name;
  uint32_t timeout_ms = 0;  ///< from the question to the end
  bool operator==(const Handover&) const = default;
  void fields(auto& visit) { visit(name), visit(timeout_ms); }
};

/// Agent to the owner: somebody asks for your container. Answer: HANDOVER_STEP.
struct Relinquish {
  static constexpr MessageType kType = MessageType::kRelinquish;
  uint64_t handover = 0;  ///< names this attempt
  uint32_t container = 0;
  uint32_t timeout_ms = 0;
  std::string successor;  ///< who asks, for people
  bool operator==(const Relinquish&) const = default;
  void fields(auto& visit) {
    visit(handover), visit(container), visit(timeout_ms), visit(successor);
  }
};

enum class Step : uint32_t {
  kAgreed = 1,      ///< no mapping changes from here on. Answer: GIVE
  kDeclined = 2,    ///< `why` says it; also after GIVE: then nothing has been given away
  kGiven = 3,       ///< no mapping has an address any more
  kLettingGo = 4,   ///< the successor says that it has taken all: may it be let go?
  kHandedOver = 5,  ///< it is the successor's
  kReturned = 6,    ///< taken back, `why` says for what reason
};
[[nodiscard]] std::string_view step_name(Step step);  ///< "agreed", …; "?" if unknown

/// The owner of a hand-over. Answer: ACK, or GIVE.
struct HandoverStep {
  static constexpr MessageType kType = MessageType::kHandoverStep;
  uint64_t handover = 0;
  Step step = Step::kDeclined;
  std::string why;
  bool operator==(const HandoverStep&) const = default;
  void fields(auto& visit) { visit(handover), visit(step), visit(why); }
};

/// Descriptors: a memfd of `count` Mapping records sorted by iova, which is all that is mapped; the
/// owner's end of the pair.
struct Give {
  static constexpr MessageType kType = MessageType::kGive;
  uint64_t handover = 0;
  uint64_t count = 0;
  bool operator==(const Give&) const = default;
  void fields(auto& visit) { visit(handover), visit(count); }
};

/// Where one mapping is in the sender's address space, in bytes.
struct PlaceRecord {
  uint64_t iova = 0, size = 0, address = 0;
};
static_assert(sizeof(PlaceRecord) == 24);

/// Descriptor: a memfd of `count` PlaceRecords sorted by iova, one for each mapping. Answer:
/// ACK{1 if the agent has just given the mappings away, so that these addresses are theirs now}.
struct Addresses {
  static constexpr MessageType kType = MessageType::kAddresses;
  uint32_t container = 0;
  uint64_t count = 0;
  bool operator==(const Addresses&) const = default;
  void fields(auto& visit) { visit(container), visit(count); }
};

/// What was handed out and is not confirmed goes back. Answer: ACK{}.
struct GiveBack {
  static constexpr MessageType kType = MessageType::kGiveBack;
  std::string name;
  bool operator==(const GiveBack&) const = default;
  void fields(auto& visit) { visit(name); }
};

/// Between the two owners, over the pair; without a request number.
struct Pair {
  static constexpr MessageType kType = MessageType::kPair;
  enum class Says : uint32_t {
    kTaken = 1,  ///< the new one: every mapping has its address here
    kYours = 2,  ///< the old one: sent is let go
    kNo = 3,     ///< either: not this time, `why` says it; the old one takes back
  };
  Says says = Says::kNo;
  std::string why;
  bool operator==(const Pair&) const = default;
  void fields(auto& visit) { visit(says), visit(why); }
};

/// How a program that cannot agree to a freeze is made to hold still.
enum class Stop : uint32_t {
  kNone = 0,    ///< it cannot be: `why` says it, and freeze refuses
  kCgroup = 1,  ///< it was started in a cgroup of its own, which the agent finds by its pid
};
/// First message of the recorder: this peer stands for an unmodified program. Nothing is sent to it
/// unasked. Answer: ACK{}.
struct Recorded {
  static constexpr MessageType kType = MessageType::kRecorded;
  Stop stop = Stop::kNone;
  std::string why;
  bool operator==(const Recorded&) const = default;
  void fields(auto& visit) { visit(stop), visit(why); }
};

/// Descriptor: a container that this process had registered before it executed another program.
/// Answer: ACK{id, mappings recorded}.
struct Reattach {
  static constexpr MessageType kType = MessageType::kReattach;
  uint32_t flags = 0;
  bool operator==(const Reattach&) const = default;
  void fields(auto& visit) { visit(flags); }
};

/// Descriptor: the device, which its owner is about to close. Custody of it and of its group ends
/// before the answer. Answer: ACK{devices left}.
struct UnregisterDevice {
  static constexpr MessageType kType = MessageType::kUnregisterDevice;
  uint32_t container = 0;
  bool operator==(const UnregisterDevice&) const = default;
  void fields(auto& visit) { visit(container); }
};

/// The address space of the sender, as memory without a descriptor: a mapping's offset in it is its
/// virtual address. Answer: ACK{region id, length}.
struct RegisterAnonymous {
  static constexpr MessageType kType = MessageType::kRegisterAnonymous;
  std::string name;
  bool operator==(const RegisterAnonymous&) const = default;
  void fields(auto& visit) { visit(name); }
};

/// The JSON text is not in the message but is the whole of the first descriptor, a memfd.
inline constexpr uint32_t kJsonInDescriptor = 1;

/// Control peers only: a JSON object with "verb", and bytes that JSON is bad at.
template <MessageType Type>
struct ControlMessage {
  static constexpr MessageType kType = Type;
  uint32_t flags = 0;
  std::vector<std::byte> json;
  std::vector<std::byte> tail;
  bool operator==(const ControlMessage&) const = default;
  void fields(auto& visit) { visit(flags), visit(json), visit(tail); }
};
using Control = ControlMessage<MessageType::kControl>;
using Progress = ControlMessage<MessageType::kProgress>;
using ControlResult = ControlMessage<MessageType::kResult>;

using Message = std::variant<Hello, Welcome, ErrorMessage, Ack, RegisterContainer, RegisterDevice,
                             RegisterMemory, Unregister, Sync, Resync, Incomplete, Take, TakeReply,
                             Taken, Quiesce, Quiesced, Frozen, Thawed, Hold, Handover, Relinquish,
                             HandoverStep, Give, Addresses, GiveBack, Pair, Recorded, Reattach,
                             UnregisterDevice, RegisterAnonymous, Control, Progress, ControlResult>;

struct Packet {
  Header header;
  Message message;
};

/// Bytes of a whole datagram. A text beyond kMaxText is cut; a message that does not fit in
/// kMaxMessageBytes comes back empty (only blobs can cause that, and their senders check first).
[[nodiscard]] std::vector<std::byte> encode(const Message& message, uint64_t request,
                                            size_t descriptors = 0, uint16_t version = 1);

/// Checks magic, version range, type, length, then every field; bytes left over are an error but
/// in HELLO and WELCOME. Errors are exit 1, HF-PROTOCOL (HF-PROTOCOL-VERSION: exit 4).
[[nodiscard]] Result<Packet> decode(std::span<const std::byte> datagram);

/// The highest version that both sides speak; HF-PROTOCOL-VERSION names both ranges.
[[nodiscard]] Result<uint16_t> choose_version(const Hello& hello);

[[nodiscard]] std::vector<std::byte> blob(std::string_view text);
[[nodiscard]] std::string_view text_of(const std::vector<std::byte>& blob);

}  // namespace holdfast::protocol
