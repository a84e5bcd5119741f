#include "restore/kernel/sim/transport.h"

#include <sys/socket.h>

#include <cerrno>
#include <cstring>

namespace holdfast::sim {

Result<SocketPair> make_pair() {
  int ends[2];
  if (::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) != 0)
    return fail_errno(errno, "simulated kernel", "socketpair");
  return SocketPair{UniqueFd(ends[0]), UniqueFd(ends[1])};
}

Result<void> send_message(BorrowedFd socket, const void* data, size_t size, BorrowedFd descriptor) {
  iovec part{const_cast<void*>(data), size};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
  if (descriptor.valid()) {
    message.msg_control = control;
    message.msg_controllen = sizeof control;
    cmsghdr* header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof(int));
    const int fd = descriptor.get();
    std::memcpy(CMSG_DATA(header), &fd, sizeof fd);
  }
  ssize_t sent = 0;
  do sent = ::sendmsg(socket.get(), &message, MSG_NOSIGNAL);
  while (sent < 0 && errno == EINTR);
  if (sent < 0) return fail_errno(errno, "simulated kernel", "sendmsg");
  return {};
}

Result<void> receive_message(BorrowedFd socket, void* data, size_t size, UniqueFd& descriptor) {
  iovec part{data, size};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
  message.msg_control = control;
  message.msg_controllen = sizeof control;
  ssize_t got = 0;
  do got = ::recvmsg(socket.get(), &message, MSG_CMSG_CLOEXEC);
  while (got < 0 && errno == EINTR);
  if (got < 0) return fail_errno(errno, "simulated kernel", "recvmsg");
  for (cmsghdr* header = CMSG_FIRSTHDR(&message); header != nullptr;
       header = CMSG_NXTHDR(&message, header)) {
    if (header->cmsg_level != SOL_SOCKET || header->cmsg_type != SCM_RIGHTS) continue;
    int fd = -1;
    std::memcpy(&fd, CMSG_DATA(header), sizeof fd);
    descriptor.reset(fd);
  }
  if (got == 0) return fail_errno(ECONNRESET, "simulated kernel", "recvmsg");
  if (static_cast<size_t>(got) != size || (message.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) != 0)
    return fail_errno(EPROTO, "simulated kernel", "recvmsg");
  return {};
}

uint64_t socket_cookie(BorrowedFd socket) {
  uint64_t cookie = 0;
  socklen_t length = sizeof cookie;
  if (::getsockopt(socket.get(), SOL_SOCKET, SO_COOKIE, &cookie, &length) != 0) return 0;
  return cookie;
}

}  // namespace holdfast::sim
