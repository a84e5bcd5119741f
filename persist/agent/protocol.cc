#include "persist/agent/protocol.h"

#include <fmt/format.h>

#include <cstring>
#include <type_traits>

namespace holdfast::protocol {
namespace {

std::unexpected<Error> malformed(std::string_view object, std::string cause) {
  return refuse(Exit::kFailed, "HF-PROTOCOL", object, cause,
                "use a libholdfast of the same release as holdfastd");
}

template <typename T>
concept Number = std::is_integral_v<T> || std::is_enum_v<T>;

class Encoder {
 public:
  explicit Encoder(std::vector<std::byte>& out) : out_(out) {}

  template <Number T>
  void operator()(T value) {
    append(&value, sizeof value);
  }
  void operator()(const std::string& text) {
    const auto length = static_cast<uint16_t>(std::min(text.size(), kMaxText));
    append(&length, sizeof length);
    append(text.data(), length);
  }
  void operator()(const std::vector<std::byte>& bytes) {
    const auto length = static_cast<uint32_t>(bytes.size());
    append(&length, sizeof length);
    append(bytes.data(), bytes.size());
  }
  void operator()(std::vector<DescriptorLabel>& labels) {
    (*this)(static_cast<uint32_t>(labels.size()));
    for (auto& label : labels) label.fields(*this);
  }

 private:
  void append(const void* data, size_t size) {
    if (size == 0) return;
    const size_t at = out_.size();
    out_.resize(at + size);
    std::memcpy(out_.data() + at, data, size);
  }
  std::vector<std::byte>& out_;
};

/// Reads until the first problem; problem() then says which, and every later field stays default.
class Decoder {
 public:
  explicit Decoder(std::span<const std::byte> in) : in_(in) {}

  template <Number T>
  void operator()(T& value) {
    take(&value, sizeof value);
  }
  void operator()(std::string& text) {
    uint16_t length = 0;
    take(&length, sizeof length);
    if (length > kMaxText) return fail_with("a text is too long");
    if (!room(length)) return;
    text.assign(reinterpret_cast<const char*>(in_.data()), length);
    if (text.find('\0') != std::string::npos) return fail_with("a text holds a NUL");
    in_ = in_.subspan(length);
  }
  void operator()(std::vector<std::byte>& bytes) {
    uint32_t length = 0;
    take(&length, sizeof length);
    if (!room(length)) return;
    bytes.assign(in_.begin(), in_.begin() + length);
    in_ = in_.subspan(length);
  }
  void operator()(std::vector<DescriptorLabel>& labels) {
    uint32_t count = 0;
    take(&count, sizeof count);
    if (count > kMaxDescriptors) return fail_with("too many descriptor labels");
    for (uint32_t i = 0; i < count && problem_.empty(); ++i) labels.emplace_back().fields(*this);
  }

  [[nodiscard]] const std::string& problem() const { return problem_; }
  [[nodiscard]] size_t left() const { return in_.size(); }

