#pragma once

// C++17 wrapper of holdfast.h: owners instead of pointers, expected instead of out parameters.
// Header only; adds nothing to the library's ABI. Thread safety as in holdfast.h. A Connection
// outlives the Containers, Memories and Taken made from it.

#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "holdfast.h"

namespace holdfast::client {

/// Why a call failed; errno_value is negative, as the C call returned it.
struct Failure {
  int errno_value = 0;
  hf_error error{};
  [[nodiscard]] std::string message() const {
    std::string out = error.object;
    if (!out.empty()) out += ": ";
    out += error.cause[0] != '\0' ? error.cause : std::strerror(-errno_value);
    if (error.code[0] != '\0') out += " [" + std::string(error.code) + "]";
    if (error.remedy[0] != '\0') out += "; " + std::string(error.remedy);
    return out;
  }
};

/// A value or a Failure.
template <typename T>
class [[nodiscard]] Expected {
 public:
  Expected(T value) : content_(std::move(value)) {}            // NOLINT: wraps on purpose
  Expected(Failure failure) : content_(std::move(failure)) {}  // NOLINT
  [[nodiscard]] explicit operator bool() const { return content_.index() == 0; }
  [[nodiscard]] T& value() & { return std::get<0>(content_); }
  [[nodiscard]] const T& value() const& { return std::get<0>(content_); }
  [[nodiscard]] T&& value() && { return std::get<0>(std::move(content_)); }
  T& operator*() & { return value(); }
  const T& operator*() const& { return value(); }
  T&& operator*() && { return std::move(*this).value(); }
  T* operator->() { return &value(); }
  const T* operator->() const { return &value(); }
  [[nodiscard]] const Failure& failure() const { return std::get<1>(content_); }

 private:
  std::variant<T, Failure> content_;
};

struct Done {};
using Status = Expected<Done>;

namespace detail {
inline Status status(int outcome, const hf_error& error) {
  if (outcome < 0) return Failure{outcome, error};
  return Done{};
}
}  // namespace detail

/// In place of VFIO_SET_IOMMU: the container's page tables outlive the kernel. See hf_opt_in().
inline Status opt_in(int container_fd) {
  hf_error error{};
  return detail::status(hf_opt_in(container_fd, &error), error);
}

/// Memory that mappings point into. Owned by its Connection; a plain handle.
class Memory {
 public:
  Memory() = default;
  explicit Memory(hf_memory* handle) : handle_(handle) {}
  [[nodiscard]] hf_memory* get() const { return handle_; }
  /// A mapping of [offset, offset+size) of this memory at `iova`; bytes.
  [[nodiscard]] hf_mapping at(uint64_t iova, uint64_t size, uint64_t offset,
                              uint32_t access = HF_READ | HF_WRITE) const {
    hf_mapping out{};
    out.iova = iova;
    out.size = size;
    out.offset = offset;
    out.memory = handle_;
    out.access = access;
    return out;
  }
  /// Where this process has it, the whole of it mapped shared.
  Status set_address(void* address) {
    hf_error error{};
    return detail::status(hf_set_address(handle_, address, &error), error);
  }
  Status unregister() {
    hf_error error{};
    return detail::status(hf_unregister_memory(std::exchange(handle_, nullptr), &error), error);
  }

 private:
  hf_memory* handle_ = nullptr;
};

/// A registered container. Owned by its Connection; a plain handle.
class Container {
 public:
  Container() = default;
  explicit Container(hf_container* handle) : handle_(handle) {}
  [[nodiscard]] hf_container* get() const { return handle_; }

  Status add_device(const std::string& bdf, int group_fd, int device_fd, uint32_t flags = 0) {
    hf_error error{};
    return detail::status(
        hf_register_device(handle_, bdf.c_str(), group_fd, device_fd, flags, &error), error);
  }
  Status map(const hf_mapping& mapping, void* vaddr) {
    hf_error error{};
    return detail::status(hf_map(handle_, &mapping, vaddr, &error), error);
  }
  Expected<uint64_t> unmap(uint64_t iova, uint64_t size) {
    hf_error error{};
    uint64_t bytes = 0;
    const int outcome = hf_unmap(handle_, iova, size, &bytes, &error);
    if (outcome < 0) return Failure{outcome, error};
    return bytes;
  }
  Expected<uint64_t> unmap_all() {
    hf_error error{};
    uint64_t bytes = 0;
    const int outcome = hf_unmap_all(handle_, &bytes, &error);
    if (outcome < 0) return Failure{outcome, error};
    return bytes;
  }
  Status resync(const std::vector<hf_mapping>& mappings) {
    hf_error error{};
    return detail::status(hf_resync(handle_, mappings.data(), mappings.size(), &error), error);
  }
  Status hold(uint32_t seconds) {
    hf_error error{};
    return detail::status(hf_hold(handle_, seconds, &error), error);
  }
  Status unregister() {
    hf_error error{};
    return detail::status(hf_unregister_container(std::exchange(handle_, nullptr), &error), error);
  }

