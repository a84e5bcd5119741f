// The new binary of a program on the simulated kernel, as `holdfast update` starts it:
//
//   update_successor KERNEL HOW      HOW: well, or where and how it goes wrong

#include <sys/resource.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

#include "persist/base/mapped_range.h"
#include "persist/client/holdfast.h"
#include "restore/kernel/sim/sim_port.h"

namespace {

using namespace holdfast;

std::string how;

int number_of(const Result<void>& outcome) {
  return outcome ? 0 : -outcome.error().sys_errno;
}

int resume(void* context, int fd, uint64_t iova, uint64_t size, void* address) {
  if (how == "dies-half-way") ::raise(SIGKILL);
  if (how == "fails-half-way") return -ENOMEM;
  return number_of(
      static_cast<sim::SimPort*>(context)->resume_vaddr(BorrowedFd(fd), iova, size, address));
}

void use_sim(hf_connection* connection, sim::SimPort& port) {
  hf_kernel_ops ops{};
  ops.size = sizeof ops;
  ops.context = &port;
  ops.map = [](void* context, int fd, const hf_kernel_map* map) {
    kernel::MapRequest request;
    request.iova = map->iova;
    request.size = map->size;
    request.vaddr = map->vaddr;
    request.access = map->access;
    request.memory = BorrowedFd(map->memory_fd);
    request.memory_offset = map->memory_offset;
    return number_of(static_cast<sim::SimPort*>(context)->map(BorrowedFd(fd), request));
  };
  ops.unmap = [](void* context, int fd, uint64_t iova, uint64_t size, uint64_t* bytes) {
    auto done = static_cast<sim::SimPort*>(context)->unmap(BorrowedFd(fd), iova, size);
    if (!done) return -done.error().sys_errno;
    if (bytes != nullptr) *bytes = *done;
    return 0;
  };
  ops.unmap_all = [](void*, int, uint64_t*) { return -ENOTSUP; };
  ops.suspend_all = [](void* context, int fd) {
    return number_of(static_cast<sim::SimPort*>(context)->suspend_vaddr(BorrowedFd(fd)));
  };
  ops.resume = resume;
  hf_set_kernel_ops(connection, &ops);
}

int failed(const char* what, const hf_error& error) {
  std::fprintf(stderr, "update_successor: %s: %s: %s: %s\n", what, error.code, error.object,
               error.cause);
  return 3;
}

}  // namespace

int main(int argc, char** argv) {
  const char* name = std::getenv("HOLDFAST_UPDATE");
  if (argc != 3 || name == nullptr) return 2;
  how = argv[2];
  if (how == "ends-at-once") return 7;
  if (how == "stands-still") ::pause();
  auto port = sim::SimPort::connect(argv[1]);
  if (!port) return 4;
  hf_error error{};
  hf_connection* connection = nullptr;
  hf_connect_options options{};
  options.size = sizeof options;
  if (hf_connect(&options, &connection, &error) != 0) return failed("connect", error);
  use_sim(connection, **port);
  hf_taken* taken = nullptr;
  if (hf_take(connection, name, HF_TAKE_FROM_OWNER, &taken, &error) != 0)
    return failed("take", error);
  if (how == "dies-with-it") ::raise(SIGKILL);
  if (how == "gives-it-back") {
    hf_taken_free(taken);
    hf_close(connection);
    return 5;
  }
  if (how == "stands-still-with-it") ::pause();
  std::vector<MappedRange> views;
  for (size_t i = 0; i < taken->memory_count; ++i) {
    auto view = MappedRange::map(
        BorrowedFd(taken->memory[i].fd), 0, taken->memory[i].length,
        how == "has-other-memory" ? MappedRange::Mode::kPrivate : MappedRange::Mode::kReadWrite);
    if (!view) return 4;
    hf_set_address(taken->memory[i].memory, view->data(), &error);
    views.push_back(std::move(*view));
  }
  if (hf_taken_confirm(taken, &error) != 0) return failed("confirm", error);
  // It works: a page more, and one less.
  hf_mapping more{};
  more.iova = 0x200000;
  more.size = 4096;
  more.memory = taken->memory[0].memory;
  more.access = HF_READ | HF_WRITE;
  if (hf_map(taken->container, &more, views[0].data(), &error) != 0) return failed("map", error);
  if (hf_unmap(taken->container, more.iova, more.size, nullptr, &error) != 0)
    return failed("unmap", error);
  for (;;) ::pause();
}
