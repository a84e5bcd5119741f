// files/ through the control socket of the agent that holds the arena.

#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "fs/files_store.h"
#include "persist/agent/control_client.h"
#include "persist/agent/transport.h"
#include "persist/base/io.h"

namespace holdfast::fs {
namespace {

constexpr int kConnectTimeoutMs = 1000;
constexpr uint64_t kMaxTransfer = 1 << 20;  ///< bytes of one call

std::unexpected<Error> odd_answer(std::string_view verb) {
  return fail_errno(EPROTO, "agent", fmt::format("understand its answer to {}", verb));
}

template <typename Number>
bool take(const Json& json, const char* key, Number& out) {
  const auto it = json.find(key);
  if (it == json.end() || !it->is_number_unsigned()) return false;
  out = it->get<Number>();
  return true;
}

Result<arena::FileInfo> file_of(const Json& json, std::string_view verb) {
  arena::FileInfo out;
  if (!json.is_object()) return odd_answer(verb);
  const auto path = json.find("path");
  const auto directory = json.find("directory");
  if (path == json.end() || !path->is_string() || directory == json.end() ||
      !directory->is_boolean())
    return odd_answer(verb);
  out.path = path->get<std::string>();
  out.directory = directory->get<bool>();
  if (!take(json, "size", out.size) || !take(json, "mode", out.mode) ||
      !take(json, "uid", out.uid) || !take(json, "gid", out.gid) ||
      !take(json, "mtime_ns", out.mtime_ns) || !take(json, "id", out.id))
    return odd_answer(verb);
  return out;
}

class RemoteStore final : public FilesStore {
 public:
  explicit RemoteStore(protocol::ControlClient client) : client_(std::move(client)) {}

  Result<arena::FileInfo> stat(const std::string& path) override {
    HOLDFAST_TRY_ASSIGN(const auto answer, call("files_stat", {{"path", path}}));
    const auto file = answer.body.find("file");
    if (file == answer.body.end()) return odd_answer("files_stat");
    return file_of(*file, "files_stat");
  }

  Result<std::vector<arena::FileInfo>> list(const std::string& directory) override {
    HOLDFAST_TRY_ASSIGN(const auto answer, call("files_list", {{"path", directory}}));
    const auto files = answer.body.find("files");
    if (files == answer.body.end() || !files->is_array()) return odd_answer("files_list");
    std::vector<arena::FileInfo> out;
    for (const auto& file : *files) {
      HOLDFAST_TRY_ASSIGN(auto info, file_of(file, "files_list"));
      out.push_back(std::move(info));
    }
    return out;
  }

  Result<uint64_t> read(const std::string& path, uint64_t offset,
                        std::span<std::byte> into) override {
    uint64_t done = 0;
    while (done < into.size()) {
      const uint64_t wanted = std::min<uint64_t>(into.size() - done, kMaxTransfer);
      HOLDFAST_TRY_ASSIGN(
          const auto answer,
          call("files_read", {{"path", path}, {"offset", offset + done}, {"length", wanted}}));
      uint64_t length = 0;
      if (!take(answer.body, "length", length) || length > wanted) return odd_answer("files_read");
      const auto part = into.subspan(done, length);
      if (!answer.descriptors.empty()) {
        HOLDFAST_TRY(pread_all(answer.descriptors.front(), part, 0));
      } else {
        if (answer.tail.size() != length) return odd_answer("files_read");
        if (length > 0) std::memcpy(part.data(), answer.tail.data(), length);
      }
      done += length;
      if (length < wanted) break;
    }
    return done;
  }

  Result<FilesSpace> space() override {
    // The agent knows of what is not durable yet, an unlinked file for one.
    HOLDFAST_TRY_ASSIGN(const auto answer, call("files_space", Json::object()));
    FilesSpace out;
    if (!take(answer.body, "quota", out.quota) || !take(answer.body, "used", out.used) ||
        !take(answer.body, "free", out.free))
      return odd_answer("files_space");
    return out;
  }

  Result<void> create(const std::string& path, uint32_t mode, uint32_t uid, uint32_t gid) override {
    return act("files_create", {{"path", path}, {"mode", mode}, {"uid", uid}, {"gid", gid}});
  }
  Result<void> mkdir(const std::string& path, uint32_t mode, uint32_t uid, uint32_t gid) override {
    return act("files_mkdir", {{"path", path}, {"mode", mode}, {"uid", uid}, {"gid", gid}});
  }

  Result<void> write(const std::string& path, uint64_t offset,
                     std::span<const std::byte> bytes) override {
    const Json arguments{{"path", path}, {"offset", offset}};
    protocol::ControlClient::CallOptions options;
    if (bytes.size() <= protocol::kMaxTail) {
      options.tail = bytes;
      HOLDFAST_TRY(client_.call("files_write", arguments, options));
      return {};
    }
    HOLDFAST_TRY_ASSIGN(const UniqueFd memfd, protocol::sealed_memfd("holdfast-file", bytes));
    const BorrowedFd lent[] = {memfd};
    options.descriptors = lent;
    HOLDFAST_TRY(client_.call("files_write", arguments, options));
    return {};
  }

  Result<void> truncate(const std::string& path, uint64_t size) override {
    return act("files_truncate", {{"path", path}, {"size", size}});
  }
  Result<void> rename(const std::string& from, const std::string& to, bool may_replace) override {
    return act("files_rename", {{"from", from}, {"to", to}, {"may_replace", may_replace}});
  }
  Result<void> unlink(const std::string& path) override {
    return act("files_unlink", {{"path", path}});
  }
  Result<void> rmdir(const std::string& path) override {
    return act("files_rmdir", {{"path", path}});
  }
  Result<void> change(const std::string& path, const FileChanges& changes) override {
    Json arguments{{"path", path}};
    if (changes.mode) arguments["mode"] = *changes.mode;
    if (changes.uid) arguments["uid"] = *changes.uid;
    if (changes.gid) arguments["gid"] = *changes.gid;
    if (changes.mtime_ns) arguments["mtime_ns"] = *changes.mtime_ns;
    return act("files_attributes", std::move(arguments));
  }
  Result<void> sync() override { return act("files_sync", Json::object()); }
  bool alive() const override { return client_.socket().valid(); }

 private:
  Result<protocol::Parcel> call(std::string_view verb, Json arguments) {
    return client_.call(verb, std::move(arguments));
  }
  Result<void> act(std::string_view verb, Json arguments) {
    HOLDFAST_TRY(client_.call(verb, std::move(arguments)));
    return {};
  }
  protocol::ControlClient client_;
};

}  // namespace

Result<std::unique_ptr<FilesStore>> open_remote_store(const std::string& path,
                                                      const std::string& socket) {
  HOLDFAST_TRY_ASSIGN(auto client, protocol::ControlClient::connect(socket, kConnectTimeoutMs));
  HOLDFAST_TRY_ASSIGN(const auto health, client.call("health"));
  HOLDFAST_TRY_ASSIGN(const auto reader, arena::Reader::open(path));
  if (!protocol::serves(health.body, reader.header().uuid))
    return fail_errno(ENOENT, socket, "find an agent that holds this arena");
  return std::make_unique<RemoteStore>(std::move(client));
}

}  // namespace holdfast::fs