  /// hf_begin..hf_end as a scope: make the kernel's call, then record() it.
  class Change {
   public:
    explicit Change(hf_container* handle) : handle_(handle), status_(hf_begin(handle)) {}
    Change(const Change&) = delete;
    Change& operator=(const Change&) = delete;
    ~Change() {
      if (status_ == 0) hf_end(handle_);
    }
    /// False: frozen; do not make the call.
    [[nodiscard]] bool allowed() const { return status_ == 0; }
    void mapped(const hf_mapping& mapping) { hf_record_map(handle_, &mapping); }
    void unmapped(uint64_t iova, uint64_t size) { hf_record_unmap(handle_, iova, size); }

   private:
    hf_container* handle_;
    int status_;
  };
  [[nodiscard]] Change change() { return Change(handle_); }

 private:
  hf_container* handle_ = nullptr;
};

/// What was taken up again; closes the descriptors that release_…() did not give away.
class Taken {
 public:
  explicit Taken(hf_taken* handle) : handle_(handle) {}
  [[nodiscard]] const hf_taken& get() const { return *handle_; }
  [[nodiscard]] Container container() const { return Container(handle_->container); }
  [[nodiscard]] int release_container() { return std::exchange(handle_->container_fd, -1); }
  [[nodiscard]] int release_group(size_t i) {
    return std::exchange(handle_->devices[i].group_fd, -1);
  }
  [[nodiscard]] int release_device(size_t i) {
    return std::exchange(handle_->devices[i].device_fd, -1);
  }
  [[nodiscard]] int release_memory(size_t i) { return std::exchange(handle_->memory[i].fd, -1); }
  Status confirm() {
    hf_error error{};
    return detail::status(hf_taken_confirm(handle_.get(), &error), error);
  }

 private:
  struct Free {
    void operator()(hf_taken* handle) const { hf_taken_free(handle); }
  };
  std::unique_ptr<hf_taken, Free> handle_;
};

/// What the agent may ask of the program; called by dispatch(), on its thread.
struct Callbacks {
  std::function<void(uint64_t freeze, uint32_t timeout_ms)> quiesce;
  std::function<void(uint64_t generation)> frozen;
  std::function<void(const std::string& why)> thawed;
  std::function<void(const std::string& why)> lost;
  /// Answered with hand_over() or keep(); without it the answer is "no".
  std::function<void(Container container, uint64_t handover, const std::string& successor,
                     uint32_t timeout_ms)>
      hand_over;
};

class Connection {
 public:
  struct Options {
    std::string socket;  ///< empty: $HOLDFAST_SOCKET or the default
    std::string program;
    bool optional = false;  ///< HF_CONNECT_OPTIONAL
    uint32_t timeout_ms = 0;
    uint32_t full_wait_ms = 0;
    uint32_t handover_ms = 0;
    Callbacks callbacks;
  };
  static Expected<Connection> connect(Options options) {
    auto callbacks = std::make_unique<Callbacks>(std::move(options.callbacks));
    hf_callbacks table{};
    table.size = sizeof table;
    table.user = callbacks.get();
    if (callbacks->quiesce)
      table.quiesce = [](void* user, hf_connection*, uint64_t freeze, uint32_t timeout_ms) {
        static_cast<Callbacks*>(user)->quiesce(freeze, timeout_ms);
      };
    if (callbacks->frozen)
      table.frozen = [](void* user, hf_connection*, uint64_t generation) {
        static_cast<Callbacks*>(user)->frozen(generation);
      };
    if (callbacks->thawed)
      table.thawed = [](void* user, hf_connection*, const char* why) {
        static_cast<Callbacks*>(user)->thawed(why);
      };
    if (callbacks->lost)
      table.lost = [](void* user, hf_connection*, const char* why) {
        static_cast<Callbacks*>(user)->lost(why);
      };
    if (callbacks->hand_over)
      table.hand_over = [](void* user, hf_connection*, hf_container* container, uint64_t handover,
                           const char* successor, uint32_t timeout_ms) {
        static_cast<Callbacks*>(user)->hand_over(Container(container), handover, successor,
                                                 timeout_ms);
      };
    hf_connect_options given{};
    given.size = sizeof given;
    given.socket = options.socket.empty() ? nullptr : options.socket.c_str();
    given.program = options.program.empty() ? nullptr : options.program.c_str();
    given.flags = options.optional ? HF_CONNECT_OPTIONAL : 0;
    given.timeout_ms = options.timeout_ms;
    given.full_wait_ms = options.full_wait_ms;
    given.handover_ms = options.handover_ms;
    given.callbacks = &table;
    hf_connection* handle = nullptr;
    hf_error error{};
    const int outcome = hf_connect(&given, &handle, &error);
    if (outcome < 0) return Failure{outcome, error};
    return Connection(handle, std::move(callbacks));
  }