 private:
  void fail_with(std::string_view what) {
    if (problem_.empty()) problem_ = what;
    in_ = {};
  }
  bool room(size_t size) {
    if (!problem_.empty()) return false;
    if (size > in_.size()) {
      fail_with("ends in the middle of a field");
      return false;
    }
    return true;
  }
  void take(void* into, size_t size) {
    if (!room(size)) return;
    std::memcpy(into, in_.data(), size);
    in_ = in_.subspan(size);
  }
  std::span<const std::byte> in_;
  std::string problem_;
};

template <typename T>
Result<Message> decode_body(std::span<const std::byte> body) {
  T message;
  Decoder decoder(body);
  message.fields(decoder);
  if (!decoder.problem().empty()) return malformed(type_name(T::kType), decoder.problem());
  constexpr bool may_grow = T::kType == MessageType::kHello || T::kType == MessageType::kWelcome;
  if (!may_grow && decoder.left() != 0)
    return malformed(type_name(T::kType), fmt::format("{} bytes too long", decoder.left()));
  return Message(std::move(message));
}

template <size_t Index = 0>
Result<Message> decode_any(MessageType type, std::span<const std::byte> body) {
  if constexpr (Index < std::variant_size_v<Message>) {
    using T = std::variant_alternative_t<Index, Message>;
    if (type == T::kType) return decode_body<T>(body);
    return decode_any<Index + 1>(type, body);
  } else {
    return malformed("message", fmt::format("type {} is not known", static_cast<uint16_t>(type)));
  }
}

}  // namespace

std::string_view type_name(MessageType type) {
  switch (type) {
    case MessageType::kHello:
      return "HELLO";
    case MessageType::kWelcome:
      return "WELCOME";
    case MessageType::kError:
      return "ERROR";
    case MessageType::kAck:
      return "ACK";
    case MessageType::kRegisterContainer:
      return "REGISTER_CONTAINER";
    case MessageType::kRegisterDevice:
      return "REGISTER_DEVICE";
    case MessageType::kRegisterMemory:
      return "REGISTER_MEMORY";
    case MessageType::kUnregister:
      return "UNREGISTER";
    case MessageType::kSync:
      return "SYNC";
    case MessageType::kResync:
      return "RESYNC";
    case MessageType::kIncomplete:
      return "INCOMPLETE";
    case MessageType::kTake:
      return "TAKE";
    case MessageType::kTakeReply:
      return "TAKE_REPLY";
    case MessageType::kTaken:
      return "TAKEN";
    case MessageType::kQuiesce:
      return "QUIESCE";
    case MessageType::kQuiesced:
      return "QUIESCED";
    case MessageType::kFrozen:
      return "FROZEN";
    case MessageType::kThawed:
      return "THAWED";
    case MessageType::kHold:
      return "HOLD";
    case MessageType::kHandover:
      return "HANDOVER";
    case MessageType::kRelinquish:
      return "RELINQUISH";
    case MessageType::kHandoverStep:
      return "HANDOVER_STEP";
    case MessageType::kGive:
      return "GIVE";
    case MessageType::kAddresses:
      return "ADDRESSES";
    case MessageType::kGiveBack:
      return "GIVE_BACK";
    case MessageType::kPair:
      return "PAIR";
    case MessageType::kRecorded:
      return "RECORDED";
    case MessageType::kReattach:
      return "REATTACH";
    case MessageType::kUnregisterDevice:
      return "UNREGISTER_DEVICE";
    case MessageType::kRegisterAnonymous:
      return "REGISTER_ANONYMOUS";
    case MessageType::kControl:
      return "CONTROL";
    case MessageType::kProgress:
      return "PROGRESS";
    case MessageType::kResult:
      return "RESULT";
  }
  return "?";
}

std::string_view step_name(Step step) {
  switch (step) {
    case Step::kAgreed:
      return "agreed";
    case Step::kDeclined:
      return "declined";
    case Step::kGiven:
      return "given";
    case Step::kLettingGo:
      return "letting go";
    case Step::kHandedOver:
      return "handed over";
    case Step::kReturned:
      return "returned";
  }
  return "?";
}

std::vector<std::byte> encode(const Message& message, uint64_t request, size_t descriptors,
                              uint16_t version) {
  std::vector<std::byte> out(sizeof(Header));
  Header header;
  std::visit(
      [&](const auto& typed) {
        header.type = static_cast<uint16_t>(typed.kType);
        auto copy = typed;  // fields() visits by reference for both directions
        Encoder encoder(out);
        copy.fields(encoder);
      },
      message);
  if (out.size() > kMaxMessageBytes) return {};
  header.version = version;
  header.length = static_cast<uint32_t>(out.size() - sizeof header);
  header.descriptors = static_cast<uint32_t>(descriptors);
  header.request = request;
  std::memcpy(out.data(), &header, sizeof header);
  return out;
}

Result<Packet> decode(std::span<const std::byte> datagram) {
  if (datagram.size() < sizeof(Header))
    return malformed("message", fmt::format("{} bytes are less than a header", datagram.size()));
  if (datagram.size() > kMaxMessageBytes)
    return malformed("message", fmt::format("more than {} bytes", kMaxMessageBytes));
  Packet packet;
  std::memcpy(&packet.header, datagram.data(), sizeof(Header));
  const Header& header = packet.header;
  if (header.magic != kMagic)
    return malformed("message", fmt::format("magic {:#010x} is not ours", header.magic));
  if (header.version < kOldestVersion || header.version > kNewestVersion)
    return refuse(Exit::kUnsupported, "HF-PROTOCOL-VERSION", "message",
                  fmt::format("protocol version {} is not spoken here ({} to {})", header.version,
                              kOldestVersion, kNewestVersion));
  if (header.length != datagram.size() - sizeof(Header))
    return malformed("message", fmt::format("says {} bytes, brings {}", header.length,
                                            datagram.size() - sizeof(Header)));
  if (header.descriptors > kMaxDescriptors)
    return malformed("message", fmt::format("says {} descriptors; at most {} are taken",
                                            header.descriptors, kMaxDescriptors));
  HOLDFAST_TRY_ASSIGN(packet.message, decode_any(static_cast<MessageType>(header.type),
                                                 datagram.subspan(sizeof(Header))));
  return packet;
}

Result<uint16_t> choose_version(const Hello& hello) {
  const uint16_t version = std::min(hello.newest, kNewestVersion);
  if (hello.oldest > hello.newest || version < hello.oldest || version < kOldestVersion)
    return refuse(Exit::kUnsupported, "HF-PROTOCOL-VERSION", "HELLO",
                  fmt::format("the peer speaks protocol {} to {}, this agent {} to {}",
                              hello.oldest, hello.newest, kOldestVersion, kNewestVersion),
                  "bring libholdfast and holdfastd to releases that share a version");
  return version;
}

std::vector<std::byte> blob(std::string_view text) {
  const auto bytes = std::as_bytes(std::span(text.data(), text.size()));
  return {bytes.begin(), bytes.end()};
}

std::string_view text_of(const std::vector<std::byte>& blob) {
  return {reinterpret_cast<const char*>(blob.data()), blob.size()};
}

}  // namespace holdfast::protocol
