#include "persist/agent/control_client.h"

#include <fmt/format.h>

#include <cerrno>
#include <utility>

#include "persist/agent/transport.h"
#include "persist/model/json_field.h"

namespace holdfast::protocol {

Error error_of(const ErrorMessage& message) {
  auto json = parse_json(text_of(message.json));
  if (!json) return std::move(json).error();
  return error_from_json(*json);
}

ErrorMessage error_message(const Error& error) {
  // Names in an error may come from a client: replace what is not UTF-8 instead of throwing.
  std::string text = to_json(error).dump(-1, ' ', false, Json::error_handler_t::replace);
  if (text.size() > kMaxMessageBytes - 1024) {
    Error brief = error;
    brief.details.clear();
    brief.object.resize(std::min<size_t>(brief.object.size(), 512));
    brief.cause.resize(std::min<size_t>(brief.cause.size(), 512));
    brief.remedy.resize(std::min<size_t>(brief.remedy.size(), 512));
    brief.context.clear();
    text = to_json(brief).dump(-1, ' ', false, Json::error_handler_t::replace);
  }
  return {blob(text)};
}

template <typename Type>
Result<void> send_parcel(BorrowedFd socket, const Json& body, std::span<const std::byte> tail,
                         std::span<const BorrowedFd> descriptors, uint64_t request, bool wait) {
  if (tail.size() > kMaxTail)
    return fail("message", fmt::format("a tail of {} bytes; at most {}", tail.size(), kMaxTail));
  Type message;
  message.tail.assign(tail.begin(), tail.end());
  const std::string text = body.dump(-1, ' ', false, Json::error_handler_t::replace);
  if (text.size() + tail.size() <= kMaxMessageBytes - 256) {
    message.json = blob(text);
    return send(socket, message, request, descriptors, wait);
  }
  message.flags = kJsonInDescriptor;
  HOLDFAST_TRY_ASSIGN(UniqueFd memfd,
                      sealed_memfd("holdfast-json", std::as_bytes(std::span(text))));
  std::vector<BorrowedFd> all{memfd};
  all.insert(all.end(), descriptors.begin(), descriptors.end());
  return send(socket, message, request, all, wait);
}

template <typename Type>
Result<Parcel> open_parcel(Type message, std::vector<UniqueFd> descriptors) {
  Parcel out;
  std::vector<std::byte> text = std::move(message.json);
  if ((message.flags & kJsonInDescriptor) != 0) {
    if (descriptors.empty()) return fail(type_name(Type::kType), "its JSON descriptor is missing");
    HOLDFAST_TRY_ASSIGN(text, read_whole(descriptors.front(), kMaxLargeJson));
    descriptors.erase(descriptors.begin());
  }
  HOLDFAST_TRY_ASSIGN(out.body, parse_json(text_of(text), kMaxLargeJson));
  if (!out.body.is_object()) return fail(type_name(Type::kType), "is not a JSON object");
  out.tail = std::move(message.tail);
  out.descriptors = std::move(descriptors);
  return out;
}

template Result<void> send_parcel<Control>(BorrowedFd, const Json&, std::span<const std::byte>,
                                           std::span<const BorrowedFd>, uint64_t, bool);
template Result<void> send_parcel<Progress>(BorrowedFd, const Json&, std::span<const std::byte>,
                                            std::span<const BorrowedFd>, uint64_t, bool);
template Result<void> send_parcel<ControlResult>(BorrowedFd, const Json&,
                                                 std::span<const std::byte>,
                                                 std::span<const BorrowedFd>, uint64_t, bool);
template Result<Parcel> open_parcel<Control>(Control, std::vector<UniqueFd>);
template Result<Parcel> open_parcel<Progress>(Progress, std::vector<UniqueFd>);
template Result<Parcel> open_parcel<ControlResult>(ControlResult, std::vector<UniqueFd>);

Result<Handshake> shake_hands(BorrowedFd socket, Role role, std::string program, int timeout_ms) {
  Hello hello;
  hello.role = role;
  hello.program = std::move(program);
  HOLDFAST_TRY(send(socket, hello, 0));
  HOLDFAST_TRY_ASSIGN(const bool ready, wait_readable(socket, timeout_ms));
  if (!ready) return fail_errno(ETIMEDOUT, "agent", "wait for WELCOME");
  HOLDFAST_TRY_ASSIGN(Received answer, receive(socket, false));
  if (answer.kind != Received::Kind::kMessage)
    return fail("agent", "closed the connection instead of a WELCOME");
  if (const auto* error = std::get_if<ErrorMessage>(&answer.packet.message))
    return std::unexpected(error_of(*error));
  auto* welcome = std::get_if<Welcome>(&answer.packet.message);
  if (welcome == nullptr) return fail("agent", "answered HELLO with something else than WELCOME");
  if (welcome->version < hello.oldest || welcome->version > hello.newest)
    return refuse(Exit::kUnsupported, "HF-PROTOCOL-VERSION", "agent",
                  fmt::format("chose protocol {}, offered were {} to {}", welcome->version,
                              hello.oldest, hello.newest));
  return Handshake{std::move(*welcome), std::move(answer.descriptors)};
}

Result<ControlClient> ControlClient::connect(const std::string& path, int timeout_ms) {
  HOLDFAST_TRY_ASSIGN(UniqueFd socket, connect_to(path));
  HOLDFAST_TRY_ASSIGN(Handshake hands, shake_hands(socket, Role::kControl,
                                                   program_invocation_short_name, timeout_ms));
  return ControlClient(std::move(socket), std::move(hands.welcome));
}

Result<Parcel> ControlClient::call(std::string_view verb, Json arguments,
                                   const CallOptions& options) {
  if (!socket_.valid()) return fail("agent", "the connection is broken");
  if (arguments.is_null()) arguments = Json::object();
  if (!arguments.is_object()) return fail(verb, "arguments are not a JSON object");
  arguments["verb"] = verb;
  const uint64_t request = next_request_++;
  // Whatever goes wrong below leaves answers on their way: the connection is of no further use.
  UniqueFd socket = std::move(socket_);
  HOLDFAST_TRY(
      send_parcel<Control>(socket, arguments, options.tail, options.descriptors, request, true));
  for (;;) {
    HOLDFAST_TRY_ASSIGN(const bool ready, wait_readable(socket, options.timeout_ms));
    if (!ready)
      return fail_errno(ETIMEDOUT, "agent", fmt::format("wait for the answer to {}", verb));
    HOLDFAST_TRY_ASSIGN(Received answer, receive(socket, false));
    if (answer.kind == Received::Kind::kNothing) continue;
    if (answer.kind == Received::Kind::kClosed)
      return fail("agent", fmt::format("closed the connection during {}", verb),
                  "look at the agent's log: journalctl -u holdfastd");
    if (answer.packet.header.request != request) continue;
    if (const auto* error = std::get_if<ErrorMessage>(&answer.packet.message)) {
      socket_ = std::move(socket);
      return std::unexpected(error_of(*error));
    }
    if (auto* progress = std::get_if<Progress>(&answer.packet.message)) {
      auto parcel = open_parcel(std::move(*progress), std::move(answer.descriptors));
      if (parcel && options.progress) options.progress(parcel->body);
      continue;
    }
    auto* result = std::get_if<ControlResult>(&answer.packet.message);
    if (result == nullptr) return fail("agent", fmt::format("answered {} out of turn", verb));
    auto parcel = open_parcel(std::move(*result), std::move(answer.descriptors));
    if (parcel) socket_ = std::move(socket);
    return parcel;
  }
}

bool serves(const Json& health, const Uuid& arena) {
  const auto served = health.find("arena");
  return served != health.end() && field_text(*served, "uuid") == arena.text();
}

}  // namespace holdfast::protocol
