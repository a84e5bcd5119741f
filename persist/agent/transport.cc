#include "persist/agent/transport.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <cstring>

#include "persist/base/io.h"

namespace holdfast::protocol {
namespace {

constexpr size_t kControlBytes = CMSG_SPACE(sizeof(int) * kMaxDescriptors);

std::vector<UniqueFd> descriptors_of(msghdr& header) {
  std::vector<UniqueFd> out;
  for (cmsghdr* c = CMSG_FIRSTHDR(&header); c != nullptr; c = CMSG_NXTHDR(&header, c)) {
    if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS) continue;
    const size_t count = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (size_t i = 0; i < count; ++i) {
      int fd = -1;
      std::memcpy(&fd, CMSG_DATA(c) + i * sizeof fd, sizeof fd);
      out.emplace_back(fd);
    }
  }
  return out;
}

Result<sockaddr_un> address_of(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.empty() || path.size() >= sizeof address.sun_path)
    return fail(path, fmt::format("a socket path has 1 to {} bytes", sizeof address.sun_path - 1));
  std::memcpy(address.sun_path, path.data(), path.size());
  return address;
}

}  // namespace

Result<Received> receive(BorrowedFd socket, bool wait) {
  thread_local std::array<std::byte, kMaxMessageBytes + 1> buffer;
  alignas(cmsghdr) std::array<char, kControlBytes> control;
  iovec vector{buffer.data(), buffer.size()};
  msghdr header{};
  header.msg_iov = &vector;
  header.msg_iovlen = 1;
  header.msg_control = control.data();
  header.msg_controllen = control.size();
  ssize_t n = 0;
  do {
    n = ::recvmsg(socket.get(), &header, MSG_CMSG_CLOEXEC | (wait ? 0 : MSG_DONTWAIT));
  } while (n < 0 && errno == EINTR);
  Received out;
  if (n < 0) {
    if (errno == EAGAIN || errno == EWOULDBLOCK) return out;
    if (errno == ECONNRESET) {
      out.kind = Received::Kind::kClosed;
      return out;
    }
    return fail_errno(errno, "socket", "receive");
  }
  out.descriptors = descriptors_of(header);
  if (n == 0) {
    out.kind = Received::Kind::kClosed;
    return out;
  }
  if ((header.msg_flags & MSG_TRUNC) != 0)
    return refuse(Exit::kFailed, "HF-PROTOCOL", "message",
                  fmt::format("more than {} bytes", kMaxMessageBytes));
  if ((header.msg_flags & MSG_CTRUNC) != 0)
    return refuse(Exit::kFailed, "HF-PROTOCOL", "message",
                  fmt::format("brings more than {} descriptors, or more than may be open here",
                              kMaxDescriptors));
  HOLDFAST_TRY_ASSIGN(out.packet, decode({buffer.data(), static_cast<size_t>(n)}));
  if (out.packet.header.descriptors != out.descriptors.size())
    return refuse(Exit::kFailed, "HF-PROTOCOL", "message",
                  fmt::format("says {} descriptors, brings {}", out.packet.header.descriptors,
                              out.descriptors.size()));
  out.kind = Received::Kind::kMessage;
  return out;
}

Result<void> send(BorrowedFd socket, const Message& message, uint64_t request,
                  std::span<const BorrowedFd> descriptors, bool wait) {
  if (descriptors.size() > kMaxDescriptors)
    return fail("message", fmt::format("{} descriptors; at most {} ride along", descriptors.size(),
                                       kMaxDescriptors));
  std::vector<std::byte> bytes = encode(message, request, descriptors.size());
  if (bytes.empty())
    return fail("message", fmt::format("does not fit in {} bytes", kMaxMessageBytes));
  alignas(cmsghdr) std::array<char, kControlBytes> control{};
  iovec vector{bytes.data(), bytes.size()};
  msghdr header{};
  header.msg_iov = &vector;
  header.msg_iovlen = 1;
  if (!descriptors.empty()) {
    const size_t payload = descriptors.size() * sizeof(int);
    header.msg_control = control.data();
    header.msg_controllen = CMSG_SPACE(payload);
    cmsghdr* c = CMSG_FIRSTHDR(&header);
    c->cmsg_level = SOL_SOCKET;
    c->cmsg_type = SCM_RIGHTS;
    c->cmsg_len = CMSG_LEN(payload);
    for (size_t i = 0; i < descriptors.size(); ++i) {
      const int fd = descriptors[i].get();
      std::memcpy(CMSG_DATA(c) + i * sizeof fd, &fd, sizeof fd);
    }
  }
  ssize_t n = 0;
  do {
    n = ::sendmsg(socket.get(), &header, MSG_NOSIGNAL | (wait ? 0 : MSG_DONTWAIT));
  } while (n < 0 && errno == EINTR);
  if (n < 0) return fail_errno(errno, "socket", "send");
  return {};
}

