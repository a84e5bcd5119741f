#include "restore/kernel/vdpa_netlink.h"

#include <fmt/format.h>
#include <linux/genetlink.h>
#include <linux/netlink.h>
#include <linux/vdpa.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <functional>
#include <vector>

#include "persist/base/checked.h"
#include "persist/base/unique_fd.h"

namespace holdfast::kernel {
namespace {

constexpr std::string_view kObject = "netlink family vdpa";
constexpr size_t kAnswerLimit = 32768;

std::unexpected<Error> senseless(std::string_view cause) {
  return refuse(Exit::kVerification, "HF-KERNEL-ANSWER", kObject, cause);
}

template <typename T>
T taken(std::span<const std::byte> bytes) {
  T out = {};
  std::memcpy(&out, bytes.data(), std::min(sizeof out, bytes.size()));
  return out;
}

using EachAttribute = std::function<void(uint16_t type, std::span<const std::byte> value)>;

Result<void> for_each_attribute(std::span<const std::byte> answer, const EachAttribute& each) {
  if (answer.size() < NLMSG_HDRLEN) return senseless("an answer is cut off");
  const auto header = taken<nlmsghdr>(answer);
  if (header.nlmsg_len < NLMSG_HDRLEN || header.nlmsg_len > answer.size())
    return senseless(fmt::format("an answer of {} bytes says {}", answer.size(), header.nlmsg_len));
  auto rest = answer.subspan(NLMSG_HDRLEN, header.nlmsg_len - NLMSG_HDRLEN);
  if (header.nlmsg_type == NLMSG_ERROR) {
    if (rest.size() < sizeof(nlmsgerr)) return senseless("an error is cut off");
    const int error = taken<nlmsgerr>(rest).error;
    if (error == 0) return {};
    return fail_errno(-error, kObject, "ask");
  }
  if (rest.size() < GENL_HDRLEN) return senseless("an answer is cut off");
  rest = rest.subspan(GENL_HDRLEN);
  while (rest.size() >= NLA_HDRLEN) {
    const auto attribute = taken<nlattr>(rest);
    if (attribute.nla_len < NLA_HDRLEN || attribute.nla_len > rest.size())
      return senseless(
          fmt::format("an attribute of {} bytes, {} are left", attribute.nla_len, rest.size()));
    each(attribute.nla_type & NLA_TYPE_MASK,
         rest.subspan(NLA_HDRLEN, attribute.nla_len - NLA_HDRLEN));
    rest = rest.subspan(std::min<size_t>(NLA_ALIGN(attribute.nla_len), rest.size()));
  }
  return {};
}

/// One question with one text attribute, and its one answer.
Result<std::vector<std::byte>> ask(BorrowedFd socket, uint16_t family, uint8_t command,
                                   uint16_t attribute, const std::string& text) {
  std::vector<std::byte> out(NLMSG_HDRLEN + GENL_HDRLEN + NLA_HDRLEN + NLA_ALIGN(text.size() + 1));
  nlmsghdr header = {};
  header.nlmsg_len = static_cast<uint32_t>(out.size());
  header.nlmsg_type = family;
  header.nlmsg_flags = NLM_F_REQUEST;
  genlmsghdr generic = {};
  generic.cmd = command;
  generic.version = VDPA_GENL_VERSION;
  nlattr name = {};
  name.nla_len = static_cast<uint16_t>(NLA_HDRLEN + text.size() + 1);
  name.nla_type = attribute;
  std::memcpy(out.data(), &header, sizeof header);
  std::memcpy(out.data() + NLMSG_HDRLEN, &generic, sizeof generic);
  std::memcpy(out.data() + NLMSG_HDRLEN + GENL_HDRLEN, &name, sizeof name);
  std::memcpy(out.data() + NLMSG_HDRLEN + GENL_HDRLEN + NLA_HDRLEN, text.data(), text.size());
  if (::send(socket.get(), out.data(), out.size(), 0) < 0)
    return fail_errno(errno, kObject, "send");
  std::vector<std::byte> answer(kAnswerLimit);
  const ssize_t length = ::recv(socket.get(), answer.data(), answer.size(), 0);
  if (length < 0) return fail_errno(errno, kObject, "receive");
  answer.resize(static_cast<size_t>(length));
  return answer;
}

}  // namespace

Result<void> add_vdpa_answer(std::span<const std::byte> answer, VdpaFacts& facts) {
  bool sized = true;
  const auto number = [&](std::span<const std::byte> value, auto& into) {
    sized = sized && value.size() == sizeof into;
    into = taken<std::remove_reference_t<decltype(into)>>(value);
  };
  HOLDFAST_TRY(for_each_attribute(answer, [&](uint16_t type, std::span<const std::byte> value) {
    if (type == VDPA_ATTR_DEV_ID) number(value, facts.device_id);
    if (type == VDPA_ATTR_DEV_VENDOR_ID) number(value, facts.vendor);
    if (type == VDPA_ATTR_DEV_MAX_VQS) number(value, facts.rings);
    // The one since 6.2, the other before.
    if (type == VDPA_ATTR_DEV_FEATURES || type == VDPA_ATTR_VDPA_DEV_SUPPORTED_FEATURES)
      number(value, facts.features);
  }));
  if (!sized) return senseless("a number of another size");
  return {};
}

Result<VdpaFacts> ask_vdpa(const std::string& name) {
  UniqueFd socket(::socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_GENERIC));
  if (!socket.valid()) return fail_errno(errno, kObject, "socket");
  timeval limit = {.tv_sec = 2, .tv_usec = 0};
  (void)::setsockopt(socket.get(), SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
  HOLDFAST_TRY_ASSIGN(const auto who, ask(socket, GENL_ID_CTRL, CTRL_CMD_GETFAMILY,
                                          CTRL_ATTR_FAMILY_NAME, VDPA_GENL_NAME));
  uint16_t family = 0;
  HOLDFAST_TRY(for_each_attribute(who, [&](uint16_t type, std::span<const std::byte> value) {
    if (type == CTRL_ATTR_FAMILY_ID) family = taken<uint16_t>(value);
  }));
  if (family == 0) return senseless("it has no number");
  VdpaFacts facts;
  HOLDFAST_TRY_ASSIGN(const auto device,
                      ask(socket, family, VDPA_CMD_DEV_GET, VDPA_ATTR_DEV_NAME, name));
  HOLDFAST_TRY(add_vdpa_answer(device, facts));
  // Kinds of devices whose configuration the kernel does not know: EOPNOTSUPP, no features.
  HOLDFAST_TRY_ASSIGN(const auto configuration,
                      ask(socket, family, VDPA_CMD_DEV_CONFIG_GET, VDPA_ATTR_DEV_NAME, name));
  auto added = add_vdpa_answer(configuration, facts);
  if (!added && added.error().sys_errno != EOPNOTSUPP && added.error().sys_errno != EAGAIN)
    return std::unexpected(std::move(added).error());
  return facts;
}

}  // namespace holdfast::kernel