  [[nodiscard]] hf_connection* get() const { return handle_.get(); }
  [[nodiscard]] bool connected() const { return hf_is_connected(handle_.get()) == 1; }
  Status reconnect() {
    hf_error error{};
    return detail::status(hf_reconnect(handle_.get(), &error), error);
  }
  Expected<Container> add_container(const std::string& name, uint32_t kind, int fd,
                                    uint32_t hold_seconds = 0, uint32_t ioas_id = 0) {
    hf_container_options options{};
    options.size = sizeof options;
    options.name = name.c_str();
    options.kind = kind;
    options.fd = fd;
    options.hold_seconds = hold_seconds;
    options.ioas_id = ioas_id;
    hf_container* out = nullptr;
    hf_error error{};
    const int outcome = hf_register_container(handle_.get(), &options, &out, &error);
    if (outcome < 0) return Failure{outcome, error};
    return Container(out);
  }
  Expected<Memory> add_memory(const std::string& name, int fd, const std::string& path = {}) {
    hf_memory* out = nullptr;
    hf_error error{};
    const int outcome = hf_register_memory(handle_.get(), name.c_str(), fd,
                                           path.empty() ? nullptr : path.c_str(), &out, &error);
    if (outcome < 0) return Failure{outcome, error};
    return Memory(out);
  }
  Status sync() {
    hf_error error{};
    return detail::status(hf_sync(handle_.get(), &error), error);
  }
  [[nodiscard]] int event_fd() const { return hf_event_fd(handle_.get()); }
  /// The number of callbacks that were called.
  Expected<int> dispatch() {
    hf_error error{};
    const int outcome = hf_dispatch(handle_.get(), &error);
    if (outcome < 0) return Failure{outcome, error};
    return outcome;
  }
  Status quiesced(uint64_t freeze, bool accepted = true, const std::string& why = {}) {
    return detail::status(
        hf_quiesced(handle_.get(), freeze, accepted ? 1 : 0, why.empty() ? nullptr : why.c_str()),
        {});
  }
  /// Blocks until the successor has the container, which is freed then; see hf_hand_over().
  Status hand_over(uint64_t handover) {
    hf_error error{};
    return detail::status(hf_hand_over(handle_.get(), handover, &error), error);
  }
  Status keep(uint64_t handover, const std::string& why) {
    hf_error error{};
    return detail::status(hf_keep(handle_.get(), handover, why.c_str(), &error), error);
  }
  Expected<Taken> take(const std::string& name, uint32_t flags = 0) {
    hf_taken* out = nullptr;
    hf_error error{};
    const int outcome = hf_take(handle_.get(), name.c_str(), flags, &out, &error);
    if (outcome < 0) return Failure{outcome, error};
    return Taken(out);
  }
  Status set_kernel_ops(const hf_kernel_ops* ops) {
    return detail::status(hf_set_kernel_ops(handle_.get(), ops), {});
  }

 private:
  struct Close {
    void operator()(hf_connection* handle) const { hf_close(handle); }
  };
  Connection(hf_connection* handle, std::unique_ptr<Callbacks> callbacks)
      : callbacks_(std::move(callbacks)), handle_(handle) {}
  std::unique_ptr<Callbacks> callbacks_;  // outlives handle_, which calls it
  std::unique_ptr<hf_connection, Close> handle_;
};

}  // namespace holdfast::client