Result<bool> wait_readable(BorrowedFd socket, int timeout_ms) {
  using Clock = std::chrono::steady_clock;
  const auto until = Clock::now() + std::chrono::milliseconds(timeout_ms);
  for (int left = timeout_ms;;) {
    pollfd entry{socket.get(), POLLIN, 0};
    const int n = ::poll(&entry, 1, left);
    if (n >= 0) return n > 0;
    if (errno != EINTR) return fail_errno(errno, "socket", "poll");
    // A signal of the program's is no answer, and takes no time off.
    if (timeout_ms >= 0)
      left = static_cast<int>(std::max<int64_t>(
          0, std::chrono::ceil<std::chrono::milliseconds>(until - Clock::now()).count()));
  }
}

Result<UniqueFd> connect_to(const std::string& path) {
  HOLDFAST_TRY_ASSIGN(const sockaddr_un address, address_of(path));
  UniqueFd socket(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
  if (!socket.valid()) return fail_errno(errno, path, "socket");
  if (::connect(socket.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0)
    return socket;
  const int err = errno;
  auto error = fail_errno(err, path, "connect").error();
  if (err == ENOENT || err == ECONNREFUSED) {
    error.cause = "no agent listens here";
    error.remedy = "systemctl start holdfastd, or name its socket";
  }
  return std::unexpected(std::move(error));
}

Result<UniqueFd> listen_at(const std::string& path, unsigned mode) {
  HOLDFAST_TRY_ASSIGN(const sockaddr_un address, address_of(path));
  if (connect_to(path))
    return refuse(Exit::kRefused, "HF-AGENT-RUNNING", path, "another agent listens here",
                  "stop it first, or name another socket");
  struct stat info{};
  if (::lstat(path.c_str(), &info) == 0 && !S_ISSOCK(info.st_mode))
    return fail(path, "exists and is not a socket");
  ::unlink(path.c_str());
  UniqueFd socket(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!socket.valid()) return fail_errno(errno, path, "socket");
  if (::bind(socket.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0)
    return fail_errno(errno, path, "bind");
  if (::chmod(path.c_str(), mode) != 0) return fail_errno(errno, path, "chmod");
  if (::listen(socket.get(), 64) != 0) return fail_errno(errno, path, "listen");
  return socket;
}

Result<UniqueFd> sealed_memfd(const char* name, std::span<const std::byte> bytes) {
  UniqueFd fd(::memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING));
  if (!fd.valid()) return fail_errno(errno, name, "memfd_create");
  HOLDFAST_TRY(pwrite_all(fd, bytes, 0));
  if (::fcntl(fd.get(), F_ADD_SEALS, F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE) != 0)
    return fail_errno(errno, name, "seal");
  return fd;
}

Result<std::vector<std::byte>> read_whole(BorrowedFd fd, uint64_t limit) {
  struct stat info{};
  if (::fstat(fd.get(), &info) != 0) return fail_errno(errno, "descriptor", "fstat");
  if (!S_ISREG(info.st_mode)) return fail("descriptor", "is not a memfd or file");
  const auto size = static_cast<uint64_t>(info.st_size);
  if (size > limit) return fail("descriptor", fmt::format("{} bytes; at most {}", size, limit));
  std::vector<std::byte> out(size);
  HOLDFAST_TRY(pread_all(fd, out, 0));
  return out;
}

}  // namespace holdfast::protocol
